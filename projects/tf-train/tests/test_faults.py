"""Every failure that the README claims to survive, injected for real and counted.

Run by `nox -s faults -- tf-train`.
"""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from ray.train import Checkpoint
from ray_shared.storage import open_storage
from ray_shared.testing import drain_node, many_nodes, steps_done_twice, wait_for
from ray_shared.testing_s3 import S3Server
from tf_train import checkpoint as ckpt
from tf_train.config import ModelConfig
from tf_train.model import build_model

from .conftest import StartJob
from .counting import (
    ALL_STEPS,
    CHECKPOINT_EVERY,
    COUNTED,
    committed,
    newest_checkpoint,
    starts,
    step_reached,
    steps,
    weights,
)
from .records import write_splits

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]


def test_worker_that_stops_is_given_up(start: StartJob):
    with start("train.step_timeout_s=8", *COUNTED) as job:
        job.wait_for_event(step_reached(28))
        job.remember_family()
        # Alive, so that nobody closes its connections.
        os.kill(job.workers()[1]["pid"], signal.SIGSTOP)
        assert job.wait() == 0, job.output()
    # Whoever is first to notice: the other worker, TensorFlow, or Ray Train.
    said = ["no step for train.step_timeout_s=8", "stopped sending heartbeats", "health check has"]
    assert any(words in job.output() for words in said)
    assert job.result()["metrics"]["restarts"] == 1
    assert starts(job)[1]["step"] > 20
    assert steps_done_twice(job.events()) <= CHECKPOINT_EVERY + 1
    assert steps(job) == ALL_STEPS
    job.wait_until_gone(10)


def test_truncated_newest_checkpoint_falls_back_to_the_one_before(start: StartJob, tmp_path: Path):
    with start("run.name=cut", "train.epochs=3", "checkpoint.every_epochs=1") as job:
        assert job.wait() == 0, job.output()
    newest = newest_checkpoint(tmp_path, "cut")
    os.truncate(newest / ckpt.MODEL, 1000)
    with start("run.name=cut", "train.epochs=4", "run.resume=must") as job:
        assert job.wait() == 0, job.output()
    (begun,) = starts(job)
    assert begun["step"] == 40
    assert f"passed over: {newest.name}: {ckpt.MODEL} is damaged" in job.output()
    assert "resume after step 40" in job.output()
    assert job.result()["metrics"]["epochs"] == 4


def test_checkpoint_of_another_architecture_is_refused(start: StartJob, tmp_path: Path):
    with start("run.name=swap", "train.epochs=2", "checkpoint.every_epochs=1") as job:
        assert job.wait() == 0, job.output()
    other = build_model(ModelConfig("mlp", 8), [8, 8, 1], 10, 5.0, 6.0, "fp32", 0)
    for checkpoint in (tmp_path / "runs" / "swap").glob("checkpoint_*"):
        if checkpoint.is_dir():
            other.save(checkpoint / ckpt.MODEL)
            hashes = json.loads((checkpoint / ckpt.MANIFEST).read_text())
            hashes[ckpt.MODEL] = ckpt.sha256(checkpoint / ckpt.MODEL)
            (checkpoint / ckpt.MANIFEST).write_text(json.dumps(hashes))
    with start("run.name=swap", "train.epochs=3") as job:
        sentence = job.refusal()
    newest = newest_checkpoint(tmp_path, "swap") / ckpt.MODEL
    assert sentence.startswith(f"{newest}: a model of another architecture than model=cnn; ")


def test_diverged_loss_stops_and_keeps_the_last_good_checkpoint(start: StartJob, tmp_path: Path):
    with start("run.name=nan", "train.epochs=2") as job:
        assert job.wait() == 0, job.output()
    good = newest_checkpoint(tmp_path, "nan")
    with start("run.name=nan", "train.epochs=6", "train.lr=1e30", "train.clip_norm=null") as job:
        assert job.wait() == 1
    assert "failed: the loss is not finite after step" in job.output()
    assert f"the last good checkpoint is {good}" in job.output()
    assert "Traceback" not in job.output()
    # Another attempt would diverge as well: none is made.
    assert job.result()["metrics"]["restarts"] == 0
    assert newest_checkpoint(tmp_path, "nan") == good
    assert all(np.isfinite(value).all() for value in weights(tmp_path, "nan"))


def test_failure_beyond_what_is_allowed_ends_with_a_sentence(start: StartJob):
    with start("failure.max_failures=0", *COUNTED) as job:
        job.wait_for_event(step_reached(5))
        job.kill_worker(rank=0)
        assert job.wait() == 1
    result = job.result()
    assert result["status"] == "failed"
    assert result["error"].startswith("training failed: ")


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
        assert job.wait(60) == code, job.output()
        job.wait_until_gone()
        stopped_at = max(steps(job))
    assert job.result()["status"] == "failed"
    assert "Traceback" not in job.output()
    newest = Checkpoint.from_directory(str(newest_checkpoint(tmp_path, "stopped")))
    model = build_model(ModelConfig("cnn", 32), [8, 8, 1], 10, 5.0, 6.0, "fp32", 0)
    assert ckpt.damage(newest, model) is None
    with start("run.name=stopped", "run.resume=must", *COUNTED) as again:
        assert again.wait() == 0, again.output()
    assert starts(again)[0]["step"] >= stopped_at - CHECKPOINT_EVERY - 1


def test_run_that_stops_early_has_the_best_epoch(start: StartJob):
    with start("train.epochs=40", "train.early_stopping_epochs=3") as job:
        assert job.wait() == 0, job.output()
    epochs = [e for e in job.events() if e["event"] == "epoch"]
    best = max(epochs, key=lambda e: (e["val_accuracy"], -e["epoch"]))
    assert len(epochs) == best["epoch"] + 3 < 40
    exported = job.result()["metrics"]["best_epoch"]
    assert epochs[exported - 1]["val_accuracy"] == best["val_accuracy"]
    assert job.result()["metrics"]["accuracy"] >= 0.96


