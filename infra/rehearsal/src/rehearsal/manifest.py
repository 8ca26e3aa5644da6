"""The cluster, job or service of a manifest, and how it is made small enough for this machine."""

import copy
import math
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from ray_shared.errors import UserError

from rehearsal.options import Options
from rehearsal.quantities import naming, quantity, whole
from rehearsal.references import not_honoured

Document = dict[str, Any]
KINDS = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Kinds that can be rehearsed, and where their spec holds the cluster's."""
MEMORY_PARAMS = ("memory", "object-store-memory")
MEMORY_SHARE = 0.5
"""The share of the free memory that the pods may have between them."""
MIN_MEMORY = 512 * 2**20
"""Ray's own processes in a pod take about as much."""


@dataclass(frozen=True)
class Plan:
    """What is rehearsed."""

    kind: str
    name: str
    namespace: str
    spec: Document
    """Of the resource itself."""
    cluster: Document
    """The spec of its RayCluster, as it is run here."""
    annotations: dict[str, str] = field(default_factory=dict)
    memory_factor: float = 1.0
    changes: list[str] = field(default_factory=list)
    """In words: what is not as in the manifest."""
    objects: dict[tuple[str, str], Document] = field(default_factory=dict)
    """ConfigMaps and Secrets of the same file, by kind and name."""

    @property
    def token(self) -> bool:
        """Whether the operator would make a token for it."""
        return (self.cluster.get("authOptions") or {}).get("mode") == "token"

    @property
    def autoscaled(self) -> bool:
        """Whether an autoscaler runs beside the head."""
        return bool(self.cluster.get("enableInTreeAutoscaling"))


def free_memory() -> int:
    """Bytes that this machine could give to new processes."""
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**33


def load(path: Path, key: str) -> list[Document]:
    """The documents of a file, without values that are null, which mean nothing to Kubernetes.

    Raises:
        UserError: If it is no YAML.
    """
    try:
        found = list(yaml.safe_load_all(path.read_text()))
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}: must be a readable file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={path}: {' '.join(str(error).split())}") from None
    return [_without_nulls(document) for document in found if isinstance(document, dict)]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value if each is not None]
    return value


def plan(options: Options, path: str, free_memory: int, key: str = "manifest") -> Plan:
    """Reads a manifest and makes it small.

    Args:
        options: With what to change.
        path: Of the manifest.
        free_memory: Bytes that this machine has free.
        key: The option that names the path.

    Raises:
        UserError: If there is nothing to rehearse in it.
    """
    documents = load(Path(path), key)
    found = [document for document in documents if document.get("kind") in KINDS]
    if len(found) != 1:
        shown = ", ".join(str(d.get("kind")) for d in documents) or "nothing"
        raise UserError(f"{key}={path}: holds {shown}: must hold one of {', '.join(KINDS)}")
    document = found[0]
    kind, metadata = document["kind"], document.get("metadata") or {}
    spec, where = document.get("spec") or {}, KINDS[document["kind"]]
    cluster = spec if where is None else spec.get(where)
    if not isinstance(cluster, dict) or not metadata.get("name"):
        raise UserError(f"{key}={path}: {kind} without a cluster or a name")
    changes: list[str] = []
    cluster = copy.deepcopy(cluster)
    with naming(f"{key}={path}"):
        set_defaults(cluster)
        if cluster.pop("gcsFaultToleranceOptions", None):
            changes.append("gcsFaultToleranceOptions: left out, for want of a Redis")
        limit_workers(cluster, options, changes)
        factor = scale_memory(cluster, options.memory_factor, free_memory, changes)
        objects = {
            (d["kind"], d["metadata"]["name"]): d
            for d in documents
            if d.get("kind") in ("ConfigMap", "Secret")
        }
        changes += not_honoured(cluster)
    return Plan(
        kind=kind,
        name=metadata["name"],
        namespace=metadata.get("namespace", "default"),
        spec=spec,
        cluster=cluster,
        annotations=metadata.get("annotations") or {},
        memory_factor=factor,
        changes=changes,
        objects=objects,
    )


