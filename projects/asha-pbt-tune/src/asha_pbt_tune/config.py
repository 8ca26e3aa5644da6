"""The schema of the configuration: types, units and ranges. The values are in `conf/`."""

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from ray_shared.errors import UserError, check
from ray_shared.groups import ClusterConfig, RunConfig, StorageConfig
from ray_shared.storage import local_path

from asha_pbt_tune import pairs, space
from asha_pbt_tune.hyperparameters import DATASETS, OBJECTIVES, REGRESSION_METRICS, VARIANTS
from asha_pbt_tune.pairs import one_of

PROJECT = "asha-pbt-tune"
ACTIONS = ("tune", "train", "compare")
SEARCHES = ("auto", "optuna", "random", "grid")
SCHEDULERS = ("asha", "pbt", "none")


@dataclass
class ObjectiveConfig:
    """What a trial trains."""

    name: str
    """`xgboost` or `torch`."""
    dataset: str
    """One of scikit-learn's own: `digits`, `breast_cancer`, `wine` or `diabetes`."""
    path: str | None
    """xgboost only: a prepared run of data-preprocessing, read instead of `dataset`."""
    split_seed: int
    """Seed of the split into training, validation and test rows. At least 0."""
    hyperparameters: dict[str, Any]
    """Values of the hyperparameters that are not searched for."""
    schedule: list[dict[str, Any]]
    """Changes of hyperparameters in the course of training: `{after_epoch: 8, lr: 0.01}`. What
    PBT has found; only with `action=train`."""

    def __post_init__(self) -> None:
        check(self.name in OBJECTIVES, "objective.name", self.name, one_of(OBJECTIVES))
        check(self.dataset in DATASETS, "objective.dataset", self.dataset, one_of(DATASETS))
        check(self.split_seed >= 0, "objective.split_seed", self.split_seed, ">= 0")
        if self.name == "torch":
            check(self.dataset == "digits", "objective.dataset", self.dataset, "digits for torch")
            check(self.path is None, "objective.path", self.path, "null for torch")
        changes = [set(change) - {"after_epoch"} for change in self.schedule]
        for key in set(self.hyperparameters).union(*changes) - OBJECTIVES[self.name].keys():
            near = difflib.get_close_matches(key, OBJECTIVES[self.name], n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else one_of(OBJECTIVES[self.name])
            raise UserError(f"unknown key 'objective.hyperparameters.{key}': {hint}")
        for change in self.schedule:
            ok = isinstance(change.get("after_epoch"), int) and change["after_epoch"] >= 1
            ok &= all(OBJECTIVES[self.name][k].mutable for k in change if k != "after_epoch")
            allowed = "changes with after_epoch >= 1, of what may change in the course of training"
            check(ok, "objective.schedule", change, allowed)
        if self.path is not None and "://" not in self.path:
            # Once and for all, on the driver: a trial has a directory of its own.
            self.path = local_path("objective.path", self.path)

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics that a trial reports, each with its better end; the first is the default."""
        return DATASETS[self.dataset] if self.path is None else REGRESSION_METRICS


@dataclass
class TuneConfig:
    """How to search."""

    num_trials: int
    """Trials of the study; with PBT the size of the population. At least 1."""
    metric: str | None
    """What to optimize; null: the objective's own."""
    mode: str | None
    """`min` or `max`; null: as the metric has it."""
    max_concurrent: int | None
    """Trials that may run at the same time; null: as many as the cluster has room for."""
    seed: int
    """Seed of the search, not of the trials. At least 0."""

    def __post_init__(self) -> None:
        check(self.num_trials >= 1, "tune.num_trials", self.num_trials, ">= 1")
        check(self.mode in (None, "min", "max"), "tune.mode", self.mode, "null, min or max")
        ok = self.max_concurrent is None or self.max_concurrent >= 1
        check(ok, "tune.max_concurrent", self.max_concurrent, "null or >= 1")
        check(self.seed >= 0, "tune.seed", self.seed, ">= 0")


@dataclass
class SearchConfig:
    """Who proposes hyperparameters."""

    name: str
    """`optuna`, `random`, `grid`, or `auto`: optuna, but random with PBT."""
    warm_start: str | None
    """optuna only: `trials.parquet` of a previous study, from whose finished trials to learn."""
    num_startup_trials: int
    """optuna only: trials at random before TPE begins. At least 0."""

    def __post_init__(self) -> None:
        check(self.name in SEARCHES, "search.name", self.name, one_of(SEARCHES))
        ok = self.num_startup_trials >= 0
        check(ok, "search.num_startup_trials", self.num_startup_trials, ">= 0")


@dataclass
class SchedulerConfig:
    """Who stops trials, or lets them learn from each other."""

    name: str
    """`asha`, `pbt` or `none`."""
    grace_epochs: int
    """asha: the first rung: epochs that every trial gets. At least 1."""
    reduction_factor: int
    """asha: a trial goes on from a rung if it is among the best one in so many that came there so
    far; and the next rung is at so many times the epochs. At least 2."""
    perturbation_epochs: int
    """pbt: epochs between two looks at whether a trial takes over from a better one."""
    quantile_fraction: float
    """pbt: the share of the population that takes over, and from whom. In (0, 0.5]."""
    resample_probability: float
    """pbt: how often a hyperparameter is drawn anew and not multiplied by 0.8 or 1.2."""

    def __post_init__(self) -> None:
        check(self.name in SCHEDULERS, "scheduler.name", self.name, one_of(SCHEDULERS))
        check(self.grace_epochs >= 1, "scheduler.grace_epochs", self.grace_epochs, ">= 1")
        factor = self.reduction_factor
        check(factor >= 2, "scheduler.reduction_factor", factor, ">= 2")
        epochs = self.perturbation_epochs
        check(epochs >= 1, "scheduler.perturbation_epochs", epochs, ">= 1")
        fraction = self.quantile_fraction
        check(0 < fraction <= 0.5, "scheduler.quantile_fraction", fraction, "in (0, 0.5]")
        resample = self.resample_probability
        check(0 <= resample <= 1, "scheduler.resample_probability", resample, "in [0, 1]")


@dataclass
class TrainConfig:
    """How long a trial trains."""

    epochs: int
    """Epochs of a trial that nobody stops (xgboost: boosting rounds). At least 1."""
    seed: int
    """Seed of the weights and of the order of the rows, the same in every trial. At least 0."""

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "train.epochs", self.epochs, ">= 1")
        check(self.seed >= 0, "train.seed", self.seed, ">= 0")


