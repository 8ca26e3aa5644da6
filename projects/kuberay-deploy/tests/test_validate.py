"""Good manifests pass, every mistake is found, and nothing ends in a traceback."""

import logging
from pathlib import Path
from typing import Any

import pytest
from kuberay_deploy import crds, manifests, validate
from ray_shared.errors import UserError

from . import checked
from .checked import GOOD, broken, change, check, dropped, good, renamed

MANIFESTS = Path(__file__).parents[1] / "manifests"
JOB = "spec rayClusterSpec"
HEAD = f"{JOB} headGroupSpec template spec"
RAY = f"{HEAD} containers 0"
GPU = f"{JOB} workerGroupSpecs 1"


def files() -> list[Path]:
    return [*sorted(GOOD.glob("*.yaml")), *sorted(MANIFESTS.glob("*.yaml"))]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_good_manifest_is_not_refused(path: Path) -> None:
    assert [str(finding) for finding in check(manifests.read(path))] == []


def test_every_mistake_of_a_manifest_is_found() -> None:
    documents = change(good("job"), f"{GPU} maxReplicas", renamed("maxReplica"))
    change(documents, "spec entrypoint", dropped)
    change(documents, f"{GPU} minReplicas", -1)
    fields = {finding.where.split()[-1].split(".")[-1] for finding in check(documents)}
    assert fields == {"maxReplica", "entrypoint", "minReplicas"}


def test_object_that_stands_there_twice_is_refused() -> None:
    found = check([*good("cron"), *good("cron")])
    assert [(f.rule, f.where) for f in found] == [
        ("repeated-document", "RayCronJob/nightly: metadata.name")
    ]


def test_nulls_and_defaults_are_as_the_api_server_has_them() -> None:
    documents = change(good("job"), f"{GPU} numOfHosts", None)
    change(documents, f"{HEAD} hostname", None)
    change(documents, "spec submissionMode", dropped)
    assert check(documents) == []


def test_finding_is_one_line_with_field_value_and_what_is_allowed() -> None:
    (found,) = broken("job", f"{GPU} minReplicas", 5)
    assert str(found) == (
        "RayJob/train: spec.rayClusterSpec.workerGroupSpecs[1].minReplicas: "
        "found 5; allowed: <= maxReplicas=2 [replicas]"
    )


def test_long_value_is_cut() -> None:
    (found,) = broken("job", f"{HEAD} restartPolicy", "x\n" * 500)[:1]
    assert "\n" not in str(found)
    assert len(str(found)) < 300


def test_missing_crds_are_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert validate.check(good("job"), None) == []
    assert "NO SCHEMA CHECKED" in caplog.text


@pytest.mark.parametrize("path", ["spec", JOB, f"{JOB} headGroupSpec", f"{HEAD} containers", RAY])
@pytest.mark.parametrize("value", [7, "text", [], [[]], {}, True])
def test_nonsense_without_crds_is_a_finding_and_no_traceback(path: str, value: Any) -> None:
    assert validate.check(change(good("job"), path, value), None)


@pytest.mark.parametrize("value", [7, "text", [], {"a": 1}, None])
def test_document_without_kind_is_refused(value: Any) -> None:
    (found,) = check(change(good("core"), "kind", value))[:1]
    assert found.rule == "kind"


def test_kind_of_another_project_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check(good("core"))
    assert "PodMonitor/ray: not checked" in caplog.text


def other(version: str, kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, **fields}]


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("autoscaling.k8s.io/v1", "VerticalPodAutoscaler"),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("snapshot.storage.k8s.io/v1", "VolumeSnapshot"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("scheduling.x-k8s.io/v1alpha1", "PodGroup"),
    ],
)
def test_kind_of_a_project_below_k8s_io_is_not_refused(
    version: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert check(other(version, kind, spec={})) == []
    assert f"{kind}/x: not checked" in caplog.text


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("networking.k8s.io/v1", "NetworkPolicies"),
        ("apps/v1", "Deploymen"),
        ("storage.k8s.io/v1", "StorageClas"),
        ("node.k8s.io/v1", "RuntimeClas"),
        ("autoscaling/v2", "HorizontalPodAutoscalar"),
    ],
)
def test_kind_that_kubernetes_does_not_have_is_refused(version: str, kind: str) -> None:
    assert [finding.rule for finding in check(other(version, kind))] == ["kind"]


def test_runtime_class_is_known() -> None:
    assert check(other("node.k8s.io/v1", "RuntimeClass", handler="nvidia")) == []


def test_pods_of_kubernetes_own_kinds_are_checked() -> None:
    documents = [each for each in good("core") if each["kind"] == "Deployment"]
    change(documents, "spec template spec containers 0 volumeMounts 0 name", "date")
    change(documents, "spec template spec restartPolicy", "Never")
    assert {finding.rule for finding in check(documents)} == {"mount", "restart-policy"}


def of_kind(kind: str) -> list[Any]:
    return [each for each in good("core") if each["kind"] == kind]


