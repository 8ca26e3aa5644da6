"""Every failure that the README claims to survive, injected for real and counted.

Run by `nox -s faults -- torch-ddp-train`.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from ray.train import Checkpoint
from ray_shared.storage import open_storage
from ray_shared.testing import steps_done_twice, wait_for
from ray_shared.testing_s3 import S3Server
from safetensors.torch import load_file
from torch_ddp_train import checkpoint as ckpt

from .conftest import StartJob
from .counting import (
    ALL_STEPS,
    CHECKPOINT_EVERY,
    COUNTED,
    newest_checkpoint,
    snapshot,
    starts,
    step_reached,
    steps,
)

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]


def test_truncated_newest_checkpoint_falls_back_to_the_one_before(start: StartJob, tmp_path: Path):
    with start("run.name=cut", "train.epochs=3", "checkpoint.every_epochs=1") as job:
        assert job.wait() == 0, job.output()
    newest = newest_checkpoint(tmp_path, "cut")
    os.truncate(newest / ckpt.WEIGHTS, 1000)
    with start("run.name=cut", "train.epochs=4", "run.resume=must") as job:
        assert job.wait() == 0, job.output()
    (begun,) = starts(job)
    assert begun["step"] == 40
    assert f"passed over: {newest.name}: {ckpt.WEIGHTS} is damaged" in job.output()
    assert "resume after step 40" in job.output()
    assert job.result()["metrics"]["epochs"] == 4


def test_run_without_any_intact_checkpoint_is_not_silently_begun_anew(
    start: StartJob, tmp_path: Path
):
    with start("run.name=cut", "train.epochs=2", "checkpoint.every_epochs=1") as job:
        assert job.wait() == 0, job.output()
    for weights in (tmp_path / "runs" / "cut").glob(f"checkpoint_*/{ckpt.WEIGHTS}"):
        os.truncate(weights, 1000)
    with start("run.name=cut", "train.epochs=3", "checkpoint.every_epochs=1") as job:
        assert job.wait() == 1
    assert "no checkpoint of the run is intact" in job.output()
    assert "Traceback" not in job.output()


def test_diverged_loss_stops_and_keeps_the_last_good_checkpoint(start: StartJob, tmp_path: Path):
    with start("run.name=nan", "train.epochs=2") as job:
        assert job.wait() == 0, job.output()
    good = newest_checkpoint(tmp_path, "nan")
    with start("run.name=nan", "train.epochs=6", "train.lr=1e30", "train.clip_norm=null") as job:
        assert job.wait() == 1
    assert "failed: the loss is not finite after step" in job.output()
    assert f"the last good checkpoint is {good}" in job.output()
    assert "Traceback" not in job.output()
    result = job.result()
    assert result["status"] == "failed"
    # Another attempt would diverge as well: none is made.
    assert result["metrics"]["restarts"] == 0
    assert newest_checkpoint(tmp_path, "nan") == good
    assert ckpt.damage(Checkpoint.from_directory(str(good))) is None


def test_diverged_weights_are_never_saved(start: StartJob, tmp_path: Path):
    with start("run.name=nan", "train.epochs=2") as job:
        assert job.wait() == 0, job.output()
    good = newest_checkpoint(tmp_path, "nan")
    # A checkpoint after every step: also after the one that spoils the weights.
    options = ["checkpoint.every_steps=1", "train.lr=1e30", "train.clip_norm=null"]
    with start("run.name=nan", "train.epochs=4", *options) as job:
        assert job.wait() == 1
    assert "failed: the loss is not finite after step" in job.output()
    newest = newest_checkpoint(tmp_path, "nan")
    weights = load_file(newest / ckpt.WEIGHTS)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert good.exists()


def test_best_checkpoint_that_is_damaged_does_not_become_the_bundle(
    start: StartJob, tmp_path: Path
):
    with start("run.name=best", "train.epochs=3", "checkpoint.every_epochs=1") as job:
        assert job.wait() == 0, job.output()
    committed = snapshot(tmp_path, "best")["checkpoint_results"]
    for result in committed[1:]:  # Ascending by score: all but the worst.
        os.truncate(tmp_path / "runs/best" / result["checkpoint_dir_name"] / ckpt.WEIGHTS, 100)
    with start("run.name=best", "train.epochs=3") as job:
        assert job.wait() == 0, job.output()
    assert job.result()["status"] == "ok"


def test_failure_beyond_what_is_allowed_ends_with_a_sentence(start: StartJob):
    with start("failure.max_failures=0", *COUNTED) as job:
        job.wait_for_event(step_reached(5))
        job.kill_worker(rank=0)
        assert job.wait() == 1
    result = job.result()
    assert result["status"] == "failed"
    assert result["error"].startswith("training failed: ")
    assert "error.log" in result["error"]
    assert "TrainingFailedError" in (job.output_dir / "error.log").read_text() or (
        "WorkerGroupError" in (job.output_dir / "error.log").read_text()
    )


def test_killed_driver_takes_everything_along_and_the_next_start_resumes(
    start: StartJob, tmp_path: Path
):
    with start("run.name=killed", *COUNTED) as job:
        job.wait_for_event(step_reached(28))
        job.remember_family()
        job.process.kill()
        job.process.wait()
        wait_for(lambda: not job.survivors_but_agents(), "end of the killed driver's processes", 30)
        killed_at = max(steps(job))
    with start("run.name=killed", "run.resume=must", *COUNTED) as again:
        assert again.wait() == 0, again.output()
    (begun,) = starts(again)
    assert killed_at - CHECKPOINT_EVERY - 1 <= begun["step"] <= killed_at
    assert steps(job) | steps(again) == ALL_STEPS


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_the_job_and_keeps_its_last_checkpoint(
    start: StartJob, tmp_path: Path, signum: int, code: int
):
    with start("run.name=stopped", *COUNTED) as job:
        job.wait_for_event(step_reached(28))
        job.remember_family()
        # Ctrl-C in a terminal reaches every process of the group, not only the job.
        group = signum == signal.SIGINT
        (os.killpg if group else os.kill)(job.process.pid, signum)
        assert job.wait(30) == code, job.output()
        job.wait_until_gone()
        stopped_at = max(steps(job))
    assert job.result()["status"] == "failed"
    assert "Traceback" not in job.output()
    newest = newest_checkpoint(tmp_path, "stopped")
    assert ckpt.damage(Checkpoint.from_directory(str(newest))) is None
    with start("run.name=stopped", "run.resume=must", *COUNTED) as again:
        assert again.wait() == 0, again.output()
    assert starts(again)[0]["step"] >= stopped_at - CHECKPOINT_EVERY - 1


def test_crash_while_writing_never_loses_the_checkpoint_before(start: StartJob, tmp_path: Path):
    # A model large enough for its upload to be caught in the act.
    with start("run.name=torn", "model.width=256", *COUNTED) as job:
        root = tmp_path / "runs" / "torn"
        job.wait_for_event(lambda e: e["event"] == "checkpoint" and e["step"] >= 10)
        committed = snapshot(tmp_path, "torn")["latest_checkpoint_result"]["metrics"]["step"]

        def torn() -> set[str]:
            """Directories of checkpoints that Ray Train has not committed yet."""
            known = (root / "checkpoint_manager_snapshot.json").read_text()
            return {p.name for p in root.glob("checkpoint_2*") if p.name not in known}

        while not torn():
            assert job.process.poll() is None, job.output()
        job.kill_worker(rank=0)
        assert job.wait() == 0, job.output()
    resumed = starts(job)[1]
    assert resumed["step"] >= committed
    assert resumed["damaged"] == []
    assert steps_done_twice(job.events()) <= 2 * CHECKPOINT_EVERY + 1
    assert steps(job) == ALL_STEPS


def test_checkpoint_after_the_last_step_of_an_epoch_is_resumed(start: StartJob):
    # 20 steps an epoch, and no checkpoint with the epoch itself.
    options = ["train.epochs=2", "checkpoint.every_epochs=0", "checkpoint.every_steps=20"]
    with start(*options, "tracking.every_steps=1") as job:
        job.wait_for_event(step_reached(24))
        job.kill_worker(rank=0)
        assert job.wait() == 0, job.output()
    assert starts(job)[1]["step"] == 20
    assert steps(job) == set(range(1, 41))
    assert job.result()["metrics"]["epochs"] == 2


def test_storage_that_is_gone_for_ten_seconds_costs_nothing(start: StartJob, s3_server: S3Server):
    s3_server.create_bucket("runs")
    with start("storage.path=s3://runs/here", "run.name=outage", *COUNTED) as job:
        job.wait_for_event(step_reached(15))
        with s3_server.gone():
            since = time.time()
            wait_for(lambda: time.time() > since + 10, "end of the outage")
        assert job.wait() == 0, job.output()
    metrics = job.result()["metrics"]
    assert metrics["restarts"] == 0
    assert steps(job) == ALL_STEPS
    assert steps_done_twice(job.events()) == 0
    run = open_storage("s3://runs/here/outage")
    committed = json.loads(run.child("checkpoint_manager_snapshot.json").read_bytes())
    assert committed["latest_checkpoint_result"]["metrics"]["step"] == 60
    assert run.child("bundle/bundle.json").exists()
    with start("storage.path=s3://runs/here", "run.name=outage", "train.epochs=4") as again:
        assert again.wait() == 0, again.output()
    assert starts(again)[0]["step"] == 60


@pytest.mark.parametrize("seed", [1, 2])
def test_default_accuracy_does_not_depend_on_the_seed(start: StartJob, seed: int):
    with start(f"train.seed={seed}") as job:
        assert job.wait() == 0, job.output()
    assert job.result()["metrics"]["accuracy"] >= 0.97