@dataclass
class TrialConfig:
    """What one trial gets."""

    num_workers: int
    """More than 1: each trial is a Ray Train run of so many workers. At least 1."""
    cpus: float | None
    """CPUs of a trial, or of each of its workers; null: as the cluster allows, see `plan`."""
    use_gpu: bool
    """Whether a trial, or each of its workers, gets one GPU."""
    start_timeout_s: float
    """Seconds to wait for the workers of a trial before trying again."""

    def __post_init__(self) -> None:
        check(self.num_workers >= 1, "trial.num_workers", self.num_workers, ">= 1")
        check(self.cpus is None or self.cpus > 0, "trial.cpus", self.cpus, "null or > 0")
        check(self.start_timeout_s > 0, "trial.start_timeout_s", self.start_timeout_s, "> 0")


@dataclass
class CheckpointConfig:
    """When a trial saves, and what stays."""

    every_epochs: int
    """Epochs between two checkpoints of a trial. At least 1. PBT saves when it looks, too."""
    num_to_keep: int
    """Newest checkpoints of a trial that stay. At least 1. PBT keeps all until the end: another
    trial may take over from any of them."""

    def __post_init__(self) -> None:
        check(self.every_epochs >= 1, "checkpoint.every_epochs", self.every_epochs, ">= 1")
        check(self.num_to_keep >= 1, "checkpoint.num_to_keep", self.num_to_keep, ">= 1")


