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

PROJECT = "tf-train"
METRICS = ("val_accuracy", "val_loss")


@dataclass
class DataConfig:
    """What to train on."""

    name: str
    """`digits` (inside scikit-learn) or `tfrecord` (files in `path`)."""
    path: str | None
    """tfrecord: the directory of `train*.tfrecord`, `val*.tfrecord` and `test*.tfrecord`. Each
    record is a `tf.train.Example` with `image` (the bytes of a uint8 array of `shape`) and `label`
    (an int64)."""
    loader: str
    """`memory`: batches from each worker's memory; `ray`: streamed by Ray Data."""
    shape: list[int]
    """Height, width and channels of an image. Each at least 1."""
    num_classes: int
    """Labels are 0 to `num_classes` - 1. At least 2."""
    split_seed: int
    """digits: seed of the split into training, validation and test images."""

    def __post_init__(self) -> None:
        check(self.name in ("digits", "tfrecord"), "data.name", self.name, "digits or tfrecord")
        check(self.loader in ("memory", "ray"), "data.loader", self.loader, "memory or ray")
        ok = len(self.shape) == 3 and min(self.shape) >= 1
        check(ok, "data.shape", self.shape, "height, width and channels, each >= 1")
        check(self.num_classes >= 2, "data.num_classes", self.num_classes, ">= 2")
        if self.name == "tfrecord" and not self.path:
            raise UserError("data=tfrecord needs data.path: the directory of the TFRecord files")
        if self.name == "digits":
            if self.path:
                raise UserError(f"data.path={self.path}: data=digits reads no files; data=tfrecord")
            check(self.shape == [8, 8, 1], "data.shape", self.shape, "[8, 8, 1] for digits")
            check(self.num_classes == 10, "data.num_classes", self.num_classes, "10 for digits")
        if self.path:
            # Once and for all, on the driver: Ray Train's workers have a directory of their own.
            self.path = local_path("data.path", self.path)


@dataclass
class ModelConfig:
    """What to train."""

    name: str
    """`cnn` or `mlp`."""
    width: int
    """Channels of the first convolution, or units of the dense layers. A multiple of 8."""

    def __post_init__(self) -> None:
        check(self.name in ("cnn", "mlp"), "model.name", self.name, "cnn or mlp")
        ok = self.width >= 8 and self.width % 8 == 0
        check(ok, "model.width", self.width, "a multiple of 8")


@dataclass
class TrainConfig:
    """How to train."""

    epochs: int
    """Passes over the training images. At least 1."""
    batch_size: int
    """Images of one step of one worker. At least 1."""
    lr: float
    """Peak learning rate of AdamW, before `lr_scaling`. More than 0."""
    lr_scaling: str
    """How the learning rate grows with the number of workers: `none`, `linear` or `sqrt`."""
    weight_decay: float
    """AdamW's decoupled weight decay. At least 0."""
    warmup_epochs: float
    """Epochs of linear warm-up before the cosine decay to 0. In [0, epochs]."""
    clip_norm: float | None
    """Largest L2 norm of the gradient of the global batch; null: not clipped."""
    precision: str
    """`fp32`, or `bf16` for Keras's policy mixed_bfloat16."""
    early_stopping_epochs: int
    """Stop after so many epochs without a better `checkpoint.metric`; 0: never."""
    steps_per_call: int
    """Optimizer steps that TensorFlow does before it returns to Python, with `data.loader=memory`.
    At least 1."""
    step_timeout_s: float
    """Seconds after which a worker that waits in a step for another one ends itself, and after
    which one that does not answer Ray Train is given up, so that the group starts anew. Longer than
    `steps_per_call` steps take, tracing included."""
    seed: int
    """Seed of the weights and of the order of the images. At least 0."""

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
        check(self.precision in ("fp32", "bf16"), "train.precision", self.precision, "fp32 or bf16")
        patience = self.early_stopping_epochs
        check(patience >= 0, "train.early_stopping_epochs", patience, ">= 0")
        check(self.steps_per_call >= 1, "train.steps_per_call", self.steps_per_call, ">= 1")
        check(self.step_timeout_s > 0, "train.step_timeout_s", self.step_timeout_s, "> 0")
        check(self.seed >= 0, "train.seed", self.seed, ">= 0")


@dataclass
class Config:
    """The whole configuration of `tf-train`."""

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
        # The strategy's group has a fixed size.
        allowed = "null: tf-train does not shrink"
        fixed = self.scaling.min_workers is None
        check(fixed, "scaling.min_workers", self.scaling.min_workers, allowed)
        ok = self.checkpoint.metric in METRICS
        check(ok, "checkpoint.metric", self.checkpoint.metric, f"one of {', '.join(METRICS)}")
        better = "min" if self.checkpoint.metric.endswith("loss") else "max"
        allowed = f"{better} for checkpoint.metric={self.checkpoint.metric}"
        check(self.checkpoint.mode == better, "checkpoint.mode", self.checkpoint.mode, allowed)
        every_steps = self.checkpoint.every_steps
        ok = every_steps == 0 or self.data.loader == "memory"
        allowed = "0 with data.loader=ray: a stream cannot start in the middle"
        check(ok, "checkpoint.every_steps", every_steps, allowed)

    def locked(self, files: str | None = None) -> dict[str, Any]:
        """What a resumed run must not change: its weights, or its scores, would mean nothing.

        Args:
            files: `data.fingerprint`.
        """
        data, checkpoint = self.data, self.checkpoint
        return {
            "data": {
                "name": data.name,
                "loader": data.loader,
                "shape": data.shape,
                "num_classes": data.num_classes,
                "split_seed": data.split_seed,
                "files": files,
            },
            "model": asdict(self.model),
            "train": {"seed": self.train.seed, "precision": self.train.precision},
            "checkpoint": {"metric": checkpoint.metric, "mode": checkpoint.mode},
        }
