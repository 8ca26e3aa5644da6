"""The schema of what there is to choose from: platforms, profiles and workloads.

The values are in `conf/platform/`, `conf/profiles/` and `conf/workloads/`.
"""

import re
from dataclasses import dataclass, fields

from ray_shared.errors import check

from kuberay_deploy.sections import check_cidr

PROFILES = ("dev", "gpu", "spot", "prod")
WORKLOADS = (
    "torch-ddp-train",
    "core-parameter-server",
    "data-preprocessing",
    "tf-train",
    "asha-pbt-tune",
    "serve-fastapi",
)
QUANTITY = re.compile(r"[1-9][0-9]*(Mi|Gi|Ti)")


@dataclass
class TolerationConfig:
    """A taint that the pods accept."""

    key: str
    """Key of the taint."""
    value: str | None
    """Its value; null: any."""
    effect: str
    """`NoSchedule`, `PreferNoSchedule` or `NoExecute`."""


@dataclass
class PoolConfig:
    """Nodes of one kind, as the platform marks them."""

    exists: bool
    """Whether the platform has such nodes."""
    labels: dict[str, str | None]
    """Labels that a node must have, with their values; null: that it must not have."""
    tolerations: list[TolerationConfig]
    """Taints of these nodes."""


@dataclass
class PlatformConfig:
    """What differs from one Kubernetes to another."""

    name: str
    """`bare`, `aws`, `aws-auto`, `aws-managed` or `gcp`."""
    on_demand: PoolConfig
    """Nodes that nobody takes away."""
    spot: PoolConfig
    """Cheaper ones that go at short notice."""
    gpu: PoolConfig
    """Nodes with GPUs."""
    gpu_resource: str
    """The resource by which a container asks for a GPU."""
    gateway_class: str | None
    """GatewayClass that moves traffic from an old to a new cluster step by step; null: an update
    moves it at once."""
    api_server_cidr: str
    """Addresses of the Kubernetes API server, which the head must reach to ask for workers."""

    def __post_init__(self) -> None:
        check_cidr("platform.api_server_cidr", self.api_server_cidr)


@dataclass
class ProfileConfig:
    """What differs from one purpose to another, for all workloads."""

    gpu: bool
    """Whether each worker has a GPU."""
    spot: bool
    """Whether workers run on spot nodes, and on others only where there are no more of them."""
    redis: bool
    """Whether the head keeps its state in Redis, so that a service outlives it."""
    incremental_upgrade: bool
    """Whether traffic moves to a new version step by step, where the platform has a Gateway."""
    retries: int
    """RayJob: times that a failed job is started again, in a new cluster. At least 0."""
    keep_failed_s: int
    """RayJob: seconds that the head of a failed job stays, to be looked at; 0: `keep_done_s`. If it
    is set, and with kind=cron, that of a job that was stopped stays until the job is deleted."""
    keep_done_s: int
    """RayJob: seconds that the head of a finished job stays; its workers go after `idle_s`, and the
    jobs of kind=cron a week after their heads. At least 0."""
    idle_s: int
    """Seconds without work after which the autoscaler takes a worker away. At least 10."""

    def check(self, key: str) -> None:
        """Refuses what is out of range; `key` is where this section stands."""
        check(self.retries >= 0, f"{key}.retries", self.retries, ">= 0")
        check(self.keep_done_s >= 0, f"{key}.keep_done_s", self.keep_done_s, ">= 0")
        check(self.keep_failed_s >= 0, f"{key}.keep_failed_s", self.keep_failed_s, ">= 0")
        check(self.idle_s >= 10, f"{key}.idle_s", self.idle_s, ">= 10")


@dataclass
class ProfilesConfig:
    """Every profile; the key `profile` chooses one of them, or `all`."""

    dev: ProfileConfig
    gpu: ProfileConfig
    spot: ProfileConfig
    prod: ProfileConfig

    def __post_init__(self) -> None:
        for field in fields(self):
            getattr(self, field.name).check(f"profiles.{field.name}")


@dataclass
class NodeConfig:
    """What one pod gets."""

    cpus: int
    """CPUs that it reserves. At least 1."""
    memory: str
    """Memory that it reserves and may not exceed, such as `8Gi`."""

    def check(self, key: str) -> None:
        """Refuses what is out of range; `key` is where this section stands."""
        check(self.cpus >= 1, f"{key}.cpus", self.cpus, ">= 1")
        ok = QUANTITY.fullmatch(self.memory) is not None
        check(ok, f"{key}.memory", self.memory, "a number of Mi, Gi or Ti, such as 8Gi")


@dataclass
class VariantConfig:
    """A workload in one profile."""

    workers: int
    """Worker pods from the start on, but for spot nodes, and of a service or cluster the fewest;
    0: the workload has no such variant."""
    max_workers: int
    """The most worker pods that the autoscaler may ask for; in the profile `spot` of each of the
    two groups, on spot nodes and on others. At least `workers`."""
    overrides: list[str]
    """Hydra overrides of the workload's own command."""

    def check(self, key: str) -> None:
        """Refuses what is out of range; `key` is where this section stands."""
        check(self.workers >= 0, f"{key}.workers", self.workers, ">= 0")
        allowed = f">= {key}.workers={self.workers}"
        check(self.max_workers >= self.workers, f"{key}.max_workers", self.max_workers, allowed)


@dataclass
class WorkloadConfig:
    """A project, as Kubernetes sees it."""

    kind: str
    """`job` or `service`: what `kind=auto` makes of it."""
    head: NodeConfig
    """The pod with Ray's head and, in a job, the driver."""
    worker: NodeConfig
    """Each worker pod."""
    deadline_s: int
    """RayJob: seconds after which a job that still runs has failed. At least 1."""
    env: dict[str, str]
    """Environment variables of every Ray pod, besides those that all workloads have."""
    secrets: dict[str, str]
    """Environment variables that come from a secret: `VARIABLE: secret/key`."""
    dev: VariantConfig
    gpu: VariantConfig
    """With `workers: 0`, where a workload does not use GPUs."""
    spot: VariantConfig
    prod: VariantConfig

    def check(self, key: str) -> None:
        """Refuses what is out of range; `key` is where this section stands."""
        check(self.kind in ("job", "service"), f"{key}.kind", self.kind, "job or service")
        check(self.deadline_s >= 1, f"{key}.deadline_s", self.deadline_s, ">= 1")
        self.head.check(f"{key}.head")
        self.worker.check(f"{key}.worker")
        for name, source in self.secrets.items():
            ok = re.fullmatch(r"[a-z0-9.-]+/[\w.-]+", source) is not None
            check(ok, f"{key}.secrets.{name}", source, "secret/key")
        for profile in PROFILES:
            self.variant(profile).check(f"{key}.{profile}")

    def variant(self, profile: str) -> VariantConfig:
        """The workload in this profile."""
        found: VariantConfig = getattr(self, profile)
        return found


@dataclass
class WorkloadsConfig:
    """Every workload; the key `workload` chooses one of them, or `all`."""

    torch_ddp_train: WorkloadConfig
    core_parameter_server: WorkloadConfig
    data_preprocessing: WorkloadConfig
    tf_train: WorkloadConfig
    asha_pbt_tune: WorkloadConfig
    serve_fastapi: WorkloadConfig

    def __post_init__(self) -> None:
        for field in fields(self):
            getattr(self, field.name).check(f"workloads.{field.name}")