@dataclass
class FailureConfig:
    """What is survived, and how often."""

    max_failures: int
    """Failures of one trial after which it goes on from its checkpoint. At least 0."""
    max_failed_fraction: float
    """The job fails if a larger share of the trials has failed for good. In [0, 1]."""
    report_timeout_s: float
    """Seconds after which a trial that has not reported is killed. More than 0."""

    def __post_init__(self) -> None:
        check(self.max_failures >= 0, "failure.max_failures", self.max_failures, ">= 0")
        fraction = self.max_failed_fraction
        check(0 <= fraction <= 1, "failure.max_failed_fraction", fraction, "in [0, 1]")
        check(self.report_timeout_s > 0, "failure.report_timeout_s", self.report_timeout_s, "> 0")


@dataclass
class CompareConfig:
    """action=compare: several ways to search, with the same epochs to spend."""

    num_seeds: int
    """Studies of each variant. At least 1."""
    variants: list[str]
    """Some of `random`, `asha`, `asha_tpe` and `pbt`."""

    def __post_init__(self) -> None:
        check(self.num_seeds >= 1, "compare.num_seeds", self.num_seeds, ">= 1")
        ok = len(self.variants) >= 1 and set(self.variants) <= VARIANTS.keys()
        check(ok, "compare.variants", self.variants, f"some of {', '.join(VARIANTS)}")


@dataclass
class Config:
    """The whole configuration of `asha-pbt-tune`."""

    action: str
    """`tune`: a study; `train`: one training run with `objective.hyperparameters`; `compare`:
    several studies side by side."""
    cluster: ClusterConfig
    storage: StorageConfig
    run: RunConfig
    objective: ObjectiveConfig
    space: dict[str, Any]
    """Hyperparameter to its distribution, `lr: {loguniform: [1e-5, 1e-1]}`, or to a value."""
    search: SearchConfig
    scheduler: SchedulerConfig
    tune: TuneConfig
    train: TrainConfig
    trial: TrialConfig
    checkpoint: CheckpointConfig
    failure: FailureConfig
    compare: CompareConfig

    def __post_init__(self) -> None:
        check(self.action in ACTIONS, "action", self.action, one_of(ACTIONS))
        space.check(self.space, self.objective.name)
        pairs.check_metric(self)
        pairs.check_search(self)
        grace = self.scheduler.grace_epochs
        ok = "asha" not in self.schedulers or grace <= self.train.epochs
        check(ok, "scheduler.grace_epochs", grace, f"<= train.epochs={self.train.epochs}")
        workers = self.trial.num_workers
        if workers > 1 and self.objective.name != "torch":
            raise UserError(f"trial.num_workers={workers}: only with objective=torch")
        if self.objective.schedule and self.action != "train":
            raise UserError("objective.schedule: only with action=train")

    @property
    def schedulers(self) -> set[str]:
        """Names of all that are used."""
        if self.action == "compare":
            return {VARIANTS[variant][1] for variant in self.compare.variants}
        return {self.scheduler.name} if self.action == "tune" else set()

    @property
    def metric(self) -> str:
        """What is optimized."""
        return self.tune.metric or next(iter(self.objective.metrics))

    @property
    def mode(self) -> str:
        """`min` or `max`."""
        return self.objective.metrics[self.metric]

    @property
    def searcher(self) -> str:
        """`optuna`, `random` or `grid`."""
        if self.search.name != "auto":
            return self.search.name
        return "random" if self.scheduler.name == "pbt" else "optuna"

    @property
    def num_trials(self) -> int:
        """Trials that the study makes."""
        if self.action == "train":
            return 1
        return space.combinations(self.space) if self.searcher == "grid" else self.tune.num_trials

    def locked(self) -> dict[str, Any]:
        """What a resumed study must not change: its trials could not be compared."""
        tune = asdict(self.tune) | {"metric": self.metric, "mode": self.mode}
        del tune["max_concurrent"]
        found = {"action": self.action, "objective": asdict(self.objective), "tune": tune}
        found |= {"train": asdict(self.train), "trial": {"num_workers": self.trial.num_workers}}
        search, scheduler = asdict(self.search), asdict(self.scheduler)
        if self.action == "compare":  # Which has names of its own for both.
            del search["name"], scheduler["name"]
        if self.action != "train":
            found |= {"space": self.space, "search": search, "scheduler": scheduler}
        return found
