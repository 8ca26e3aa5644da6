"""The peers: TensorFlow workers started by hand, each with its `TF_CONFIG`, without Ray.

    raw.py --config CONFIG.json --rank 0 --addresses HOST:PORT,HOST:PORT --out EVENTS.jsonl

By default the loop is that of TensorFlow's tutorial on custom training: a distributed data set, a
call of `tf.function` for each step, and Keras's optimizer inside `strategy.run`. With
`--steps project` it is this project's own step, so that only what Ray adds is left.

Source: https://www.tensorflow.org/tutorials/distribute/multi_worker_with_ctl
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tf_train import data
from tf_train.backend import keras, tf
from tf_train.config import DataConfig, ModelConfig, TrainConfig
from tf_train.model import build_model
from tf_train.steps import Steps, learning_rate

Epoch = Callable[[int], tuple[np.ndarray, int]]
"""Trains one epoch: sums of losses, hits and images, and the number of steps."""


def main() -> None:
    """Trains, and writes an event for each epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--addresses", required=True)
    parser.add_argument("--steps", choices=("tutorial", "project"), default="tutorial")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    values = json.loads(args.config.read_text())
    train, model_config = TrainConfig(**values["train"]), ModelConfig(**values["model"])
    data_config = DataConfig(**values["data"])
    addresses = args.addresses.split(",")
    task = {"type": "worker", "index": args.rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    for set_threads in (
        tf.config.threading.set_intra_op_parallelism_threads,
        tf.config.threading.set_inter_op_parallelism_threads,
    ):
        set_threads(values["threads"])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    images = data.load(data_config)
    shape, classes = data_config.shape, data_config.num_classes
    with strategy.scope():
        model = build_model(
            model_config, shape, classes, images.mean, images.std, train.precision, train.seed
        )
        clip = None if args.steps == "project" else train.clip_norm
        optimizer = keras.optimizers.AdamW(
            0.0, weight_decay=train.weight_decay, global_clipnorm=clip
        )
        optimizer.build(model.trainable_variables)
    shape = images.splits["train"].images.shape[1:]
    steps = Steps(strategy, model, optimizer, train.clip_norm, shape, images.splits["train"])
    world_size = len(addresses)
    make = project_epoch if args.steps == "project" else tutorial_epoch
    run_epoch = make(steps, train, images.splits["train"], args.rank, world_size)
    first_step_at, num_steps = None, 0
    for epoch in range(train.epochs):
        started = time.perf_counter()
        sums, done = run_epoch(epoch)
        train_s = time.perf_counter() - started
        num_steps += done
        first_step_at = first_step_at or time.time()
        validated = steps.evaluate(images.splits["val"], args.rank, world_size)
        event: dict[str, Any] = {"event": "epoch", "epoch": epoch + 1, "step": num_steps}
        event |= {"samples_per_s": float(sums[2]) / train_s, "train_s": train_s}
        event |= {"first_step_at": first_step_at, "time": time.time()}
        event["val_accuracy"] = float(validated[1] / validated[2])
        if args.rank == 0:
            with args.out.open("a") as file:
                file.write(json.dumps(event) + "\n")
    if args.rank == 0:
        model.save(args.out.with_name("model.keras"))


def project_epoch(
    steps: Steps, train: TrainConfig, split: data.Split, rank: int, world_size: int
) -> Epoch:
    """This project's step, several in each call."""

    def run(epoch: int) -> tuple[np.ndarray, int]:
        order = data.epoch_order(len(split.labels), train.seed, epoch)
        shares = list(data.step_shares(order, train.batch_size, rank, world_size, 0))
        rates = rates_of(train, epoch, len(shares), world_size)
        full = len(order) // (train.batch_size * world_size)
        indices = np.stack(shares[:full])
        weights = np.ones(indices.shape, np.float32)
        sums = steps.train_indices(indices, weights, rates[:full]).numpy()
        for share, rate in zip(shares[full:], rates[full:], strict=True):
            taken, weights = data.filled(share)
            sums += steps.train_indices(taken[None], weights[None], rate[None]).numpy()
        return sums, len(shares)

    return run


def tutorial_epoch(
    steps: Steps, train: TrainConfig, split: data.Split, rank: int, world_size: int
) -> Epoch:
    """The tutorial's step."""
    del rank  # The distributed data set knows.
    strategy, model, optimizer = steps.strategy, steps.model, steps.optimizer
    global_batch = train.batch_size * world_size
    dataset = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
    dataset = dataset.shuffle(len(split.labels), seed=train.seed).batch(global_batch)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = strategy.experimental_distribute_dataset(dataset.with_options(options))

    def local(images: "tf.Tensor", labels: "tf.Tensor") -> "tf.Tensor":
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.nn.compute_average_loss(losses, global_batch_size=global_batch)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        hits = tf.reduce_sum(tf.cast(tf.argmax(logits, 1) == labels, tf.float32))
        return tf.stack([tf.reduce_sum(losses), hits, tf.cast(tf.size(labels), tf.float32)])

    @tf.function
    def step(batch: tuple["tf.Tensor", "tf.Tensor"], rate: "tf.Tensor") -> "tf.Tensor":
        optimizer.learning_rate.assign(rate)
        sums = strategy.run(local, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

    def run(epoch: int) -> tuple[np.ndarray, int]:
        num_steps = -(-len(split.labels) // global_batch)
        rates = rates_of(train, epoch, num_steps, world_size)
        sums = tf.zeros(3)
        for batch, rate in zip(batches, rates, strict=True):
            sums += step(batch, tf.constant(rate))  # Nobody waits for it here.
        return sums.numpy(), num_steps

    return run


def rates_of(train: TrainConfig, epoch: int, num_steps: int, world_size: int) -> np.ndarray:
    """The learning rate of each step of an epoch; float32 [steps]."""
    middle = (np.arange(num_steps) + 0.5) / num_steps
    rates = [learning_rate(train, epoch + progress, world_size) for progress in middle]
    return np.array(rates, np.float32)


if __name__ == "__main__":
    main()
