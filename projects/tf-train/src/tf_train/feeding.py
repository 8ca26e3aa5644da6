"""One epoch, call by call: images from memory, many steps in a call, or from Ray Data, one by one.

Runs in a Ray Train worker, and moves the position on.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import ray.train

from tf_train import data
from tf_train.backend import tf
from tf_train.steps import learning_rate
from tf_train.worker import Worker


def from_memory(worker: Worker) -> Iterator[tuple[np.ndarray, float]]:
    """Trains on the rest of the epoch from memory, with several steps in each call of TensorFlow.

    Yields:
        The sums of a call, and its last learning rate.
    """
    train, position = worker.config.train, worker.position
    num_images = len(worker.images.splits["train"].labels)
    order = data.epoch_order(num_images, train.seed, position.epoch)
    shares = data.step_shares(
        order, train.batch_size, worker.rank, worker.world_size, position.offset
    )
    global_batch = train.batch_size * worker.world_size
    while True:
        # Steps of one call are of one size; the last one of an epoch may be smaller.
        full_steps = (num_images - position.offset) // global_batch
        group = list(itertools.islice(shares, max(1, min(full_steps, steps_until_event(worker)))))
        if not group:
            return
        rates = []
        for _ in group:
            step_size = min(global_batch, num_images - position.offset)
            progress = position.epoch + (position.offset + step_size / 2) / num_images
            rates.append(learning_rate(train, progress, worker.world_size))
            position.step += 1
            position.offset += step_size
        indices, weights = zip(*map(data.filled, group), strict=True)
        sums = worker.steps.train_indices(
            np.stack(indices), np.stack(weights), np.array(rates, np.float32)
        )
        yield sums.numpy(), rates[-1]


def steps_until_event(worker: Worker) -> int:
    """How many steps TensorFlow may do before Python has to do something."""
    config, step = worker.config, worker.position.step
    intervals = (config.tracking.every_steps, config.checkpoint.every_steps)
    due = [interval - step % interval for interval in intervals if interval]
    return min([config.train.steps_per_call, *due])


def from_ray_data(worker: Worker) -> Iterator[tuple[np.ndarray, float]]:
    """Trains on an epoch as Ray Data delivers it, step by step.

    Yields:
        The sums of a step, and its learning rate.
    """
    train, position = worker.config.train, worker.position
    num_images = len(worker.images.splits["train"].labels)
    shard = ray.train.get_dataset_shard("train")
    batches = shard.to_tf(
        feature_columns="image",
        label_columns=["label", "weight"],
        batch_size=train.batch_size,
        local_shuffle_buffer_size=16 * train.batch_size,
        local_shuffle_seed=train.seed + position.epoch,
    )
    for images, targets in batches:
        done = min(1.0, (position.offset + len(images) * worker.world_size / 2) / num_images)
        lr = learning_rate(train, position.epoch + done, worker.world_size)
        sums = worker.steps.train_batch(
            tf.cast(images, tf.uint8), targets["label"], targets["weight"], np.float32(lr)
        )
        position.step += 1
        position.offset += len(images) * worker.world_size
        yield sums.numpy(), lr