def set_defaults(cluster: Document) -> None:
    """What the API server would have filled in, and the operator writes back."""
    cluster["headGroupSpec"].setdefault("rayStartParams", {})
    for group in cluster.setdefault("workerGroupSpecs", []):
        group.setdefault("rayStartParams", {})
        group.setdefault("minReplicas", 0)
        group.setdefault("maxReplicas", 2**31 - 1)
        group.setdefault("numOfHosts", 1)
        group.setdefault("replicas", group["minReplicas"])
        group.setdefault("scaleStrategy", {})


def limit_workers(cluster: Document, options: Options, changes: list[str]) -> None:
    """Sets how many workers each group has, and how long they may idle."""
    for group in cluster["workerGroupSpecs"]:
        before = {key: group[key] for key in ("minReplicas", "replicas", "maxReplicas")}
        if options.max_workers is not None:
            group["maxReplicas"] = min(group["maxReplicas"], options.max_workers)
        if options.min_workers is not None:
            group["minReplicas"] = group["replicas"] = options.min_workers
        group["minReplicas"] = min(group["minReplicas"], group["maxReplicas"])
        group["replicas"] = min(max(group["replicas"], group["minReplicas"]), group["maxReplicas"])
        for key, value in before.items():
            if group[key] != value:
                changes.append(f"{group['groupName']}.{key}: {value} -> {group[key]}")
    if options.idle_timeout_s is not None:
        scaler = cluster.setdefault("autoscalerOptions", {})
        given, seconds = scaler.get("idleTimeoutSeconds", 60), round(options.idle_timeout_s)
        scaler["idleTimeoutSeconds"] = seconds
        for group in cluster["workerGroupSpecs"]:
            group.pop("idleTimeoutSeconds", None)
        if seconds != given:
            changes.append(f"idleTimeoutSeconds: {given} -> {seconds}")


def memory_of(group: Document) -> int:
    """Bytes that a pod of the group may take, or 1 GiB if it has no limit."""
    with naming(f"{group.get('groupName', 'head')}: resources.memory"):
        resources = group["template"]["spec"]["containers"][0].get("resources") or {}
        limit = (resources.get("limits") or resources.get("requests") or {}).get("memory", "1Gi")
        return whole(limit)


def scale_memory(
    cluster: Document, factor: float | None, free_memory: int, changes: list[str]
) -> float:
    """Multiplies every memory quantity, so that the largest cluster has room here.

    Returns:
        The factor.
    """
    groups = cluster["workerGroupSpecs"]
    head = cluster["headGroupSpec"]
    if factor is None:
        workers = sum(memory_of(g) * g["maxReplicas"] * g["numOfHosts"] for g in groups)
        wanted = memory_of(head) + workers
        factor = min(1.0, max(0.01, math.floor(100 * MEMORY_SHARE * free_memory / wanted) / 100))
    if factor == 1:
        return factor
    for group in (head, *groups):
        before = memory_of(group)
        resources = group["template"]["spec"]["containers"][0].setdefault("resources", {})
        for place in (resources.get("limits"), resources.get("requests"), group.get("resources")):
            if place and "memory" in place:
                place["memory"] = _scaled(place["memory"], factor)
        params = group["rayStartParams"]
        params |= {key: _scaled(params[key], factor) for key in MEMORY_PARAMS if key in params}
        name, after = group.get("groupName", "head"), memory_of(group)
        why = "no pod gets less" if after == MIN_MEMORY else f"factor {factor:g}"
        changes.append(f"{name}.memory: {before} -> {after} ({why})")
    return factor


def _scaled(text: object, factor: float) -> str:
    return str(max(MIN_MEMORY, int(quantity(text) * Decimal(factor))))
