"""What stands around the pods: policies and budgets that select the right ones."""

import pytest
from kuberay_deploy import render
from kuberay_deploy.pods import Plan

from .rendered import PLANS, Document, planned


def of_kind(plan: Plan, kind: str) -> list[Document]:
    return [document for document in render.render(plan) if document["kind"] == kind]


def ports(rule: Document) -> set[int]:
    return {port["port"] for port in rule["ports"]}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_everything_selects_the_pods_of_its_own_manifest(plan: Plan):
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        for document in of_kind(plan, kind):
            spec = document["spec"]
            selector = spec.get("podSelector", spec.get("selector"))["matchLabels"]
            assert selector["app.kubernetes.io/instance"] == plan.name
            assert set(selector) - set(plan.labels) <= {"ray.io/node-type"}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_budgets_are_whole_numbers_that_let_a_node_of_workers_go(plan: Plan):
    budgets = {d["metadata"]["name"]: d["spec"] for d in of_kind(plan, "PodDisruptionBudget")}
    for spec in budgets.values():
        assert type(spec["minAvailable"]) is int
        assert "maxUnavailable" not in spec
    if plan.variant.workers > 1:
        assert budgets[f"{plan.name}-worker"]["minAvailable"] == plan.variant.workers - 1
    # The head of a service may go: otherwise no node under one could ever be drained.
    assert (f"{plan.name}-head" in budgets) == (plan.kind == "job")


@pytest.mark.parametrize(
    ("workload", "kind", "workers", "budgets"),
    [
        ("torch-ddp-train", "job", 1, {"head": 1, "worker": 1}),
        ("torch-ddp-train", "job", 4, {"head": 1, "worker": 3}),
        ("torch-ddp-train", "cron", 1, {"head": 1, "worker": 1}),
        # These have no end: what keeps their only worker keeps its node for ever.
        ("torch-ddp-train", "cluster", 1, {}),
        ("torch-ddp-train", "cluster", 4, {"worker": 3}),
        ("serve-fastapi", "service", 1, {}),
        ("serve-fastapi", "service", 2, {"worker": 1}),
        ("serve-fastapi", "cluster", 1, {}),
    ],
)
def test_budgets_of_what_has_no_end_let_every_node_go(
    workload: str, kind: str, workers: int, budgets: dict[str, int]
):
    place = f"workloads.{workload.replace('-', '_')}.dev"
    sizes = [f"{place}.workers={workers}", f"{place}.max_workers={workers}"]
    plan = planned(workload, "dev", f"kind={kind}", *sizes)
    found = {
        document["metadata"]["name"].removeprefix(f"{plan.name}-"): document["spec"]["minAvailable"]
        for document in of_kind(plan, "PodDisruptionBudget")
    }
    assert found == budgets


def test_all_pods_find_names_and_only_the_head_reaches_the_api_server():
    plan = planned("torch-ddp-train", "dev")
    everyone, head = of_kind(plan, "NetworkPolicy")
    for policy in (everyone, head):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    own, dns = everyone["spec"]["egress"]
    assert own["to"] == [{"podSelector": {"matchLabels": plan.labels}}]
    # Of anybody: with GKE's Cloud DNS or in EKS Auto Mode it is no pod that answers.
    assert dns == {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
    assert head["spec"]["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
    (api,) = head["spec"]["egress"]
    assert ports(api) == {443, 6443}


def test_address_of_the_api_server_narrows_the_policy():
    plan = planned("torch-ddp-train", "dev", "platform.api_server_cidr=10.0.0.1/32")
    (api,) = of_kind(plan, "NetworkPolicy")[1]["spec"]["egress"]
    assert api["to"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}]


def test_object_store_is_reached_without_a_volume():
    plan = planned("torch-ddp-train", "dev", "storage.path=s3://bucket/runs")
    everyone = of_kind(plan, "NetworkPolicy")[0]
    assert {443} in [ports(rule) for rule in everyone["spec"]["egress"] if "ports" in rule]
    text = render.manifest(plan, "x")
    assert "persistentVolumeClaim" not in text
    assert "storage.path=s3://bucket/runs" in text


def test_redis_is_reached_by_the_head_of_a_service_alone():
    overrides = ["kubernetes.redis_address=cache.example.com:6380"]
    plan = planned("serve-fastapi", "prod", *overrides)
    everyone, head, cleanup = of_kind(plan, "NetworkPolicy")
    # The operator's pod that deletes the state of a cluster which is gone.
    assert cleanup["spec"]["podSelector"]["matchLabels"]["ray.io/node-type"] == "redis-cleanup"
    assert [ports(rule) for rule in cleanup["spec"]["egress"]] == [{6380}]
    assert {6380} in [ports(rule) for rule in head["spec"]["egress"]]
    assert {6380} not in [ports(r) for r in everyone["spec"]["egress"] if "ports" in r]
    assert "6380" not in render.manifest(planned("torch-ddp-train", "prod", *overrides), "x")


def test_clients_reach_a_service_and_no_job():
    for workload, expected in (("serve-fastapi", True), ("torch-ddp-train", False)):
        rules = of_kind(planned(workload, "dev"), "NetworkPolicy")[0]["spec"]["ingress"]
        open_to_all = [r for r in rules if r["from"] == [{"namespaceSelector": {}}]]
        assert [ports(rule) for rule in open_to_all] == ([{8000}] if expected else [])
