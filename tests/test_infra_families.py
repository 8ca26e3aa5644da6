"""The two kinds of manifests, in infra/ and by kuberay-deploy, agree and get on with each other."""

import copy
import functools
import json
import re
from typing import Any

import pytest

from .infra_rules import Document, cluster_of, facts, load, of_kind, problems, selects, traffic
from .infra_tools import overlays, project_python

RENDER = """
import json, sys
from kuberay_deploy import render
from kuberay_deploy.config import Config
from ray_shared.config import compose
config = compose(Config, "kuberay_deploy.conf", sys.argv[1:])
made = {}
for workload, profile in config.plans():
    made[f"{workload} {profile}"] = render.render(render.make_plan(config, workload, profile))
print(json.dumps(made))
"""
# A platform with a gateway, and the identities of infra/.
OVERRIDES = (
    "platform=gcp",
    "kubernetes.head_service_account=ray-head",
    "kubernetes.worker_service_account=ray-worker",
)
PAIRS = [
    ("torch-ddp-train", "dev"),
    ("torch-ddp-train", "gpu"),
    ("torch-ddp-train", "spot"),
    ("torch-ddp-train", "prod"),
    ("serve-fastapi", "dev"),
    ("serve-fastapi", "prod"),
]
# The spot overlay leaves the service where it is. And a laptop has no room for two clusters.
MEANT = {("serve-fastapi", "dev"): {"upgradeStrategy"}}
LABELS = {"app.kubernetes.io/part-of": "ray-ref", "ray.io/is-ray-node": "yes"}


@functools.cache
def rendered() -> dict[str, list[Document]]:
    """Workload and profile to the documents that kuberay-deploy makes."""
    made: dict[str, list[Document]] = json.loads(
        project_python("kuberay-deploy", "-c", RENDER, *OVERRIDES)
    )
    return made


def both(workload: str, profile: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of a workload in a profile, by kustomize and by kuberay-deploy."""
    found = []
    for documents in (load(overlays()[profile]), rendered()[f"{workload} {profile}"]):
        (document,) = (
            d
            for d in of_kind(documents, "RayJob", "RayService")
            if d["metadata"]["name"] in (workload, f"{workload}-{profile}")
        )
        found.append(facts(document, documents))
    return found[0], found[1]


def different(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize(("workload", "profile"), PAIRS)
def test_both_say_the_same_of_a_workload(workload: str, profile: str) -> None:
    here, there = both(workload, profile)
    keys = different(here, there)
    shown = {key: (here.get(key), there.get(key)) for key in keys}
    assert keys == MEANT.get((workload, profile), set()), shown


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda d: cluster_of(d)["workerGroupSpecs"][0].update(maxReplicas=7), "workers"),
        (lambda d: cluster_of(d)["autoscalerOptions"].update(version="v1"), "autoscaler"),
        (lambda d: cluster_of(d).pop("gcsFaultToleranceOptions"), "redis"),
        (lambda d: container(d)["env"].pop(), "workers pod"),
        (lambda d: container(d).pop("readinessProbe"), "workers pod"),
        (lambda d: container(d)["securityContext"].clear(), "workers pod"),
        (lambda d: d["spec"].pop("excludeHeadPodFromServeSvc"), "excludeHeadPodFromServeSvc"),
    ],
)
def test_what_they_say_differently_would_be_found(change: Any, fact: str) -> None:
    documents = load(overlays()["prod"])
    (service,) = of_kind(documents, "RayService")
    before = facts(copy.deepcopy(service), documents)
    change(service)
    assert fact in different(before, facts(service, documents))


def container(document: Document) -> Document:
    """The first worker group's."""
    group = cluster_of(document)["workerGroupSpecs"][0]
    found: Document = group["template"]["spec"]["containers"][0]
    return found


def test_lost_policy_would_be_found() -> None:
    documents = load(overlays()["prod"])
    (service,) = of_kind(documents, "RayService")
    before = facts(service, documents)
    for lost, fact in (
        ("serve-fastapi", "worker network"),
        ("to-redis", "redis-cleanup network"),
        ("serve-fastapi-workers", "worker budget"),
    ):
        left = [d for d in documents if d["metadata"]["name"] != lost or d is service]
        assert fact in different(before, facts(service, left))


def test_rendered_manifests_are_right_by_the_same_rules() -> None:
    around = of_kind(load(overlays()["prod"]), "Namespace")
    around += [
        d
        for d in of_kind(load(overlays()["prod"]), "NetworkPolicy")
        if d["metadata"]["name"] == "nothing-by-default"
    ]
    for documents in rendered().values():
        assert list(problems([*documents, *around])) == []


def test_user_may_do_what_submit_does() -> None:
    (role,) = of_kind(load(overlays()["prod"]), "Role")
    may = {
        (group, resource): rule
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    documents = [d for made in rendered().values() for d in made]
    plural = {"NetworkPolicy": "networkpolicies"}
    for document in documents:
        group = document["apiVersion"].rpartition("/")[0]
        resource = plural.get(document["kind"], document["kind"].lower() + "s")
        # To see what is there, to apply by the server's side, to take back, to stop.
        assert set(may[group, resource]["verbs"]) >= {"get", "create", "patch", "delete"}
    needed = set(re.findall(r'"secretKeyRef": \{[^}]*"name": "([^"]+)"', json.dumps(documents)))
    assert needed
    assert needed == set(may["", "secrets"]["resourceNames"])
    assert may["", "secrets"]["verbs"] == ["get"]


@pytest.mark.parametrize("instance", ["serve-fastapi", "serve-fastapi-prod"])
def test_redis_and_gateway_are_reached_and_nothing_else(instance: str) -> None:
    documents = load(overlays()["prod"])
    labels = LABELS | {"app.kubernetes.io/instance": instance}
    redis, gateway = (
        next(
            d["spec"] for d in of_kind(documents, "NetworkPolicy") if d["metadata"]["name"] == name
        )
        for name in ("redis", "gateway")
    )
    (rule,) = redis["ingress"]
    for node_type, reaches in (("head", True), ("redis-cleanup", True), ("worker", False)):
        own = labels | {"ray.io/node-type": node_type}
        assert any(selects(peer["podSelector"], own) for peer in rule["from"]) == reaches
        assert (("egress", "redis", 6379) in traffic(own, documents)) == reaches
    # The pod that Istio starts for the Gateway that KubeRay names after the service.
    pod = {"gateway.networking.k8s.io/gateway-name": f"{instance}-gateway"}
    assert selects(gateway["podSelector"], pod)
    assert not selects(gateway["podSelector"], labels)
    assert traffic(pod, documents) >= {
        ("ingress", "anywhere", 80),
        ("egress", "istio-system", 15012),
        ("egress", "anywhere", 53),
    }
    (to_serve,) = (rule for rule in gateway["egress"] if "podSelector" in rule["to"][0])
    assert to_serve["ports"] == [{"protocol": "TCP", "port": 8000}]
    assert selects(to_serve["to"][0]["podSelector"], labels)


def test_fallback_comes_before_the_job_gives_up() -> None:
    (job,) = of_kind(load(overlays()["spot"]), "RayJob")
    (variable,) = cluster_of(job)["autoscalerOptions"]["env"]
    assert variable["name"] == "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
    (patience,) = re.findall(r"scaling.start_timeout_s=(\d+)", job["spec"]["entrypoint"])
    # Both groups, one after the other.
    assert 2 * int(variable["value"]) < int(patience) < job["spec"]["preRunningDeadlineSeconds"]