@pytest.mark.parametrize(
    ("kind", "path", "how", "rule"),
    [
        ("PodDisruptionBudget", "spec maxUnavailable", 1, "disruption-budget"),
        ("PersistentVolumeClaim", "spec resources requests", {"size": "1Gi"}, "claim-size"),
        ("Deployment", "spec selector matchLabels app", "valkey", "selector"),
        ("Deployment", "spec template spec containers 0 image", dropped, "image"),
        ("Role", "rules 0 verb", ["get"], "core-schema"),
        ("NetworkPolicy", "spec egress 0 ports 0 port", [53], "core-schema"),
        ("NetworkPolicy", "spec egress 0 ports 0 port", 99999, "network-policy"),
        ("NetworkPolicy", "spec egress 0 ports 0 protocol", "TPC", "network-policy"),
        ("NetworkPolicy", "spec egress 0 to", [{"ipBlock": {"cidr": "foo"}}], "network-policy"),
        (
            "NetworkPolicy",
            "spec egress 0 to",
            [{"ipBlock": {"cidr": "10.0.0.1"}}],
            "network-policy",
        ),
        ("NetworkPolicy", "spec podSelector matchLabels app", "a b", "label"),
    ],
)
def test_mistake_in_a_kind_of_kubernetes_is_caught(
    kind: str, path: str, how: Any, rule: str
) -> None:
    assert [finding.rule for finding in check(change(of_kind(kind), path, how))] == [rule]


def test_nulls_in_a_kind_of_kubernetes_are_pruned() -> None:
    documents = change(of_kind("Deployment"), "spec template spec initContainers", None)
    assert check(change(documents, "spec template spec tolerations", None)) == []


@pytest.mark.parametrize(
    ("pod", "annotations"),
    [
        ({"claims": [{"name": "gpu"}]}, {}),
        ({"limits": {"nvidia.com/mig-1g.5gb": 1}}, {}),
        ({}, {"gpu-fraction": "0.5"}),
    ],
)
def test_gpu_that_comes_in_another_way_is_taken(pod: Any, annotations: dict[str, str]) -> None:
    documents = change(good("job"), f"{GPU} template spec containers 0 resources", pod)
    change(documents, f"{GPU} rayStartParams", {"num-gpus": "1", "num-cpus": "1"})
    change(documents, f"{GPU} template metadata annotations", annotations)
    assert check(documents) == []


def test_old_version_that_the_cluster_still_serves_is_taken() -> None:
    documents = change(good("cluster")[1:], "apiVersion", "ray.io/v1alpha1")
    assert check(change(documents, "spec headGroupSpec rayStartParams", {})) == []


def test_option_of_another_ray_is_taken_unless_it_looks_like_a_typo() -> None:
    documents = change(good("cluster")[1:], "spec rayVersion", "2.9.0")
    change(documents, "spec headGroupSpec rayStartParams", {"dashboard-grpc-port": "1"})
    assert check(documents) == []
    change(documents, "spec headGroupSpec rayStartParams num-cpu", "1")
    assert [finding.rule for finding in check(documents)] == ["ray-start-params"]


@pytest.mark.parametrize(
    "image",
    [
        "example.com/app:1.2.3",
        "ray:nightly",
        "a/b@sha256:00",
        "host:5000/app",
        "app:x-ray2.60.0-gpu",
        "app:1.2.3-gpu",
        "me/trainer:2.20.0-gpu",
        "me/array-x:2.20.0-py311-gpu",
        "registry.example.com/me/torch-ddp-train:2.60.0-3-gpu",
        "torch-ddp-train:0.1.0-ray2.60.0",
    ],
)
def test_tag_that_tells_no_other_ray_is_taken(image: str) -> None:
    assert broken("job", f"{RAY} image", image) == []


@pytest.mark.parametrize(
    "image",
    [
        "ray-ref/torch-ddp-train:2.59.0-cpu",
        "registry.example.com:5000/me/torch-ddp-train:2.59.0",
        "example.com/my-ray:2.59.0-3-gpu",
        "example.com/ray-ref/mine:2.59.0-cpu",
        "rayproject/ray:2.59.0",
    ],
)
def test_tag_that_begins_with_another_ray_is_refused(image: str) -> None:
    found = broken("job", f"{RAY} image", image)
    assert {finding.rule for finding in found} == {"ray-version"}


def test_feature_gate_that_is_on_allows_what_needs_it() -> None:
    documents = change(good("cluster")[1:], "spec networkPolicy", {"mode": "DenyAll"})
    (found,) = check(documents)
    assert (found.rule, "RayClusterNetworkPolicy" in found.allowed) == ("feature-gate", True)
    assert check(documents, gates=validate.DEFAULT_GATES | {"RayClusterNetworkPolicy"}) == []


def refuse(url: str) -> bytes:
    raise UserError(f"{url}: no network")


def test_crds_without_a_network_are_missed_and_fail_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBERAY_CRDS", raising=False)
    monkeypatch.setattr(checked, "REPOSITORY", None)
    # Neither there nor to be had.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(crds, "_fetch", refuse)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="NOT CHECKED.*no network"):
        checked.crds_directory()
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="KUBERAY_CRDS"):
        checked.crds_directory()


def test_crds_that_were_named_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBERAY_CRDS", str(tmp_path / "none"))
    with pytest.raises(UserError, match="none: no such directory"):
        check(good("job"))
