"""Reads the spec of a Ray cluster, which four kinds of KubeRay hold."""

import re
from collections.abc import Collection, Iterator
from typing import Any

from kuberay_deploy.findings import At, Finding

Spec = dict[str, Any]


def clusters(document: dict[str, Any], at: At) -> Iterator[tuple[dict[str, Any], At]]:
    """The cluster specs in an object of ray.io, with their places: none or one."""
    paths = {
        "RayCluster": ("spec",),
        "RayJob": ("spec", "rayClusterSpec"),
        "RayService": ("spec", "rayClusterConfig"),
        "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
    }
    path = paths.get(document["kind"], ())
    found: Any = document
    for key in path:
        found = found.get(key) if found is not None else None
    if path and found is not None:
        yield found, at(*path)


def pod(group: Spec) -> dict[str, Any]:
    """The pod spec of a group."""
    found: dict[str, Any] = group.get("template", {}).get("spec", {})
    return found


def autoscales(spec: Spec | None) -> bool:
    """Whether the cluster has Ray's autoscaler."""
    return bool(spec and spec.get("enableInTreeAutoscaling"))


def autoscales_v2(spec: Spec) -> bool:
    """Whether it is said to be version 2, which is the only way the operator believes it."""
    return autoscales(spec) and spec.get("autoscalerOptions", {}).get("version") == "v2"


def version(text: str) -> tuple[int, ...] | None:
    """`2.60.0` as numbers that compare; None if it is no version."""
    match = re.match(r"v?(\d+(?:\.\d+)+)", text.strip())
    return tuple(int(part) for part in match[1].split(".")) if match else None


def env_of(container: dict[str, Any]) -> dict[str, Any]:
    """The environment variables of a container: name to literal value, None if referred to."""
    return {variable["name"]: variable.get("value") for variable in container.get("env", [])}


def feature_gate(at: At, found: str, gate: str, gates: Collection[str]) -> Iterator[Finding]:
    """Refuses what the operator does only with a feature gate that is off."""
    if gate not in gates:
        allowed = f"only with the operator's feature gate {gate}, which is off by default"
        yield at.finding(found, allowed, "feature-gate")
