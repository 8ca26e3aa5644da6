"""The installed Ray reads the manifest and sees the CPUs, GPUs, memory and labels written there."""

from decimal import Decimal
from typing import Any

import pytest
from kuberay_deploy import ray_parser
from kuberay_deploy.pod_checks import quantity
from kuberay_deploy.ray_parser import Node

from .checked import broken, change, good


def read(name: str, *changes: tuple[str, Any]) -> dict[str, Node]:
    documents = good(name)
    for path, how in changes:
        change(documents, path, how)
    spec = documents[0]["spec"]
    return ray_parser.read(spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec)


def test_ray_sees_what_the_job_asks_for() -> None:
    assert read("job") == {
        "headgroup": Node(cpu=0, memory=4 * 2**30),
        "cpu": Node(cpu=2, memory=4 * 2**30, labels={"ray.io/market-type": "spot"}, max_workers=4),
        "gpu": Node(cpu=4, gpu=1, memory=16 * 2**30, max_workers=2),
    }


def test_ray_rounds_up_and_counts_hosts() -> None:
    found = read("cluster", ("spec workerGroupSpecs 0 replicas", 2))
    assert found["headgroup"] == Node(cpu=0, memory=2 * 2**30)
    assert found["Small"] == Node(cpu=1, memory=1536 * 2**20, min_workers=4, max_workers=4)


@pytest.mark.parametrize(
    ("resources", "params", "limits", "expected"),
    [
        ({}, {}, {"cpu": "1500m"}, Node(cpu=2)),
        ({}, {"num-cpus": "3", "num-gpus": "1"}, {"cpu": "1"}, Node(cpu=3, gpu=1)),
        ({"CPU": "5", "GPU": "2"}, {}, {"cpu": "1", "nvidia.com/gpu": 4}, Node(cpu=5, gpu=2)),
        ({}, {}, {"cpu": 1, "amd.com/gpu": "2", "memory": "1e9"}, Node(1, 2, 10**9)),
        ({"memory": "1Gi"}, {"num-cpus": "0"}, {"memory": "2Gi"}, Node(cpu=0, memory=2**30)),
    ],
)
def test_our_reading_is_that_of_ray(
    resources: dict[str, str], params: dict[str, str], limits: dict[str, Any], expected: Node
) -> None:
    container = {"name": "ray", "resources": {"limits": limits}}
    group = {
        "groupName": "a",
        "resources": resources,
        "rayStartParams": params,
        "minReplicas": 0,
        "maxReplicas": 0,
        "template": {"spec": {"containers": [container]}},
    }
    spec = {"headGroupSpec": group, "workerGroupSpecs": [group]}
    assert ray_parser.read(spec)["a"] == expected
    assert ray_parser.expect(group) == expected


@pytest.mark.parametrize(
    ("param", "value"),
    [("num-cpus", "$CPUS"), ("resources", '"{\\"special\\": 1}"'), ("no-monitor", "true")],
)
def test_good_start_parameter_is_taken(param: str, value: str) -> None:
    path = f"spec rayClusterSpec workerGroupSpecs 1 rayStartParams {param}"
    assert [each for each in broken("job", path, value) if param in str(each)] == []


def test_custom_resources_that_ray_cannot_read_are_refused() -> None:
    path = "spec rayClusterSpec workerGroupSpecs 1 rayStartParams resources"
    found = broken("job", path, '{"special": 1}')
    assert [each.rule for each in found] == ["ray-parser"]


def test_options_are_those_of_the_installed_ray() -> None:
    from ray.scripts.scripts import start

    options = {opt[2:] for p in start.params for opt in p.opts if opt.startswith("--")}
    assert set(ray_parser.start_options()) == options
    kinds = {opt[2:]: p for p in start.params for opt in p.opts if opt.startswith("--")}
    for name, kind in ray_parser.start_options().items():
        assert (kind == "flag") == bool(kinds[name].is_flag), name
        assert (kind == "int") == (kinds[name].type.name == "integer"), name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("500m", "0.5"),
        ("1.5Gi", 1.5 * 2**30),
        ("4Ki", 4096),
        ("1e3", 1000),
        ("2E", 2 * 10**18),
        ("3k", 3000),
        ("1M", 10**6),
        ("-1", -1),
        ("250u", "0.00025"),
        (".5", "0.5"),
        (1.5, "1.5"),
    ],
)
def test_quantity_is_that_of_kubernetes(text: object, value: Any) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["4GB", "4gi", "4ki", "i", "", "1 Gi", "1..5", "4i", "M", None])
def test_no_quantity(text: object) -> None:
    assert quantity(text) is None
