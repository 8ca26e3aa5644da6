"""The command from end to end: a healthy cluster, and one that is not."""

from pathlib import Path

import pytest
from ray_shared.testing import many_nodes

from .conftest import StartJob
from .test_checklist import made

LOOKED_AT = {
    "nodes",
    "lost nodes",
    "tasks",
    "versions",
    "GPUs",
    "ports",
    "authentication",
    "clocks",
    "storage",
    "latency",
    "resources stated",
    "checkpoints on",
    "retries on",
    "no grid search",
    "pinned lock",
    "monitoring",
}
# These depend on how full the machine is.
OF_THE_MACHINE = {"CPUs", "memory", "spilling directory", "session directory"}


def statuses(result: dict) -> dict[str, str]:
    return {check["name"]: check["status"] for check in result["metrics"]["checks"]}


def test_healthy_cluster_ends_with_0_and_leaves_nothing(start: StartJob, tmp_path: Path):
    made(tmp_path / "mine")
    with start("doctor.project=mine", "doctor.expect_nodes=1") as job:
        assert job.wait() == 0, job.output()
        result = job.result()
    job.wait_until_gone()
    found = statuses(result)
    assert {name for name in LOOKED_AT if found[name] == "ok"} == LOOKED_AT, job.output()
    assert {found[name] for name in OF_THE_MACHINE} <= {"ok", "warning"}
    metrics = result["metrics"]
    assert metrics["num_failed"] == 0
    assert metrics["num_warnings"] == sum(found[n] == "warning" for n in OF_THE_MACHINE)
    assert metrics["num_checks"] == sum(x != "not checked" for x in found.values())
    for name in ("objects", "gloo", "NCCL", "Serve"):
        assert found[name] == "not checked"
    # Only the table and two lines around it, and no storage that was not there before.
    lines = job.output().splitlines()
    assert lines[0] == "looking at 1 node(s)"
    assert lines[1].strip() == "doctor"
    assert lines[-1].startswith("result: ")
    assert not [line for line in lines if "WARN" in line or "Traceback" in line]
    assert not (tmp_path / "runs").exists()


def test_cluster_without_a_token_and_a_missing_service_end_with_1(start: StartJob):
    """Two nodes on this machine; only what is broken fails, and the table says what to do."""
    overrides = ["cluster=simulated", "doctor.collective=false", "doctor.checklist=false"]
    overrides += ["doctor.reach=[127.0.0.1:1]", "storage.path=made/here"]
    with start(*overrides, env={"RAY_AUTH_MODE": "disabled"}) as job:
        assert job.wait() == 1, job.output()
        result = job.result()
    job.wait_until_gone()
    assert result["error"] == "2 checks failed: ports, authentication"
    checks = {check["name"]: check for check in result["metrics"]["checks"]}
    failed = {name for name, check in checks.items() if check["status"] == "failed"}
    assert failed == {"ports", "authentication"}
    assert checks["ports"]["found"].count("service 127.0.0.1:1: Connection refused") == 2
    assert checks["authentication"]["found"] == (
        "without a token, GCS: answered; dashboard: answered"
    )
    assert "RAY_AUTH_MODE=token" in " ".join(job.output().split())
    assert checks["objects"]["status"] == checks["storage"]["status"] == "ok"
    assert not (job.log.parent / "made").exists()


@pytest.mark.fault  # Not a fault: it takes half a minute.
def test_running_cluster_is_looked_at_and_left_alone(start: StartJob):
    """The doctor's own code travels to the nodes; a worker that it comes with knows its raylet."""
    with many_nodes([1, 1]) as nodes:
        address = f"cluster.address={nodes.address}"
        with start("cluster=existing", address, "doctor.expect_nodes=2") as job:
            assert job.wait() == 0, job.output()
            found = statuses(job.result())
        assert all(node.all_processes for node in nodes.list_all_nodes())
    for name in ("versions", "spilling directory", "objects", "storage", "gloo"):
        assert found[name] != "not checked"
