"""What a trial trains, an epoch at a time. Nothing here knows Ray."""

from pathlib import Path
from typing import Any, Protocol

from ray_shared.bundle import Bundle

from asha_pbt_tune.config import Config


class Objective(Protocol):
    """A model, its optimizer and its data."""

    epoch: int
    """Epochs trained so far."""

    def set(self, hyperparameters: dict[str, Any]) -> None:
        """Trains on with these. All of them are given, also those that cannot change any more."""

    def train_epoch(self) -> dict[str, float]:
        """Trains one epoch and returns its metrics, by the names of the configuration."""

    def save(self, directory: Path) -> None:
        """Writes everything that `load` needs to go on as if nothing had happened."""

    def load(self, directory: Path) -> None:
        """Takes over what was saved, hyperparameters excepted."""

    def test(self) -> dict[str, float]:
        """Metrics on the test rows."""

    def bundle(self, directory: Path) -> Bundle:
        """Writes the model's files, and describes them."""


def build(config: Config, hyperparameters: dict[str, Any], num_threads: int) -> Objective:
    """The objective of the configuration, untrained.

    Args:
        config: Which one.
        hyperparameters: Those of the trial; the others are the configuration's.
        num_threads: Threads to train with.
    """
    values = config.objective.hyperparameters | hyperparameters
    if config.objective.name == "xgboost":
        from asha_pbt_tune.boosting import Boosting

        return Boosting(config, values, num_threads)
    from asha_pbt_tune.network import Network

    return Network(config, values, num_threads)


def values_at(config: Config, drawn: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The hyperparameters in force after so many epochs, a schedule of PBT's followed."""
    values = config.objective.hyperparameters | drawn
    for change in config.objective.schedule:
        if change["after_epoch"] <= epoch:
            values |= {name: value for name, value in change.items() if name != "after_epoch"}
    return values


def check_reported(config: Config, metrics: dict[str, float]) -> None:
    """Refuses an epoch without the metric that is optimized, at the first one.

    Raises:
        ValueError: Names the metric, and those that are reported.
    """
    if config.metric not in metrics:
        names = ", ".join(metrics)
        raise ValueError(f"tune.metric={config.metric}: the objective reports only {names}")


def checkpoint_due(config: Config, epoch: int) -> bool:
    """Whether a trial saves after this epoch."""
    return epoch % checkpoint_interval(config) == 0 or epoch == config.train.epochs


def checkpoint_interval(config: Config) -> int:
    """Epochs between two checkpoints of a trial; PBT saves when it looks."""
    pbt = config.scheduler.name == "pbt" and config.action == "tune"
    return config.scheduler.perturbation_epochs if pbt else config.checkpoint.every_epochs
