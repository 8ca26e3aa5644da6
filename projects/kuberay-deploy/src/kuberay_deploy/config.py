"""The schema of the configuration: types, units and ranges. The values are in `conf/`."""

import difflib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from ray_shared.errors import UserError, check
from ray_shared.groups import ClusterConfig, StorageConfig

from kuberay_deploy.catalog import (
    PROFILES,
    PlatformConfig,
    ProfilesConfig,
    VariantConfig,
    WorkloadConfig,
    WorkloadsConfig,
)
from kuberay_deploy.rehearse import RehearseConfig, check_config

PROJECT = "kuberay-deploy"
ACTIONS = ("render", "validate", "rehearse", "submit", "status", "logs", "wait", "stop")
KINDS = ("auto", "cluster", "job", "service", "cron")
TARGETS = ("ray", "kubernetes")
WORKLOADS = (
    "torch-ddp-train",
    "core-parameter-server",
    "data-preprocessing",
    "tf-train",
    "asha-pbt-tune",
    "serve-fastapi",
)
MOUNT = "/mnt/runs"
"""Where every pod mounts the volume for runs and checkpoints."""
CLOUD_SCHEMES = ("s3", "gs", "abfs", "abfss")
NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
VERSION = re.compile(r"(?<![\d.])(\d+)\.(\d+)\.(\d+)(?![\d.])")
MIN_RAY = (2, 52, 0)
"""KubeRay refuses token authentication with an older one."""


@dataclass
class ImageConfig:
    """Where the pods' images come from: `repository/workload:tag`."""

    repository: str
    """Registry and path, without the workload's name."""
    tag: str
    """Holds the version of Ray (`2.60.0-3`), which the manifests repeat as `rayVersion`."""
    cpu_suffix: str
    """What follows the tag where no worker has a GPU."""
    gpu_suffix: str
    """What follows the tag where each worker has a GPU."""
    pull_policy: str
    """`IfNotPresent`, `Always` or `Never`."""
    pull_secret: str | None
    """Name of the secret with the registry's credentials; null: none needed."""

    def __post_init__(self) -> None:
        ok = re.fullmatch(r"[a-z0-9][a-z0-9._:/-]*[a-z0-9]", self.repository) is not None
        check(ok, "image.repository", self.repository, "a registry and path in small letters")
        found = VERSION.search(self.tag)
        allowed = "a tag with Ray's version in it, such as 2.60.0-1"
        ok = found is not None and re.fullmatch(r"[\w][\w.-]{0,99}", self.tag) is not None
        check(ok, "image.tag", self.tag, allowed)
        ok = found is not None and tuple(int(part) for part in found.groups()) >= MIN_RAY
        check(ok, "image.tag", self.tag, "of Ray 2.52.0 or newer, which has token authentication")
        policies = ("IfNotPresent", "Always", "Never")
        check(self.pull_policy in policies, "image.pull_policy", self.pull_policy, one_of(policies))

    @property
    def ray_version(self) -> str:
        """Ray's version, as the tag says."""
        found = VERSION.search(self.tag)
        assert found is not None  # __post_init__ has looked.
        return found[0]


@dataclass
class CrdsConfig:
    """Where the schemas of KubeRay's resources come from."""

    source: str
    """`directory`: files in `path`; `download`: a pinned release; `cluster`: the API server."""
    path: str | None
    """directory: with the files `ray.io_*.yaml`; null: the schemas are not checked."""

    def __post_init__(self) -> None:
        sources = ("directory", "download", "cluster")
        check(self.source in sources, "crds.source", self.source, one_of(sources))
        self.path = self.path or None  # An empty variable is none.
        if self.path is not None and self.source != "directory":
            raise UserError(f"crds.path={self.path}: only with crds=directory")


