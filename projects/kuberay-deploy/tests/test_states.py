"""What the status of each of KubeRay's resources is taken for."""

from typing import Any

import pytest
from kuberay_deploy.states import State, state_of


def read(kind: str, status: dict[str, Any], **metadata: Any) -> State:
    generation = {"generation": status.get("observedGeneration", 0)}
    described = {"name": "it"} | generation | metadata
    return state_of({"kind": kind, "metadata": described, "status": status})


def condition(kind: str, status: str, reason: str = "Why") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": "because"}


READY = condition("Ready", "True", "NonZeroServeEndpoints")
UPGRADING = condition("UpgradeInProgress", "True")
FAILED_APP = {"serve": {"status": "DEPLOY_FAILED", "message": "no module\nsecond line"}}
PROVISIONED = condition("RayClusterProvisioned", "True")


@pytest.mark.parametrize(
    ("kind", "status", "phase", "ended", "ok"),
    [
        ("RayJob", {}, "new", False, False),
        ("RayJob", {"jobDeploymentStatus": "Waiting"}, "Waiting", False, False),
        ("RayJob", {"jobDeploymentStatus": "ValidationFailed"}, "ValidationFailed", True, False),
        ("RayService", {}, "new", False, False),
        ("RayService", {"conditions": [READY]}, "Ready", True, True),
        ("RayService", {"conditions": [READY, UPGRADING]}, "UpgradeInProgress", False, False),
        (
            "RayService",
            {"conditions": [condition("Ready", "False", "InitializingTimeout")]},
            "InitializingTimeout",
            True,
            False,
        ),
        (
            "RayService",
            {"conditions": [READY], "pendingServiceStatus": {"applicationStatuses": FAILED_APP}},
            "DEPLOY_FAILED",
            True,
            False,
        ),
        ("RayCluster", {"conditions": [PROVISIONED]}, "ready", True, True),
        (
            "RayCluster",
            {"conditions": [condition("RayClusterProvisioned", "False", "Provisioning")]},
            "Provisioning",
            False,
            False,
        ),
        ("RayCronJob", {}, "scheduled", True, True),
        ("RayCronJob", {"lastScheduleTime": "noon"}, "last started noon", True, True),
    ],
)
def test_status_is_understood(
    kind: str, status: dict[str, Any], phase: str, ended: bool, ok: bool
) -> None:
    found = read(kind, status)
    assert (found.phase, found.ended, found.ok) == (phase, ended, ok)


@pytest.mark.parametrize("kind", ["RayService", "RayCluster"])
def test_status_of_the_version_before_is_not_trusted(kind: str) -> None:
    status = {"conditions": [READY, PROVISIONED], "observedGeneration": 1}
    assert read(kind, status).ended
    assert not read(kind, status, generation=2).ended


def test_resource_that_goes_is_not_ready() -> None:
    status = {"conditions": [PROVISIONED]}
    found = read("RayCluster", status, deletionTimestamp="now")
    assert (found.phase, found.ended, found.ok) == ("being deleted", True, False)


def test_message_is_one_line_with_the_application() -> None:
    status = {"pendingServiceStatus": {"applicationStatuses": FAILED_APP, "rayClusterName": "new"}}
    found = read("RayService", status)
    assert (found.message, found.cluster) == ("serve: no module", "new")