def test_best_checkpoint_that_is_damaged_does_not_become_the_bundle(
    start: StartJob, tmp_path: Path
):
    options = ["run.name=best", "train.epochs=4", "checkpoint.every_epochs=1"]
    with start(*options, "checkpoint.num_to_keep=2") as job:
        assert job.wait() == 0, job.output()
    run = tmp_path / "runs" / "best"
    *_, best = committed(run)  # Ascending by score.
    kept = {path.name for path in run.glob("checkpoint_*") if path.is_dir()}
    # The best two, and the newest if it is not one of them.
    assert 2 <= len(kept) <= 3
    assert {best["checkpoint_dir_name"], newest_checkpoint(tmp_path, "best").name} <= kept
    # The chief alone has written: one of each file.
    files = sorted(path.name for path in (run / best["checkpoint_dir_name"]).iterdir())
    assert files == sorted([ckpt.MANIFEST, ckpt.MODEL, ckpt.OPTIMIZER, ckpt.POSITION])
    assert job.result()["metrics"]["best_epoch"] == best["metrics"]["epoch"]

    # Of the two that are kept, let the one that training would not go on from be the best.
    snapshot = run / "checkpoint_manager_snapshot.json"
    content = json.loads(snapshot.read_text())
    newest = newest_checkpoint(tmp_path, "best").name
    older = next(r for r in content["checkpoint_results"] if r["checkpoint_dir_name"] != newest)
    older["metrics"]["score"] = 2.0
    snapshot.write_text(json.dumps(content))
    os.truncate(run / older["checkpoint_dir_name"] / ckpt.OPTIMIZER, 100)
    with start(*options) as again:
        assert again.wait() == 0, again.output()
    told = f"passed over: {older['checkpoint_dir_name']}: {ckpt.OPTIMIZER} is damaged"
    assert told in again.output()
    assert again.result()["metrics"]["best_epoch"] != older["metrics"]["epoch"]


def test_run_in_s3_outlives_an_outage_and_is_resumed(start: StartJob, s3_server: S3Server):
    s3_server.create_bucket("runs")
    with start("storage.path=s3://runs/here", "run.name=outage", *COUNTED) as job:
        job.wait_for_event(step_reached(15))
        with s3_server.gone():
            since = time.time()
            wait_for(lambda: time.time() > since + 10, "end of the outage")
        assert job.wait() == 0, job.output()
    assert job.result()["metrics"]["restarts"] == 0
    assert steps(job) == ALL_STEPS
    assert steps_done_twice(job.events()) == 0
    run = open_storage("s3://runs/here/outage")
    for written in ("bundle/bundle.json", "saved_model/saved_model.pb"):
        assert run.child(written).exists()
    with start("storage.path=s3://runs/here", "run.name=outage", "train.epochs=4") as again:
        assert again.wait() == 0, again.output()
    assert starts(again)[0]["step"] == 60


def test_drained_node_gets_a_checkpoint_before_it_leaves(start: StartJob):
    # No regular checkpoint and no allowed failure: only the notice can save the run.
    options = [
        "train.epochs=8",
        "checkpoint.every_epochs=0",
        "tracking.every_steps=1",
        "failure.max_failures=0",
        "failure.preemption_check_s=0.5",
    ]
    # The head's node, which the driver is on, has no room for a worker.
    with many_nodes([0, 1, 1, 1]) as cluster:
        join = ["cluster=existing", f"cluster.address={cluster.address}"]
        with start(*join, *options) as job:
            job.wait_for_event(step_reached(20))
            on = job.workers()[1]["node"]
            leaving = next(node for node in cluster.worker_nodes if node.node_id == on)
            drain_node(cluster, leaving.node_id, deadline_s=4)
            drained = time.time()
            notice = job.wait_for_event(lambda e: e["event"] == "checkpoint" and e["preempted"])
            wait_for(lambda: time.time() > drained + 4, "end of the grace period")
            cluster.remove_node(leaving, allow_graceful=False)
            assert job.wait() == 0, job.output()
    first, second = starts(job)
    assert first["step"] == 0
    assert second["step"] >= notice["step"] >= 20
    assert on not in {worker["node"] for worker in second["workers"]}
    assert "a node is about to go: checkpoint at step" in job.output()
    # About half a second of steps between two looks.
    assert steps_done_twice(job.events()) <= 15
    assert job.result()["metrics"]["epochs"] == 8


def test_records_are_streamed_and_none_is_left_out(start: StartJob, tmp_path: Path):
    write_splits(tmp_path, 41)
    options = ["data=tfrecord", f"data.path={tmp_path}", "train.batch_size=16", "train.epochs=2"]
    with start("experiment=streaming", *options, "train.precision=bf16", "model.width=8") as job:
        assert job.wait() == 0, job.output()
    epochs = [e for e in job.events() if e["event"] == "epoch"]
    # 82 images, 2 workers, 16 a step.
    assert [e["step"] for e in epochs] == [3, 6]
    assert [e["num_images"] for e in epochs] == [82, 82]


def test_one_worker_trains_as_well(start: StartJob):
    with start("scaling.num_workers=1", "train.batch_size=64") as job:
        assert job.wait() == 0, job.output()
    assert job.result()["metrics"]["accuracy"] >= 0.96


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_accuracy_does_not_depend_on_the_seed(start: StartJob, seed: int):
    with start(f"train.seed={seed}") as job:
        assert job.wait() == 0, job.output()
    assert job.result()["metrics"]["accuracy"] >= 0.96
