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
import ray.train

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
    watch: "PreemptionWatch"
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
    """Ends this process if a step or a batch of an evaluation takes longer than `timeout_s`.

    A worker whose process has stopped is noticed by Ray Train, whose questions it does not answer,
    and by TensorFlow, which misses its heartbeats. Both come from threads of their own: for a
    worker that hangs in Python a collective waits without end, and nothing in Python can interrupt
    it. A process that dies is what Ray Train notices: it starts the whole group anew, from the
    newest checkpoint. Reading files, saving and reporting may take as long as they like.
    """

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self._since: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)

    def __enter__(self) -> "Deadline":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def start(self) -> None:
        """Called before a step or a batch, and whenever one is done and the next one follows."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Called when something else follows."""
        self._since = None

    def _watch(self) -> None:
        while not self._over.wait(min(self.timeout_s / 10, 1)):
            since = self._since
            if since is not None and time.monotonic() - since > self.timeout_s:
                text = "no step for train.step_timeout_s=%g seconds: this worker ends itself"
                logger.warning(text, self.timeout_s)
                os._exit(1)


class PreemptionWatch:
    """Asks Ray about nodes that are about to be taken away, about every `interval_s` seconds.

    The question is a barrier between the workers, so it is not asked after every step; and all of
    them must ask after the same steps, so none goes by its own clock: they agree on the mean
    duration of a step and count steps.
    """

    def __init__(self, interval_s: float, steps: Steps, world_size: int):
        self.interval_s = interval_s
        self.steps = steps
        self.world_size = world_size
        self.next_step = 0
        self.last_step, self.since = 0, time.perf_counter()

    def look(self, step: int) -> bool:
        """Called after every call of TensorFlow; whether a node of this run is about to go."""
        if step < self.next_step:
            return False
        preempted = ray.train.get_preemption_info() is not None
        num_steps = max(1, step - self.last_step)
        seconds = np.array([(time.perf_counter() - self.since) / num_steps], np.float32)
        mean = float(self.steps.total(seconds).numpy()[0]) / self.world_size
        self.next_step = step + max(1, int(self.interval_s / mean))
        self.last_step, self.since = step, time.perf_counter()
        return preempted


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
    worker.deadline.start()
    sums = worker.steps.evaluate(split, worker.rank, worker.world_size, worker.deadline.start)
    worker.deadline.stop()
    loss_sum, correct, count = finite(sums)
    eval_s = time.perf_counter() - started
    return {f"{name}_loss": loss_sum / count, f"{name}_accuracy": correct / count, "eval_s": eval_s}


def finite_weights(model: "keras.Model") -> bool:
    """Whether every weight is a number."""
    return all(bool(np.isfinite(variable.numpy()).all()) for variable in model.variables)


def stops_early(worker: Worker) -> bool:
    """Whether the metric has not become better for `train.early_stopping_epochs`."""
    patience, position = worker.config.train.early_stopping_epochs, worker.position
    return 0 < patience <= position.epoch - position.best_epoch
