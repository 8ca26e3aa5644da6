"""One worker's state, and what it has to agree on with the others.

Everything here that talks to other workers must be called by all of them after the same step: a
collective waits for every rank.
"""

import dataclasses
import logging
import math
import tempfile
import time
import warnings
from pathlib import Path

import ray.train
import torch
import torch.distributed as dist
from ray_shared.bundle import Bundle, write_bundle
from ray_shared.report import versions
from ray_shared.storage import Storage
from torch import nn

from torch_ddp_train import checkpoint as ckpt
from torch_ddp_train import data
from torch_ddp_train.config import PROJECT, Config
from torch_ddp_train.steps import Normalization, evaluate


@dataclasses.dataclass
class Worker:
    """One worker's view of the training, handed from step to step."""

    config: Config
    rank: int
    world_size: int
    device: torch.device
    images: data.Images
    module: nn.Module
    """The bare network."""
    model: nn.Module
    """The same network inside DistributedDataParallel (with one worker: the bare one)."""
    optimizer: torch.optim.Optimizer
    position: ckpt.Position
    watch: "PreemptionWatch"
    first_step_at: float | None = None
    """Unix time at which this worker's first step was done."""
    damaged: list[str] = dataclasses.field(default_factory=list)
    """On rank 0: a line for each damaged checkpoint that was passed over."""

    @property
    def normalization(self) -> Normalization:
        """Of the training images."""
        return Normalization(self.images.mean, self.images.std)


class Stop(Exception):  # noqa: N818 - an end of the training, not an error of the program
    """Training cannot go on; raised on every rank at the same step."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
        """`diverged` or `damaged`."""


class PreemptionWatch:
    """Asks Ray about nodes that are about to be taken away, about every `interval_s` seconds.

    The question is a barrier between the workers and costs a round trip, so it is not asked after
    every step; and all workers must ask after the same steps, so none goes by its own clock: they
    agree on the mean duration of a step and count steps.
    """

    def __init__(self, interval_s: float, device: torch.device):
        self.interval_s = interval_s
        self.device = device
        self.steps_left = 1
        self.steps = 0
        self.since = time.perf_counter()

    def look(self) -> bool:
        """Called after every step; whether a node of this run is about to go."""
        self.steps += 1
        if self.steps < self.steps_left:
            return False
        preempted = ray.train.get_preemption_info() is not None
        seconds = torch.tensor((time.perf_counter() - self.since) / self.steps, device=self.device)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        self.steps_left = max(1, int(self.interval_s / seconds.item()))
        self.steps = 0
        self.since = time.perf_counter()
        return preempted


def finite_sums(sums: torch.Tensor) -> list[float]:
    """Sums [loss, correct, images] over all workers; float [3].

    Raises:
        Stop: If the loss is not finite, on every rank.
    """
    total = sums.clone()
    dist.all_reduce(total)
    if not math.isfinite(total[0].item()):
        raise Stop("diverged")
    return total.tolist()


def evaluate_split(worker: Worker, name: str) -> dict[str, float]:
    """Loss and accuracy over all images of a split, each weighing the same."""
    started = time.perf_counter()
    sums = evaluate(
        worker.module,
        worker.images.splits[name],
        worker.normalization,
        worker.device,
        worker.rank,
        worker.world_size,
    )
    dist.all_reduce(sums)
    loss_sum, correct, count = sums.tolist()
    if not math.isfinite(loss_sum):
        raise Stop("diverged")
    eval_s = time.perf_counter() - started
    return {f"{name}_loss": loss_sum / count, f"{name}_accuracy": correct / count, "eval_s": eval_s}


def quiet() -> None:
    """Keeps two messages off the console that repeat and say nothing."""
    # Ray Train logs every report at INFO, under the root logger.
    logging.getLogger().setLevel(logging.WARNING)
    # The strides differ in a dimension of size 1 only: the first layer has one input channel.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


def write_model_bundle(worker: Worker, metrics: dict[str, float], target: Storage) -> None:
    """Writes the model as it is now, with all that is needed to use it, to the storage."""
    images = worker.images
    dtype = str(images.splits["train"].images.dtype)
    bundle = Bundle(
        framework="torch",
        task="classification",
        features=[{"name": "image", "dtype": dtype, "shape": list(images.shape)}],
        classes=images.classes,
        model=dataclasses.asdict(worker.config.model),
        preprocessor={"mean": images.mean, "std": images.std},
        metrics=metrics,
        versions=versions(PROJECT),
    )
    with tempfile.TemporaryDirectory() as name:
        ckpt.save_weights(worker.module, Path(name))
        write_bundle(Path(name), bundle)
        target.upload(Path(name))
