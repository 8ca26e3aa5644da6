"""The schema of the shared Hydra groups: one dataclass for each folder under `conf/`.

The values live in the YAML files; here are the types, units and ranges. A range is checked when
the configuration is converted to these objects, which `ray_shared.config` always does.
"""

import importlib.util
import sys
from dataclasses import dataclass

from ray_shared.errors import UserError, check


@dataclass
class ClusterConfig:
    """Which Ray cluster the job runs on."""

    mode: str
    """`local`: a fresh Ray on this machine; `existing`: join `address`; `simulated`: several Ray
    nodes on this machine."""
    address: str | None
    """`host:port` of the cluster to join; only with `existing`."""
    num_cpus: int | None
    """Logical CPUs of the local Ray, or of each simulated node; null: those of this machine
    (`local`). They count what may run at the same time and may exceed the real cores."""
    num_nodes: int
    """Number of simulated nodes; only with `simulated`. At least 1."""
    dashboard: bool
    """Whether to start Ray's dashboard; only with `local`. Costs about a second."""
    install: bool
    """Whether to install the job's third-party packages on the cluster at start; only with
    `existing`. False: they come with the cluster's image."""
    autoscaling: bool
    """Whether the cluster can grow, so that a request that does not fit yet waits for nodes; only
    with `existing`. False: such a request is refused at once."""

    def __post_init__(self) -> None:
        modes = ("local", "existing", "simulated")
        check(self.mode in modes, "cluster.mode", self.mode, f"one of {', '.join(modes)}")
        if self.mode == "existing":
            check(bool(self.address), "cluster.address", self.address, "host:port of a Ray cluster")
        ok = self.num_cpus is None or self.num_cpus >= 1
        check(ok, "cluster.num_cpus", self.num_cpus, "null or >= 1")
        check(self.num_nodes >= 1, "cluster.num_nodes", self.num_nodes, ">= 1")
        # What would be ignored is refused: nobody wants to train elsewhere than they think.
        for key, value, unset, mode in (
            ("address", self.address, None, "existing"),
            ("install", self.install, False, "existing"),
            ("autoscaling", self.autoscaling, False, "existing"),
            ("num_nodes", self.num_nodes, 1, "simulated"),
            ("dashboard", self.dashboard, False, "local"),
        ):
            if value != unset and self.mode != mode:
                raise UserError(f"cluster.{key}={value}: only with cluster={mode}")


@dataclass
class StorageConfig:
    """Where runs and checkpoints live."""

    path: str
    """A local or NFS directory, or an `s3://`, `gs://` or `abfs://` URI. Workers on several nodes
    need one that all of them reach."""

    def __post_init__(self) -> None:
        check(bool(self.path.strip()), "storage.path", repr(self.path), "a directory or a URI")


@dataclass
class RunConfig:
    """Identity of the run: what makes a second start continue the first."""

    name: str | None
    """Directory of the run inside `storage.path`; null: project and time, so never resumed."""
    resume: str
    """`auto`: continue if the named run has a checkpoint; `never`: refuse a name that is taken;
    `must`: refuse a name without a checkpoint."""

    def __post_init__(self) -> None:
        modes = ("auto", "never", "must")
        check(self.resume in modes, "run.resume", self.resume, f"one of {', '.join(modes)}")
        if self.name is not None:
            plain = all(c.isalnum() or c in "._-" for c in self.name)
            ok = bool(self.name) and plain and not self.name.startswith(".")
            allowed = "letters, digits, '.', '_' and '-', not starting with '.'"
            check(ok, "run.name", repr(self.name), allowed)
        if self.resume == "must" and self.name is None:
            raise UserError("run.resume=must needs run.name: the run to continue")


@dataclass
class ScalingConfig:
    """How many workers, and what each of them gets."""

    num_workers: int
    """Number of workers; with `min_workers` set, the most. At least 1."""
    min_workers: int | None
    """The fewest workers that training may shrink to when nodes go; null: not elastic."""
    use_gpu: bool
    """Whether each worker gets one GPU and trains on it."""
    cpus_per_worker: float
    """CPUs that each worker reserves. More than 0."""
    resize_check_s: float
    """Elastic only: seconds between two looks for new nodes."""
    start_timeout_s: float
    """Seconds to wait for a worker group to start before trying again (elastic: with fewer)."""

    def __post_init__(self) -> None:
        check(self.num_workers >= 1, "scaling.num_workers", self.num_workers, ">= 1")
        if self.min_workers is not None:
            ok = 1 <= self.min_workers <= self.num_workers
            allowed = f"null, or 1 to scaling.num_workers={self.num_workers}"
            check(ok, "scaling.min_workers", self.min_workers, allowed)
        check(self.cpus_per_worker > 0, "scaling.cpus_per_worker", self.cpus_per_worker, "> 0")
        check(self.resize_check_s > 0, "scaling.resize_check_s", self.resize_check_s, "> 0")
        check(self.start_timeout_s > 0, "scaling.start_timeout_s", self.start_timeout_s, "> 0")


@dataclass
class CheckpointConfig:
    """When to save, and what to keep."""

    every_epochs: int
    """Epochs between two checkpoints; 0: none at epoch ends but the last."""
    every_steps: int
    """Optimizer steps between two checkpoints inside an epoch; 0: none."""
    num_to_keep: int
    """How many of the best checkpoints stay; the newest always stays too. At least 1."""
    metric: str
    """Metric that ranks checkpoints."""
    mode: str
    """`max` or `min`: which end of the metric is better."""

    def __post_init__(self) -> None:
        check(self.every_epochs >= 0, "checkpoint.every_epochs", self.every_epochs, ">= 0")
        check(self.every_steps >= 0, "checkpoint.every_steps", self.every_steps, ">= 0")
        check(self.num_to_keep >= 1, "checkpoint.num_to_keep", self.num_to_keep, ">= 1")
        check(self.mode in ("max", "min"), "checkpoint.mode", self.mode, "max or min")


@dataclass
class FailureConfig:
    """What is survived, and how often."""

    max_failures: int
    """Worker failures to recover from before the job fails; -1: no limit. Preempted nodes do not
    count."""
    preemption_check_s: float
    """Seconds between two looks at whether a node is about to be taken away."""

    def __post_init__(self) -> None:
        check(self.max_failures >= -1, "failure.max_failures", self.max_failures, ">= -1")
        ok = self.preemption_check_s > 0
        check(ok, "failure.preemption_check_s", self.preemption_check_s, "> 0")


@dataclass
class TrackingConfig:
    """Where metrics go, besides `metrics.jsonl`, which is always written."""

    backend: str
    """`jsonl`, `tensorboard` or `mlflow`."""
    every_steps: int
    """Optimizer steps between two reported steps; 0: report epochs only. Each report is a barrier
    between the workers: small numbers slow training down."""
    uri: str | None
    """MLflow only: tracking URI; null: the SQLite file `mlflow.db` in the working directory."""

    def __post_init__(self) -> None:
        backends = ("jsonl", "tensorboard", "mlflow")
        ok = self.backend in backends
        check(ok, "tracking.backend", self.backend, f"one of {', '.join(backends)}")
        needed = {"tensorboard": "tensorboardX", "mlflow": "mlflow"}.get(self.backend)
        if needed is not None and importlib.util.find_spec(needed) is None:
            raise UserError(
                f"tracking={self.backend}: {needed} is not installed: "
                f"{sys.executable} -m pip install {needed}"
            )
        check(self.every_steps >= 0, "tracking.every_steps", self.every_steps, ">= 0")
