"""Ray itself, its autoscaler, and what goes wrong; the last ones take minutes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from .counting_job import CHECKPOINT_EVERY
from .manifests import cluster, document, write

STEPS = 60
SUM = STEPS * (STEPS + 1)  # Of two actors.
TESTS = Path(__file__).parent
FAST = ["--min-workers=0", "--max-workers=2", "--idle-timeout-s=15", f"--source={TESTS}"]


def small() -> dict[str, Any]:
    """A cluster whose pods say soon that they are ready, and are missed soon."""
    spec = cluster()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        container = group["template"]["spec"]["containers"][0]
        container["resources"] = {"limits": {"cpu": "2", "memory": "2Gi"}}
        container["readinessProbe"] = {
            "httpGet": {"port": 52365, "path": "/api/healthz"},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 100,
        }
        env = [{"name": "RAY_health_check_period_ms", "value": "1000"}]
        env.append({"name": "RAY_health_check_timeout_ms", "value": "5000"})
        container["env"] = [*container.get("env", []), *env]
    return spec


def job(tmp_path: Path) -> str:
    entrypoint = f"python -m counting_job {STEPS} /mnt/runs/count"
    spec = {"entrypoint": entrypoint, "rayClusterSpec": small()}
    return write(tmp_path / "job.yaml", document("RayJob", spec))


def finish(command: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and events of a rehearsal that went well, with a right result of its job."""
    assert command.process.wait(570) == 0, command.text()
    result = json.loads((command.output / "rehearsal.json").read_text())
    counted = command.output / "volumes" / "shared" / "count" / "result.json"
    assert json.loads(counted.read_text()) == {"step": STEPS, "sum": SUM}
    return result["metrics"], json.loads((command.output / "timeline.json").read_text())


def kinds(events: list[dict[str, Any]], role: str = "worker") -> list[str]:
    return [event["kind"] for event in events if event["data"].get("role") == role]


def test_job_scales_from_nothing_to_two_and_back(rehearse, tmp_path):
    with rehearse(job(tmp_path), *FAST) as command:
        metrics, events = finish(command)
    assert (metrics["scaled_up_to"], metrics["scaled_down_to"]) == (2, 0)
    assert metrics["steps_redone"] == 0
    assert metrics["time_to_scale_up_s"] > 0
    assert metrics["time_to_scale_down_s"] > 0
    order = [e["kind"] for e in events if e["kind"] in ("demand", "patch", "idle")]
    assert order[:2] == ["demand", "patch"]
    assert order.index("idle") < len(order) - 1  # Idle, then another patch.
    assert kinds(events).count("removed") == 2
    assert (command.output / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.fault
@pytest.mark.parametrize("fault", ["kill", "reclaim", "partition"])
def test_lost_worker_is_replaced_and_the_result_is_right(rehearse, tmp_path, fault):
    with rehearse(job(tmp_path), *FAST, f"--{fault}=worker@step20", "--notice-s=5") as command:
        metrics, events = finish(command)
    lost = the_lost_pod(events)
    story = [event["kind"] for event in events if event["subject"] == lost]
    assert story.index("fault") < story.index("leaving") < story.index("removed")
    after = events[[e["kind"] for e in events].index("fault") :]
    assert "ready" in kinds(after)  # Another worker.
    # One more may have come and gone while Ray did not miss the lost one yet.
    assert kinds(events).count("pod") >= 3
    assert metrics["scaled_up_to"] == 2
    assert metrics["scaled_down_to"] == 0
    assert metrics["steps_redone"] == 0  # Ray itself calls the step again.
    assert metrics["job_tries"] == 1


def the_lost_pod(events: list[dict[str, Any]]) -> str:
    """The pod of the only fault."""
    (fault,) = [event for event in events if event["kind"] == "fault"]
    return str(fault["subject"])


@pytest.mark.fault
def test_job_of_a_killed_head_is_retried_and_goes_on(rehearse, tmp_path):
    # Between the checkpoints at steps 20 and 40.
    with rehearse(job(tmp_path), *FAST, "--kill=head@step25") as command:
        metrics, events = finish(command)
    the_lost_pod(events)
    assert kinds(events, "head").count("pod") == 2
    assert metrics["job_tries"] == 2
    assert resumed(events) % CHECKPOINT_EVERY == 0
    assert 0 < metrics["steps_redone"] <= CHECKPOINT_EVERY
    assert metrics["scaled_down_to"] == 0


def resumed(events: list[dict[str, Any]]) -> int:
    """The step after which the second try went on."""
    first, second = [e for e in events if e["data"].get("event") == "start"]
    assert first["data"]["step"] == 0
    assert second["data"]["step"] > 0
    return int(second["data"]["step"])


def service(tmp_path: Path, name: str, word: str, **changes: Any) -> str:
    app = {"name": "hello", "route_prefix": "/", "import_path": "hello_app:build"}
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [app | {"args": {"word": word}}],
    }
    spec = {
        "serveConfigV2": yaml.safe_dump(config),
        "rayClusterConfig": small() | changes,
        "excludeHeadPodFromServeSvc": True,
    }
    for group in spec["rayClusterConfig"]["workerGroupSpecs"]:
        del group["template"]["spec"]["containers"][0]["readinessProbe"]  # The operator's own.
    return write(tmp_path / name, document("RayService", spec))


@pytest.mark.fault
@pytest.mark.parametrize("clusters", [1, 2])
def test_service_is_updated_under_load_without_a_failed_request(rehearse, tmp_path, clusters):
    first = service(tmp_path, "1.yaml", "one")
    changes = {"rayVersion": "2.60.0-2"} if clusters == 2 else {}
    second = service(tmp_path, "2.yaml", "two", **changes)
    options = ["--load=/", f"--update={second}", "--hold-s=5", "--grace-s=20"]
    with rehearse(first, *FAST, *options) as command:
        assert command.process.wait(570) == 0, command.text()
        result = json.loads((command.output / "rehearsal.json").read_text())
        events = json.loads((command.output / "timeline.json").read_text())
    metrics = result["metrics"]
    assert metrics["requests_failed"] == 0
    assert metrics["requests"] > 50
    assert set(metrics["answers"]) == {"200"}
    assert kinds(events, "head").count("pod") == clusters
    assert list(metrics["bodies"]) == ["one", "two"]
    assert metrics["last_body"] == "two"