@dataclass
class KubernetesConfig:
    """target=kubernetes: which cluster, and what is there already."""

    context: str | None
    """Of the kubeconfig; null: its current one."""
    namespace: str
    """Where resources are looked for; that of `namespace` unless it is set."""
    operator_namespace: str
    """Where KubeRay's operator runs."""
    monitoring_namespace: str
    """Where Prometheus runs."""
    claim: str
    """PersistentVolumeClaim, ReadWriteMany, for a `storage.path` in /mnt/runs."""
    head_service_account: str | None
    """Of the head pod; null: KubeRay makes one. Its autoscaler gets a role in either case."""
    worker_service_account: str | None
    """Of the worker pods; null: the namespace's default. To reach an object store without keys,
    both accounts are given a role of the cloud."""
    redis_address: str
    """profile=prod: `host:port` of the Redis that keeps the state of a service's head."""
    redis_secret: str
    """Secret with its password, under the key `password`."""

    def __post_init__(self) -> None:
        for name in ("namespace", "operator_namespace", "monitoring_namespace", "claim"):
            value = getattr(self, name)
            ok = NAME.fullmatch(value) is not None and len(value) <= 63
            check(ok, f"kubernetes.{name}", value, "at most 63 small letters, digits and '-'")
        ok = re.fullmatch(r"[a-z0-9.-]+:\d+", self.redis_address) is not None
        check(ok, "kubernetes.redis_address", self.redis_address, "host:port")


@dataclass
class JobConfig:
    """The job or resource that is followed."""

    id: str | None
    """target=ray: the submission's id; target=kubernetes: `RayJob/name` or the like."""
    timeout_s: float
    """Seconds to wait for its end. More than 0."""
    schedule: str
    """kind=cron: when, in cron's five fields."""
    time_zone: str
    """kind=cron: of the schedule, such as `Etc/UTC`."""

    def __post_init__(self) -> None:
        check(self.timeout_s > 0, "job.timeout_s", self.timeout_s, "> 0")
        ok = len(self.schedule.split()) == 5
        check(ok, "job.schedule", self.schedule, "five fields, such as '0 3 * * *'")


