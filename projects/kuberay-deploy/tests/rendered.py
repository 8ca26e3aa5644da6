"""Plans, and where things are in what is rendered from them."""

import functools
from typing import Any

from kuberay_deploy import render
from kuberay_deploy.config import Config
from kuberay_deploy.manifests import Document
from kuberay_deploy.pods import Plan
from ray_shared.config import compose

__all__ = ["Document"]

PLATFORMS = ["bare", "aws", "aws-auto", "aws-managed", "gcp"]


@functools.cache
def configured(*overrides: str) -> Config:
    return compose(Config, "kuberay_deploy.conf", overrides)


DEFAULT = configured()
PLANS = [render.make_plan(DEFAULT, w, p) for w, p in DEFAULT.plans()]


def planned(workload: str, profile: str, *overrides: str) -> Plan:
    config = configured(f"workload={workload}", f"profile={profile}", *overrides)
    return render.make_plan(config, workload, profile)


def ray_resource(plan: Plan) -> Document:
    return render.render(plan)[-1]


def cluster_of(resource: Document) -> Document:
    spec = resource["spec"].get("jobTemplate", resource["spec"])
    spec = spec.get("rayClusterSpec", spec)
    found: Document = spec.get("rayClusterConfig", spec)
    return found


def pod_specs(node: Any) -> list[Document]:
    """Every pod spec in a document."""
    if isinstance(node, list):
        return [spec for item in node for spec in pod_specs(item)]
    if not isinstance(node, dict):
        return []
    own = [node] if "containers" in node else []
    return own + [spec for value in node.values() for spec in pod_specs(value)]


def groups(plan: Plan) -> list[Document]:
    found: list[Document] = cluster_of(ray_resource(plan))["workerGroupSpecs"]
    return found
