"""The schema of the configuration: types, units and ranges. The values are in `conf/`."""

import difflib
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from ray_shared.errors import UserError, check
from ray_shared.groups import (
    ClusterConfig,
    RunConfig,
    StorageConfig,
    TrackingConfig,
)

PROJECT = "data-preprocessing"
ACTIONS = ("prepare", "train", "score")
FORMATS = ("parquet", "csv", "jsonl")
NUMERIC = (
    "log_distance",
    "passenger_count",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
    "is_weekend",
    "pickup_minutes",
    "dropoff_minutes",
    "pickup_hour_minutes",
    "pickup_hour_mph",
    "pickup_hour_log_trips",
)
CATEGORICAL = ("vendor", "ratecode", "pickup_borough", "dropoff_borough")
RAY_DEFAULTS = {
    # As many tasks as CPUs run at a time, each with one thread.
    "POLARS_MAX_THREADS": "1",
    # Memory of freed objects is given back at once, not once a second.
    "RAY_free_objects_batch_size": "1",
}


@dataclass
class DataConfig:
    """Which trips to read, or to generate."""

    path: str | None
    """A file, a directory or a glob of Parquet, CSV or JSON-lines files with the schema of New
    York's yellow-taxi trips; local, `s3://`, `gs://` or `abfs://`. null: generated trips."""
    zones: str | None
    """CSV with the columns `LocationID` and `Borough`; null: the generated trips' zones. Scoring
    takes the zones of the model."""
    num_rows: int
    """Trips to generate. At least 1000."""
    num_files: int
    """Files to generate them in. At least 1."""
    format: str
    """Format of the generated files: `parquet`, `csv` or `jsonl`."""
    broken_fraction: float
    """Share of the generated trips that break the contract. In [0, 0.5]."""
    seed: int
    """Seed of the generated trips. At least 0."""
    rows_per_unit: int
    """Rows of a Parquet file that one task reads, about. At least 1000."""

    def __post_init__(self) -> None:
        check(self.num_rows >= 1000, "data.num_rows", self.num_rows, ">= 1000")
        check(self.num_files >= 1, "data.num_files", self.num_files, ">= 1")
        ok = self.format in FORMATS
        check(ok, "data.format", self.format, f"one of {', '.join(FORMATS)}")
        ok = 0 <= self.broken_fraction <= 0.5
        check(ok, "data.broken_fraction", self.broken_fraction, "in [0, 0.5]")
        check(self.seed >= 0, "data.seed", self.seed, ">= 0")
        check(self.rows_per_unit >= 1000, "data.rows_per_unit", self.rows_per_unit, ">= 1000")


@dataclass
class QualityConfig:
    """How rotten the input may be."""

    max_bad_fraction: float
    """A run stops, before it writes features, if a larger share of the rows breaks the contract.
    In [0, 1]."""
    max_bad_files: int
    """The same for files that cannot be read at all. At least 0."""

    def __post_init__(self) -> None:
        ok = 0 <= self.max_bad_fraction <= 1
        check(ok, "quality.max_bad_fraction", self.max_bad_fraction, "in [0, 1]")
        check(self.max_bad_files >= 0, "quality.max_bad_files", self.max_bad_files, ">= 0")


@dataclass
class SplitConfig:
    """The split by time of pick-up: what comes later is never learnt from."""

    val_from: str
    """First day of the validation rows, YYYY-MM-DD; earlier rows are for training."""
    test_from: str
    """First day of the test rows, YYYY-MM-DD."""

    def __post_init__(self) -> None:
        for key in ("val_from", "test_from"):
            check(_is_day(getattr(self, key)), f"split.{key}", getattr(self, key), "YYYY-MM-DD")
        ok = self.val_from < self.test_from
        allowed = f"later than split.val_from={self.val_from}"
        check(ok, "split.test_from", self.test_from, allowed)


@dataclass
class FeaturesConfig:
    """What the model sees of a trip."""

    numeric: list[str]
    """Scaled to mean 0 and deviation 1 of the training rows."""
    categorical: list[str]
    """One column for each value that the training rows have, and one for all others."""
    smoothing: float
    """A zone's mean counts as much as this many rows of the overall mean. At least 0."""

    def __post_init__(self) -> None:
        for key, known in (("numeric", NUMERIC), ("categorical", CATEGORICAL)):
            names = getattr(self, key)
            for name in names:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
                    raise UserError(f"features.{key}: unknown column '{name}': {hint}")
            check(len(set(names)) == len(names), f"features.{key}", names, "without repetition")
        ok = bool(self.numeric or self.categorical)
        check(ok, "features.numeric", self.numeric, "at least one column, or features.categorical")
        check(self.smoothing >= 0, "features.smoothing", self.smoothing, ">= 0")