@dataclass
class Config:
    """The whole configuration of `kuberay-deploy`."""

    action: str
    """`render`, `validate`, `rehearse` (on this machine), `submit`, or, for what was submitted:
    `status`, `logs`, `wait`, `stop`."""
    workload: str
    """One of the projects, or `all`."""
    profile: str
    """`dev`, `gpu`, `spot`, `prod` or `all`."""
    kind: str
    """`cluster`, `job`, `service`, `cron`, or `auto`: as the workload says."""
    overrides: list[str]
    """Hydra overrides of the workload's own command, after those of its description."""
    output: str | None
    """Directory for the rendered files; null: Hydra's run directory."""
    manifest: str | None
    """A YAML file, anybody's: what to validate, rehearse or submit to Kubernetes."""
    target: str
    """Where to submit: `ray`, a running cluster; `kubernetes`."""
    source: str | None
    """target=ray, rehearse: directory with the workload's import package, which is shipped to the
    cluster; null: the one that is installed."""
    wait: bool
    """submit: whether to stay until the job has ended, and to end as it did."""
    namespace: str
    """Kubernetes namespace for everything that is rendered; see `kubernetes.namespace`."""
    storage: StorageConfig
    image: ImageConfig
    platform: PlatformConfig
    profiles: ProfilesConfig
    workloads: WorkloadsConfig
    crds: CrdsConfig
    cluster: ClusterConfig
    kubernetes: KubernetesConfig
    job: JobConfig
    rehearse: RehearseConfig

    def __post_init__(self) -> None:
        check(self.action in ACTIONS, "action", self.action, one_of(ACTIONS))
        check_choice("workload", self.workload, (*WORKLOADS, "all"))
        check_choice("profile", self.profile, (*PROFILES, "all"))
        check(self.kind in KINDS, "kind", self.kind, one_of(KINDS))
        check(self.target in TARGETS, "target", self.target, one_of(TARGETS))
        for profile in PROFILES if self.profile == "all" else (self.profile,):
            self._check_pools(profile)
        if self.workload != "all":
            self._check_variants(self.workload)
        if self.manifest is not None and self.action not in ("validate", "rehearse", "submit"):
            allowed = "only with action=validate, rehearse or submit"
            raise UserError(f"manifest={self.manifest}: {allowed}")
        if self.action == "validate":
            check(self.manifest is not None, "manifest", self.manifest, "the file to validate")
        if self.action == "render" or (self.target, self.manifest) == ("kubernetes", None):
            self._check_storage()
        if self.action == "rehearse":
            check_config(self)
        elif self.action not in ("render", "validate"):
            self._check_target()

    def plans(self) -> list[tuple[str, str]]:
        """The pairs of workload and profile that `workload`, `profile` and `kind` mean."""
        workloads = WORKLOADS if self.workload == "all" else (self.workload,)
        profiles = PROFILES if self.profile == "all" else (self.profile,)
        fitting = [w for w in workloads if self.kind in kinds_of(self.describe(w))]
        pairs = [(w, p) for w in fitting for p in profiles]
        return [(w, p) for w, p in pairs if self.variant(w, p).workers > 0]

    def describe(self, workload: str) -> WorkloadConfig:
        """The description of a workload, by its project's name."""
        found: WorkloadConfig = getattr(self.workloads, workload.replace("-", "_"))
        return found

    def variant(self, workload: str, profile: str) -> VariantConfig:
        """A workload in a profile."""
        return self.describe(workload).variant(profile)

    def kind_of(self, workload: str) -> str:
        """`cluster`, `job`, `service` or `cron`."""
        return self.describe(workload).kind if self.kind == "auto" else self.kind

    @property
    def on_volume(self) -> bool:
        """Whether runs live on a volume, and not in an object store."""
        return "://" not in self.storage.path

    def _check_pools(self, profile: str) -> None:
        chosen = getattr(self.profiles, profile)
        for pool in ("gpu", "spot"):
            if getattr(chosen, pool) and not getattr(self.platform, pool).exists:
                raise UserError(
                    f"profile={self.profile}: platform={self.platform.name} has no {pool} pool: "
                    f"must be another profile, or platform.{pool}.exists=true with its labels"
                )

    def _check_variants(self, workload: str) -> None:
        described = self.describe(workload)
        if self.profile != "all" and described.variant(self.profile).workers == 0:
            there = [p for p in PROFILES if described.variant(p).workers > 0]
            why = f"{workload} does not use GPUs" if self.profile == "gpu" else "there is none"
            raise UserError(f"profile={self.profile}: {why}: must be {one_of((*there, 'all'))}")
        allowed = kinds_of(described)
        check(self.kind in allowed, "kind", self.kind, f"{one_of(allowed)} for {workload}")

    def _check_storage(self) -> None:
        path, allowed = self.storage.path, f"in {MOUNT}, or start with s3://, gs:// or abfs://"
        if "://" in path:
            scheme, _, rest = path.partition("://")
            check(scheme in CLOUD_SCHEMES and bool(rest.strip("/")), "storage.path", path, allowed)
        else:
            pure = PurePosixPath(path)
            ok = pure.is_relative_to(MOUNT) and ".." not in pure.parts
            check(ok, "storage.path", path, f"{allowed}: workers share no other directory")

    def _check_target(self) -> None:
        one_manifest = self.target == "kubernetes" and self.manifest is not None
        if self.action == "submit" and not one_manifest:
            for key, value in (("workload", self.workload), ("profile", self.profile)):
                check(value != "all", key, value, f"one {key} with action=submit")
        elif self.action != "submit":
            check(
                self.job.id is not None, "job.id", self.job.id, f"given with action={self.action}"
            )
        if self.target == "ray":
            check(self.manifest is None, "manifest", self.manifest, "null with target=ray")
            address = self.cluster.address or ""
            ok = urlsplit(address).scheme in ("http", "https") and bool(urlsplit(address).hostname)
            allowed = "the dashboard's, as in cluster=existing cluster.address=http://host:8265"
            check(ok, "cluster.address", self.cluster.address, allowed)
        elif self.cluster.mode == "existing":
            raise UserError("cluster=existing: only with target=ray; kubernetes.context chooses")


def kinds_of(workload: WorkloadConfig) -> tuple[str, ...]:
    """The values of `kind` that a workload may have."""
    if workload.kind == "service":
        return ("auto", "cluster", "service")
    return ("auto", "cluster", "job", "cron")


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a name that does not exist, with the nearest that does.

    Raises:
        UserError: Names the key.
    """
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{key}={value}: must be {one_of(allowed)}{hint}")


def one_of(names: tuple[str, ...]) -> str:
    """`one of a, b`."""
    return f"one of {', '.join(names)}"
