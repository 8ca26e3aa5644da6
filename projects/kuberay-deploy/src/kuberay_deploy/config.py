"""The schema of the configuration: types, units and ranges. The values are in `conf/`."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from ray_shared.errors import UserError, check
from ray_shared.groups import ClusterConfig, StorageConfig

from kuberay_deploy.catalog import (
    PROFILES,
    WORKLOADS,
    PlatformConfig,
    ProfilesConfig,
    VariantConfig,
    WorkloadConfig,
    WorkloadsConfig,
)
from kuberay_deploy.labels import DNS_1123
from kuberay_deploy.rehearse import RehearseConfig, check_config
from kuberay_deploy.sections import (
    NAMES,
    CrdsConfig,
    ImageConfig,
    JobConfig,
    KubernetesConfig,
    check_choice,
    one_of,
)

PROJECT = "kuberay-deploy"
ACTIONS = ("render", "validate", "rehearse", "submit", "status", "logs", "wait", "stop")
KINDS = ("auto", "cluster", "job", "service", "cron")
TARGETS = ("ray", "kubernetes")
MOUNT = "/mnt/runs"
"""Where every pod mounts the volume for runs and checkpoints."""
CLOUD_SCHEMES = ("s3", "gs")
AZURE_SCHEMES = ("abfs", "abfss")


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
    """Directory with the workload's import package, by which `overrides` are checked, and which
    is shipped to the cluster (target=ray, rehearse); null: the one that is installed."""
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
        namespaces = {
            "namespace": self.namespace,
            "kubernetes.namespace": self.kubernetes.namespace,
        }
        for key, value in namespaces.items():
            check(DNS_1123.fullmatch(value) is not None, key, value, NAMES)
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
        if self.action in ("render", "submit") and self.manifest is None and not self.plans():
            wanted = f"workload={self.workload} profile={self.profile} kind={self.kind}"
            raise UserError(f"{wanted}: no workload is that: must be another combination")
        self._check_ignored()

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

    def is_service(self, name: str) -> bool:
        """Whether it is the name of a workload that is an application of Ray Serve."""
        return name in WORKLOADS and self.describe(name).kind == "service"

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
        path, allowed = self.storage.path, f"in {MOUNT}, or start with s3:// or gs://"
        if "://" in path:
            scheme, _, rest = path.partition("://")
            if scheme in AZURE_SCHEMES:
                why = "the images have no adlfs, which Azure's store needs"
                raise UserError(f"storage.path={path}: {why}: must be {allowed}")
            check(scheme in CLOUD_SCHEMES and bool(rest.strip("/")), "storage.path", path, allowed)
        else:
            pure = PurePosixPath(path)
            ok = pure.is_relative_to(MOUNT) and ".." not in pure.parts
            check(ok, "storage.path", path, f"{allowed}: workers share no other directory")

    def _check_ignored(self) -> None:
        """Refuses what would be ignored: nobody wants another job than they think."""
        if self.manifest is not None:
            for key, unset in (("workload", "all"), ("profile", "all"), ("kind", "auto")):
                self._check_unset(key, unset, "without manifest=, which says it all")
            self._check_unset("overrides", [], "without manifest=, which says it all")
            if self.action != "rehearse":
                self._check_unset("source", None, "without manifest=")
        if self.target == "ray" and self.action not in ("render", "validate", "rehearse"):
            self._check_unset("kind", "auto", "with target=kubernetes")
            if self.job.env and self.is_service(self.workload):
                raise UserError(f"job.env: {self.workload} is no job: the cluster's pods have it")
        elif self.job.env:
            raise UserError("job.env: only with target=ray: workloads.NAME.env is in the pods")

    def _check_unset(self, key: str, unset: object, when: str) -> None:
        value = getattr(self, key)
        if value != unset:
            raise UserError(f"{key}={value}: only {when}")

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
            if self.action == "logs" and self.is_service(str(self.job.id)):
                raise UserError(
                    f"action=logs: {self.job.id} is an application of Ray Serve, which has no log "
                    "of a job: its replicas' are in the dashboard, page Serve, and on the nodes"
                )
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
