"""One worker's state, and what it has to agree on with the others.

Everything here that talks to other workers must be called by all of them after the same step: a
collective waits for every rank.
"""

import dataclasses
import logging
import math
import os
import threading
import time

import numpy as np

from tf_train import checkpoint as ckpt
from tf_train import data
from tf_train.backend import keras
from tf_train.config import Config
from tf_train.steps import Steps

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Worker:
    """One worker's view of the training, handed from step to step."""

    config: Config
    rank: int
    world_size: int
    images: data.Images
    model: "keras.Model"
    optimizer: "keras.optimizers.Optimizer"
    steps: Steps
    position: ckpt.Position
    deadline: "Deadline"
    first_step_at: float | None = None
    """Unix time at which this worker's first step was done."""
    damaged: list[str] = dataclasses.field(default_factory=list)
    """On rank 0: a line for each useless checkpoint that was passed over."""


class Stop(Exception):  # noqa: N818 - an end of the training, not an error of the program
    """Training cannot go on; raised on every rank at the same step."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
        """`diverged` or `damaged`."""


class Deadline:
    """Ends this process if it has made no progress for `timeout_s`.

    A collective of TensorFlow waits without end for a worker that has stopped but not died, and
    nothing in Python can interrupt it. A process that dies is what Ray Train notices: it starts the
    whole group anew, from the newest checkpoint.
    """

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self._progress = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)

    def __enter__(self) -> "Deadline":
        self._progress = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.lift()
        self._thread.join()

    def lift(self) -> None:
        """Called when what follows may take as long as it likes."""
        self._over.set()

    def progress(self) -> None:
        """Called whenever this worker has got on."""
        self._progress = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(self.timeout_s / 10, 1)):
            if time.monotonic() - self._progress > self.timeout_s:
                text = "no step for train.step_timeout_s=%g seconds: this worker ends itself"
                logger.warning(text, self.timeout_s)
                os._exit(1)


def finite(sums: np.ndarray) -> tuple[float, float, float]:
    """Sums [loss, correct, images] as numbers; float32 [3].

    Raises:
        Stop: If the loss is not finite, on every rank.
    """
    loss_sum, correct, count = (float(x) for x in sums)
    if not math.isfinite(loss_sum):
        raise Stop("diverged")
    return loss_sum, correct, count


def evaluate_split(worker: Worker, name: str) -> dict[str, float]:
    """Loss and accuracy over all images of a split, each weighing the same.

    Raises:
        Stop: If the loss is not finite.
    """
    started = time.perf_counter()
    split = worker.images.splits[name]
    sums = worker.steps.evaluate(split, worker.rank, worker.world_size)
    loss_sum, correct, count = finite(sums)
    worker.deadline.progress()
    eval_s = time.perf_counter() - started
    return {f"{name}_loss": loss_sum / count, f"{name}_accuracy": correct / count, "eval_s": eval_s}


def finite_weights(model: "keras.Model") -> bool:
    """Whether every weight is a number."""
    return all(bool(np.isfinite(variable.numpy()).all()) for variable in model.variables)
