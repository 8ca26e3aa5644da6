"""Projects of this repository rehearsed as they are rendered, and what goes wrong; minutes each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .leftovers import Namespaces, traces

ROOT = Path(__file__).parents[3]
LIMIT_S = 580
# An epoch has 20 steps: checkpoints after steps 80 and 160, the last one.
EPOCHS, CHECKPOINT_EVERY, FAULT_AT = 8, 80, 100
SLOW = [f"train.epochs={EPOCHS}", "model.width=64", "checkpoint.every_epochs=4"]

pytestmark = [pytest.mark.fault, pytest.mark.timeout(620), pytest.mark.usefixtures("namespaces")]


def rehearsed(
    tmp_path: Path, workload: str, *overrides: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `kuberay-deploy action=rehearse` has measured, and its timeline."""
    out, log = tmp_path / "out", tmp_path / "log.txt"
    command = [sys.executable, "-m", "kuberay_deploy", "action=rehearse", f"workload={workload}"]
    before = traces(str(tmp_path))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *overrides, f"hydra.run.dir={out}"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    namespaces = Namespaces(process.pid)
    try:
        code = process.wait(LIMIT_S)
    finally:
        process.terminate()
        process.wait(60)
    assert code == 0, log.read_text()[-5000:]
    assert namespaces.left() == []
    assert traces(str(tmp_path)) == before
    metrics: dict[str, Any] = json.loads((out / "result.json").read_text())["metrics"]
    return metrics, json.loads((out / "rehearsal" / "timeline.json").read_text())


def result_of_the_job(tmp_path: Path) -> dict[str, Any]:
    """The `result.json` that the job itself has left on its volume."""
    (path,) = (tmp_path / "out").glob("rehearsal/volumes/*/results/*/result.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("fault", ["kill=worker", "partition=worker", "kill=head"])
def test_training_that_loses_a_pod_ends_with_a_right_result(tmp_path: Path, fault: str) -> None:
    metrics, events = rehearsed(
        tmp_path,
        "torch-ddp-train",
        f"rehearse.{fault}@step{FAULT_AT}",
        "rehearse.idle_timeout_s=15",
        f"overrides={json.dumps(SLOW)}",
    )
    assert (metrics["scaled_up_to"], metrics["scaled_down_to"]) == (2, 0)
    assert metrics["job_tries"] == (2 if fault == "kill=head" else 1)
    (lost,) = [event["subject"] for event in events if event["kind"] == "fault"]
    assert [e["kind"] for e in events if e["subject"] == lost].count("removed") == 1
    role = fault.partition("=")[2]
    pods = [event for event in events if event["data"].get("role") == role]
    assert [event["kind"] for event in pods].count("pod") >= (2 if role == "head" else 3)
    after = pods[[event["kind"] for event in pods].index("fault") :]
    assert any(e["kind"] == "ready" and e["subject"] != lost for e in after)
    starts = [e["data"]["step"] for e in events if e["data"].get("event") == "start"]
    # More than one start again, where the group was whole for a moment only.
    assert starts[0] == 0
    assert set(starts[1:]) == {CHECKPOINT_EVERY}
    # The fault came some steps after it was due, and before the next checkpoint.
    assert FAULT_AT - CHECKPOINT_EVERY <= metrics["steps_redone"] < CHECKPOINT_EVERY
    result = result_of_the_job(tmp_path)
    assert result["status"] == "ok"
    assert result["metrics"]["accuracy"] > 0.95
    assert result["metrics"]["epochs"] == EPOCHS


def test_service_gets_a_new_version_under_load_without_a_failed_request(tmp_path: Path) -> None:
    rendered = tmp_path / "manifests"
    subprocess.run(
        [
            *(sys.executable, "-m", "kuberay_deploy", "workload=serve-fastapi", "profile=dev"),
            *('overrides=["batch.max_rows=32"]', f"output={rendered}"),
            f"hydra.run.dir={tmp_path / 'render'}",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    metrics, events = rehearsed(
        tmp_path,
        "serve-fastapi",
        f"rehearse.update={rendered / 'serve-fastapi-dev.yaml'}",
        "rehearse.load=/version",
    )
    assert metrics["requests_failed"] == 0
    assert metrics["requests"] > 100
    assert set(metrics["answers"]) == {"200"}
    # Its answers do not tell the versions apart; Serve says that it has begun with the new one, and
    # the rehearsal waits until it runs.
    texts = [event["text"] for event in events if event["kind"] == "job"]
    updated = texts[texts.index("update") :]
    assert "serve-fastapi deploying" in updated
    assert updated[-2:] == ["serve-fastapi running", "done"]
