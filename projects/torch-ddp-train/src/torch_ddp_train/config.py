"""The schema of the configuration: types, units and ranges. The values are in `conf/`."""

from dataclasses import asdict, dataclass
from typing import Any

from ray_shared.errors import UserError, check
from ray_shared.groups import (
    CheckpointConfig,
    ClusterConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    StorageConfig,
    TrackingConfig,
)
from ray_shared.storage import local_path

PROJECT = "torch-ddp-train"
METRICS = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")


@dataclass
class DataConfig:
    """What to train on."""

    name: str
    """`digits` (inside scikit-learn) or `cifar10` (files in `path`)."""
    path: str | None
    """cifar10: the directory of the official binary files."""
    loader: str
    """`torch`: from each worker's memory; `ray`: read, decoded and split by Ray Data meanwhile."""
    prefetch_batches: int
    """`ray` loader: batches fetched ahead. At least 0."""
    split_seed: int
    """digits: seed of the split into training, validation and test images."""

    def __post_init__(self) -> None:
        check(self.name in ("digits", "cifar10"), "data.name", self.name, "digits or cifar10")
        check(self.loader in ("torch", "ray"), "data.loader", self.loader, "torch or ray")
        check(self.prefetch_batches >= 0, "data.prefetch_batches", self.prefetch_batches, ">= 0")
        if self.name == "cifar10" and not self.path:
            raise UserError("data=cifar10 needs data.path: the directory of the binary files")
        if self.name == "digits" and self.path:
            raise UserError(f"data.path={self.path}: data=digits reads no files; use data=cifar10")
        if self.path:
            # Once and for all, on the driver: Ray Train's workers have a directory of their own.
            self.path = local_path("data.path", self.path)


@dataclass
class ModelConfig:
    """What to train."""

    name: str
    """`cnn` or `resnet`."""
    width: int
    """Channels of the first layer. A multiple of 8."""
    dropout: float
    """Probability of dropping a feature before the last layer. In [0, 1)."""

    def __post_init__(self) -> None:
        check(self.name in ("cnn", "resnet"), "model.name", self.name, "cnn or resnet")
        ok = self.width >= 8 and self.width % 8 == 0
        check(ok, "model.width", self.width, "a multiple of 8")
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")


@dataclass
class TrainConfig:
    """How to train."""

    epochs: int
    """Passes over the training images. At least 1."""
    batch_size: int
    """Images of one micro-step of one worker. At least 1."""
    lr: float
    """Peak learning rate of AdamW, before `lr_scaling`. More than 0."""
    lr_scaling: str
    """How the learning rate grows with the images of an optimizer step, relative to one worker
    without accumulation: `none`, `linear` or `sqrt`."""
    weight_decay: float
    """AdamW's decoupled weight decay. At least 0."""
    warmup_epochs: float
    """Epochs of linear warm-up before the cosine decay to 0. In [0, epochs]."""
    clip_norm: float | None
    """Largest L2 norm of the gradient; null: not clipped."""
    accumulate_steps: int
    """Micro-steps whose gradients are added up before the all-reduce. At least 1."""
    precision: str
    """`fp32`, or `bf16` for autocast to bfloat16."""
    seed: int
    """Seed of the weights, of the order of the images and of dropout. At least 0."""

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "train.epochs", self.epochs, ">= 1")
        check(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        check(self.lr > 0, "train.lr", self.lr, "> 0")
        scalings = ("none", "linear", "sqrt")
        ok = self.lr_scaling in scalings
        check(ok, "train.lr_scaling", self.lr_scaling, f"one of {', '.join(scalings)}")
        check(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, ">= 0")
        ok = 0 <= self.warmup_epochs <= self.epochs
        allowed = f"in [0, train.epochs={self.epochs}]"
        check(ok, "train.warmup_epochs", self.warmup_epochs, allowed)
        ok = self.clip_norm is None or self.clip_norm > 0
        check(ok, "train.clip_norm", self.clip_norm, "null or > 0")
        check(self.accumulate_steps >= 1, "train.accumulate_steps", self.accumulate_steps, ">= 1")
        check(self.precision in ("fp32", "bf16"), "train.precision", self.precision, "fp32 or bf16")
        check(self.seed >= 0, "train.seed", self.seed, ">= 0")


@dataclass
class Config:
    """The whole configuration of `torch-ddp-train`."""

    cluster: ClusterConfig
    storage: StorageConfig
    run: RunConfig
    scaling: ScalingConfig
    checkpoint: CheckpointConfig
    failure: FailureConfig
    tracking: TrackingConfig
    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        ok = self.checkpoint.metric in METRICS
        check(ok, "checkpoint.metric", self.checkpoint.metric, f"one of {', '.join(METRICS)}")
        better = "min" if self.checkpoint.metric.endswith("loss") else "max"
        allowed = f"{better} for checkpoint.metric={self.checkpoint.metric}"
        check(self.checkpoint.mode == better, "checkpoint.mode", self.checkpoint.mode, allowed)
        every_steps = self.checkpoint.every_steps
        ok = every_steps == 0 or self.data.loader == "torch"
        allowed = "0 with data.loader=ray: a stream cannot start in the middle"
        check(ok, "checkpoint.every_steps", every_steps, allowed)

    def locked(self) -> dict[str, Any]:
        """What a resumed run must not change: its weights, or its scores, would mean nothing."""
        data, checkpoint = self.data, self.checkpoint
        return {
            "data": {"name": data.name, "loader": data.loader, "split_seed": data.split_seed},
            "model": asdict(self.model),
            "train": {"seed": self.train.seed},
            "checkpoint": {"metric": checkpoint.metric, "mode": checkpoint.mode},
        }
