"""One process of a group of TensorFlow workers, without Ray: `member.py ADDRESSES RANK OUT`.

Trains on digits with a global batch of 64, whatever the number of processes, and saves the weights
and the sums after each call.
"""

import json
import os
import sys

import numpy as np
from ray_shared.config import compose
from tf_train import data
from tf_train.backend import keras, tf
from tf_train.config import Config
from tf_train.model import build_model
from tf_train.steps import Steps

GLOBAL_BATCH, NUM_IMAGES = 64, 150


def main(addresses: list[str], rank: int, out: str) -> None:
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    config = compose(Config, "tf_train.conf", ["model.width=8"])
    images = data.load(config.data)
    split = images.splits["train"]
    with strategy.scope():
        model = build_model(config.model, [8, 8, 1], 10, images.mean, images.std, "fp32", 0)
        optimizer = keras.optimizers.AdamW(0.0, weight_decay=0.01)
        optimizer.build(model.trainable_variables)
    # Small enough that every gradient is clipped.
    steps = Steps(strategy, model, optimizer, 0.1, [8, 8, 1], split)
    order, world_size = np.arange(NUM_IMAGES), len(addresses)
    batch = GLOBAL_BATCH // world_size
    saved: dict[str, np.ndarray] = {}

    def train(steps: Steps, shares: list[np.ndarray], rates: list[float]) -> np.ndarray:
        taken, weights = (np.stack(part) for part in zip(*map(data.filled, shares), strict=True))
        sums: np.ndarray = steps.train_indices(taken, weights, np.float32(rates)).numpy()
        return sums

    def save(name: str, sums: np.ndarray, model: "keras.Model" = model) -> None:
        weights = [v.numpy().ravel() for v in model.trainable_variables]
        saved[name] = np.concatenate(weights)
        saved[f"{name}-sums"] = sums

    shares = list(data.step_shares(order, batch, rank, world_size, 0))
    full, (last,) = shares[:2], shares[2:]
    save("one", train(steps, full[:1], [0.01]))
    save("full", train(steps, full, [0.02, 0.02]))
    save("last", train(steps, [last], [0.03]))
    # The same images again, with a row that does not count on each worker.
    weights = np.float32([1] * len(last) + [0])
    padded = np.append(last, last[:1])
    taken = (split.images[padded], split.labels[padded], weights)
    save("padded", steps.train_batch(*taken, np.float32(0.03)).numpy())
    # Neither AdamW nor clipping, which hide a gradient that is too large by a factor. The last
    # share of 65 images is empty on one of two workers.
    with strategy.scope():
        plain = build_model(config.model, [8, 8, 1], 10, images.mean, images.std, "fp32", 0)
        descent = keras.optimizers.SGD(0.0)
        descent.build(plain.trainable_variables)
    steps = Steps(strategy, plain, descent, None, [8, 8, 1], split)
    whole, one = data.step_shares(order[:65], batch, rank, world_size, 0)
    save("plain", train(steps, [whole], [0.1]), plain)
    save("single", train(steps, [one], [0.1]), plain)
    saved["test-sums"] = steps.evaluate(images.splits["test"], rank, world_size)
    np.savez(out, **saved)


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3])