@dataclass
class TrainConfig:
    """`action=train`: the XGBoost model."""

    num_rounds: int
    """Boosting rounds, at most. At least 1."""
    early_stopping_rounds: int
    """Rounds without a better validation RMSE before training ends; 0: never. At least 0."""
    max_depth: int
    """Depth of a tree. At least 1."""
    lr: float
    """Learning rate. In (0, 1]."""
    max_bin: int
    """Bins of a feature. At least 2."""
    seed: int
    """Seed of the model. At least 0."""

    def __post_init__(self) -> None:
        check(self.num_rounds >= 1, "train.num_rounds", self.num_rounds, ">= 1")
        ok = self.early_stopping_rounds >= 0
        check(ok, "train.early_stopping_rounds", self.early_stopping_rounds, ">= 0")
        check(self.max_depth >= 1, "train.max_depth", self.max_depth, ">= 1")
        check(0 < self.lr <= 1, "train.lr", self.lr, "in (0, 1]")
        check(self.max_bin >= 2, "train.max_bin", self.max_bin, ">= 2")
        check(self.seed >= 0, "train.seed", self.seed, ">= 0")


@dataclass
class ScalingConfig:
    """How many training workers, and what each of them gets."""

    num_workers: int
    """Workers that train together. At least 1."""
    cpus_per_worker: float
    """CPUs that each worker reserves, and how many threads it has: at least one. More than 0."""
    start_timeout_s: float
    """Seconds to wait for the workers to start before trying again. More than 0."""

    def __post_init__(self) -> None:
        check(self.num_workers >= 1, "scaling.num_workers", self.num_workers, ">= 1")
        check(self.cpus_per_worker > 0, "scaling.cpus_per_worker", self.cpus_per_worker, "> 0")
        check(self.start_timeout_s > 0, "scaling.start_timeout_s", self.start_timeout_s, "> 0")


@dataclass
class CheckpointConfig:
    """When the model is saved while it is trained."""

    every_rounds: int
    """Boosting rounds between two checkpoints. At least 1."""
    num_to_keep: int
    """How many of the newest checkpoints stay. At least 1."""

    def __post_init__(self) -> None:
        check(self.every_rounds >= 1, "checkpoint.every_rounds", self.every_rounds, ">= 1")
        check(self.num_to_keep >= 1, "checkpoint.num_to_keep", self.num_to_keep, ">= 1")


@dataclass
class FailureConfig:
    """What is survived, and how often."""

    max_failures: int
    """Training workers that may fail before the job does; -1: no limit. Preparing and scoring
    repeat what a dead process was doing as often as it takes."""

    def __post_init__(self) -> None:
        check(self.max_failures >= -1, "failure.max_failures", self.max_failures, ">= -1")


@dataclass
class ScoreConfig:
    """`action=score`: predictions for raw trips."""

    bundle: str | None
    """Directory of the model bundle; null: that of the newest training run in `storage.path`."""
    num_actors: int
    """Actors that hold the model. At least 1."""
    cpus_per_actor: float
    """CPUs that each of them reserves. More than 0."""

    def __post_init__(self) -> None:
        check(self.num_actors >= 1, "score.num_actors", self.num_actors, ">= 1")
        check(self.cpus_per_actor > 0, "score.cpus_per_actor", self.cpus_per_actor, "> 0")


@dataclass
class Config:
    """The whole configuration of `data-preprocessing`."""

    action: str
    """`prepare`: raw trips to features; `train`: a model from features; `score`: predictions."""
    dataset: str | None
    """train: directory of a prepared run; null: the newest one in `storage.path`."""
    cluster: ClusterConfig
    storage: StorageConfig
    run: RunConfig
    tracking: TrackingConfig
    data: DataConfig
    quality: QualityConfig
    split: SplitConfig
    features: FeaturesConfig
    scaling: ScalingConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    failure: FailureConfig
    score: ScoreConfig

    def __post_init__(self) -> None:
        check(self.action in ACTIONS, "action", self.action, f"one of {', '.join(ACTIONS)}")
        if self.data.zones is None and self.data.path is not None and self.action == "prepare":
            raise UserError("data.zones=null: trips of your own need their table of zones")
        if self.dataset is not None and self.action != "train":
            raise UserError(f"dataset={self.dataset}: only with action=train")
        if self.data.path is not None and self.action == "train":
            raise UserError(
                f"data.path={self.data.path}: action=train reads prepared rows; dataset names them"
            )

    def locked(self) -> dict[str, Any]:
        """What a run of the same name must not change; see also `earlier.locked`."""
        if self.action == "train":
            train = {"train": asdict(self.train)}
            del train["train"]["num_rounds"]
            return train
        data = asdict(self.data)
        generated = ("num_rows", "num_files", "format", "broken_fraction", "seed")
        names = ["path", "zones"] if self.data.path is not None else generated
        return {"data": {name: data[name] for name in (*names, "rows_per_unit")}}


def _is_day(text: str) -> bool:
    try:
        return len(text) == 10 and bool(date.fromisoformat(text))
    except ValueError:
        return False
