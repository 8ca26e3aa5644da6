"""Projects of this repository rehearsed as they are rendered, and what goes wrong; minutes each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
LIMIT_S = 580
SLOW = ["train.epochs=8", "model.width=64", "checkpoint.every_epochs=1", "tracking.every_steps=5"]

pytestmark = [pytest.mark.fault, pytest.mark.timeout(620), pytest.mark.usefixtures("namespaces")]


def rehearsed(tmp_path: Path, workload: str, *overrides: str) -> dict[str, Any]:
    """What `kuberay-deploy action=rehearse` has measured."""
    out = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kuberay_deploy", "action=rehearse", f"workload={workload}"),
            *overrides,
            f"hydra.run.dir={out}",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    metrics: dict[str, Any] = json.loads((out / "result.json").read_text())["metrics"]
    return metrics


def result_of_the_job(tmp_path: Path) -> dict[str, Any]:
    """The `result.json` that the job itself has left on its volume."""
    (path,) = (tmp_path / "out").glob("rehearsal/volumes/*/results/*/result.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("fault", ["kill=worker", "partition=worker", "kill=head"])
def test_training_that_loses_a_pod_ends_with_a_right_result(tmp_path: Path, fault: str) -> None:
    metrics = rehearsed(
        tmp_path,
        "torch-ddp-train",
        f"rehearse.{fault}@step30",
        "rehearse.idle_timeout_s=15",
        # An epoch has 20 steps: the fault comes in the middle of the second.
        f"overrides={json.dumps(SLOW)}",
    )
    assert (metrics["scaled_up_to"], metrics["scaled_down_to"]) == (2, 0)
    assert metrics["job_tries"] == (2 if fault == "kill=head" else 1)
    # Since the checkpoint after the first epoch, or already after the second.
    assert 0 <= metrics["steps_redone"] <= 21
    result = result_of_the_job(tmp_path)
    assert result["status"] == "ok"
    assert result["metrics"]["accuracy"] > 0.95
    assert result["metrics"]["epochs"] == 8


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
    metrics = rehearsed(
        tmp_path,
        "serve-fastapi",
        f"rehearse.update={rendered / 'serve-fastapi-dev.yaml'}",
        "rehearse.load=/version",
    )
    assert metrics["requests_failed"] == 0
    assert metrics["requests"] > 100
    assert set(metrics["answers"]) == {"200"}
