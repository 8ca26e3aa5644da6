"""The schema of the configuration's smaller groups: images, schemas, the cluster, the job."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ray_shared.errors import UserError, check

from kuberay_deploy.image_tags import ray_version
from kuberay_deploy.labels import DNS_1123, SUBDOMAIN, is_cidr
from kuberay_deploy.operator_features import ALL_GATES

MIN_RAY = (2, 52, 0)
"""KubeRay refuses token authentication with an older one."""
# Of a registry's reference: parts with single separators, the first perhaps a host with a port.
PART = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"({PART}:[0-9]{{1,5}}/)?{PART}(/{PART})*")
WAIT_S = 3600.0
"""How long is waited where neither `job.timeout_s` nor a job's own deadline says it."""
NAMES = "at most 63 small letters, digits and '-'"


@dataclass
class ImageConfig:
    """Where the pods' images come from: `repository/workload:tag`."""

    repository: str
    """Registry and path, without the workload's name."""
    tag: str
    """Begins with the version of Ray (`2.60.0-3`) or names it (`1.4.2-ray2.60.0`); the manifests
    repeat it as `rayVersion`."""
    cpu_suffix: str
    """What follows the tag where no worker has a GPU."""
    gpu_suffix: str
    """What follows the tag where each worker has a GPU."""
    pull_policy: str
    """`IfNotPresent`, `Always` or `Never`."""
    pull_secret: str | None
    """Name of the secret with the registry's credentials; null: none needed."""

    def __post_init__(self) -> None:
        ok = REPOSITORY.fullmatch(self.repository) is not None
        allowed = "a registry and path in small letters, such as example.com:5000/me"
        check(ok, "image.repository", self.repository, allowed)
        check_name("image.pull_secret", self.pull_secret)
        found = ray_version(self.tag)
        allowed = "a tag with Ray's version in it, such as 2.60.0-1 or 1.4.2-ray2.60.0"
        ok = found is not None and re.fullmatch(r"[\w][\w.-]{0,99}", self.tag) is not None
        check(ok, "image.tag", self.tag, allowed)
        ok = tuple(int(part) for part in str(found).split(".")) >= MIN_RAY
        check(ok, "image.tag", self.tag, "of Ray 2.52.0 or newer, which has token authentication")
        policies = ("IfNotPresent", "Always", "Never")
        check(self.pull_policy in policies, "image.pull_policy", self.pull_policy, one_of(policies))

    @property
    def ray_version(self) -> str:
        """Ray's version, as the tag says."""
        found = ray_version(self.tag)
        assert found is not None  # __post_init__ has looked.
        return found


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
    feature_gates: list[str]
    """Of the operator, those that are on besides its own defaults, for the checks."""

    def __post_init__(self) -> None:
        for name in ("operator_namespace", "monitoring_namespace"):
            value = getattr(self, name)
            check(DNS_1123.fullmatch(value) is not None, f"kubernetes.{name}", value, NAMES)
        for name in ("claim", "head_service_account", "worker_service_account", "redis_secret"):
            check_name(f"kubernetes.{name}", getattr(self, name))
        host, _, port = self.redis_address.rpartition(":")
        ok = re.fullmatch(r"[a-z0-9.-]+", host) is not None and port.isdecimal()
        ok = ok and 1 <= int(port) <= 65535
        check(ok, "kubernetes.redis_address", self.redis_address, "host:port")
        for gate in self.feature_gates:
            check_choice("kubernetes.feature_gates", gate, ALL_GATES)


@dataclass
class JobConfig:
    """The job or resource that is followed."""

    id: str | None
    """target=ray: the submission's id; target=kubernetes: `RayJob/name` or the like."""
    timeout_s: float | None
    """Seconds to wait for its end, more than 0; null: for a job as long as its own deadline allows
    all its tries, for anything else an hour."""
    schedule: str
    """kind=cron: when, in cron's five fields."""
    time_zone: str
    """kind=cron: of the schedule, such as `Etc/UTC`."""
    env: dict[str, str]
    """submit, target=ray: environment variables of the job and its workers."""

    def __post_init__(self) -> None:
        ok = self.timeout_s is None or self.timeout_s > 0
        check(ok, "job.timeout_s", self.timeout_s, "> 0, or null")
        for name in self.env:
            ok = re.fullmatch(r"[A-Za-z_]\w*", name) is not None
            check(ok, f"job.env.{name}", self.env[name], "a variable's name before the value")
        ok = len(self.schedule.split()) == 5
        check(ok, "job.schedule", self.schedule, "five fields, such as '0 3 * * *'")


def check_name(key: str, value: str | None) -> None:
    """Refuses what cannot be the name of a secret, an account or a claim; None is none.

    Raises:
        UserError: Names the key.
    """
    ok = value is None or SUBDOMAIN.fullmatch(value) is not None
    check(ok, key, value, "at most 253 small letters, digits, '-' and '.'")


def check_cidr(key: str, value: str) -> None:
    """Refuses what is no range of addresses.

    Raises:
        UserError: Names the key.
    """
    check(is_cidr(value), key, value, "a range of addresses, such as 10.0.0.1/32")


def check_output(path: Path) -> None:
    """Refuses a directory that cannot be made or written.

    Raises:
        UserError: Names the key.
    """
    there = next(each for each in (path, *path.parents) if each.exists())
    ok = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    found = "is no directory" if not there.is_dir() else "cannot be written"
    if not ok:
        raise UserError(f"output={path}: {there} {found}: must be a directory to write into")


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
