"""The schema of the tiny job."""

from dataclasses import dataclass
from typing import Any

from ray_shared.errors import check
from ray_shared.groups import ClusterConfig, RunConfig


@dataclass
class TrainConfig:
    """How to train."""

    epochs: int
    lr: float
    shuffle: bool
    clip_norm: float | None
    eval_epochs: int

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "train.epochs", self.epochs, ">= 1")


@dataclass
class ModelConfig:
    """What to train."""

    width: int
    options: dict[str, Any]
    """Any names."""


@dataclass
class Config:
    """The whole configuration."""

    action: str
    cluster: ClusterConfig
    run: RunConfig
    model: ModelConfig
    train: TrainConfig
