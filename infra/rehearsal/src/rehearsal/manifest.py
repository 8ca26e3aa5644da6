"""The cluster, job or service of a manifest, and how it is made small enough for this machine."""

import copy
import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from ray_shared.errors import UserError

from rehearsal.options import Options

Document = dict[str, Any]
KINDS = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Kinds that can be rehearsed, and where their spec holds the cluster's."""
QUANTITY = re.compile(r"([0-9.]+(?:[eE][+-]?\d+)?)([a-zA-Z]*)")
UNITS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3)} | {
    f"{unit}{i}": Decimal(1024 if i else 1000) ** power
    for power, unit in enumerate("KMGTP", 1)
    for i in ("", "i")
}
MEMORY_PARAMS = ("memory", "object-store-memory")
ROOM = 0.5
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


def quantity(text: object) -> Decimal:
    """The number that a Kubernetes quantity means: `500m` is 0.5, `1Gi` is 2**30.

    Raises:
        UserError: If it is none.
    """
    found = QUANTITY.fullmatch(str(text))
    if found is None or found[2] not in UNITS:
        raise UserError(f"quantity {text}: must be as in 500m, 2 or 8Gi")
    return Decimal(found[1]) * UNITS[found[2]]


def whole(text: object) -> int:
    """The same, rounded up, as the operator does."""
    return math.ceil(quantity(text))


def free_memory() -> int:
    """Bytes that this machine could give to new processes."""
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**33


def load(path: Path) -> list[Document]:
    """The documents of a file.

    Raises:
        UserError: If it is no YAML.
    """
    try:
        found = list(yaml.safe_load_all(path.read_text()))
    except OSError as error:
        raise UserError(f"manifest={path}: {error.strerror}: must be a readable file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"manifest={path}: {' '.join(str(error).split())}") from None
    return [document for document in found if isinstance(document, dict)]


def plan(options: Options, path: str, free_memory: int) -> Plan:
    """Reads a manifest and makes it small.

    Args:
        options: With what to change.
        path: Of the manifest.
        free_memory: Bytes that this machine has free.

    Raises:
        UserError: If there is nothing to rehearse in it.
    """
    documents = load(Path(path))
    found = [document for document in documents if document.get("kind") in KINDS]
    if len(found) != 1:
        shown = ", ".join(str(d.get("kind")) for d in documents) or "nothing"
        raise UserError(f"manifest={path}: holds {shown}: must hold one of {', '.join(KINDS)}")
    document = found[0]
    spec, where = document.get("spec") or {}, KINDS[document["kind"]]
    cluster = spec if where is None else spec.get(where)
    name = (document.get("metadata") or {}).get("name")
    if not isinstance(cluster, dict) or not name:
        raise UserError(f"manifest={path}: {document['kind']} without a cluster or a name")
    changes: list[str] = []
    cluster = copy.deepcopy(cluster)
    try:
        set_defaults(cluster)
        if cluster.pop("gcsFaultToleranceOptions", None):
            changes.append("gcsFaultToleranceOptions: left out, for want of a Redis")
        limit_workers(cluster, options, changes)
        factor = scale_memory(cluster, options.memory_factor, free_memory, changes)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"manifest={path}: no complete cluster ({error!r} is missing)") from None
    return Plan(
        kind=document["kind"],
        name=name,
        namespace=document["metadata"].get("namespace", "default"),
        spec=spec,
        cluster=cluster,
        annotations=document["metadata"].get("annotations") or {},
        memory_factor=factor,
        changes=changes,
        objects={
            (d["kind"], d["metadata"]["name"]): d
            for d in documents
            if d.get("kind") in ("ConfigMap", "Secret")
        },
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
        factor = min(1.0, max(0.01, math.floor(100 * ROOM * free_memory / wanted) / 100))
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
        name = group.get("groupName", "head")
        changes.append(f"{name}.memory: {before} -> {memory_of(group)} (factor {factor:g})")
    return factor


def _scaled(text: object, factor: float) -> str:
    return str(max(MIN_MEMORY, int(quantity(text) * Decimal(factor))))
