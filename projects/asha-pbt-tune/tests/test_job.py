"""Studies from end to end, and the headline fault: the driver killed in the middle."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
from ray_shared.bundle import read_bundle
from ray_shared.testing import wait_for

from .conftest import StartJob
from .counting import ends_of, epochs_of, saved_epochs

FINISHED_METRICS = {
    "best_score",
    "num_trials",
    "num_pruned",
    "num_exploits",
    "epochs_spent",
    "num_failed",
}
SLOW = [
    # A fifth of a second an epoch, so that there is a middle.
    "objective=torch",
    "objective.hyperparameters.batch_size=4",
    "~space.batch_size",
    "~space.num_layers",
    "+space.num_layers=1",
    "train.epochs=9",
    "checkpoint.every_epochs=1",
]


def test_default_study_prunes_and_says_where_everything_is(start: StartJob):
    with start("tune.num_trials=10", "train.epochs=24") as job:
        job.wait_for_event(lambda e: e["event"] == "epoch")
        assert job.wait() == 0, job.output()
    job.wait_until_gone()

    result, events = job.result(), job.events()
    metrics = result["metrics"]
    assert metrics.keys() >= FINISHED_METRICS
    assert (metrics["num_trials"], metrics["num_failed"]) == (10, 0)
    # What the counts say is what happened: pruned trials stopped at a rung, the others went on.
    epochs, ends = epochs_of(events), ends_of(events)
    assert metrics["epochs_spent"] == sum(map(len, epochs.values())) < 10 * 24
    pruned = [t for t, e in ends.items() if e["fate"] == "pruned"]
    assert metrics["num_pruned"] == len(pruned) >= 3
    assert {epochs[trial][-1] for trial in pruned} <= {4, 12}
    finished = [t for t, e in ends.items() if e["fate"] == "finished"]
    assert all(epochs[trial] == list(range(1, 25)) for trial in finished)
    assert len(pruned) + len(finished) == 10
    assert metrics["best_score"] == min(ends[trial]["score"] for trial in finished)
    rung = metrics["rungs"][0]
    assert (rung["epoch"], rung["reached"]) == (4, 10)

    # Nothing twice, no warning; the path of the result comes last.
    lines = job.output().strip().splitlines()
    assert sum(bool(re.match(r"trial \w+ +(pruned|finished) ", line)) for line in lines) == 10
    assert not [line for line in lines if re.search("warning|error|traceback|pid=", line, re.I)]
    assert lines[-1] == f"result: {job.output_dir / 'result.json'}"

    artifacts = result["artifacts"]
    assert pq.read_table(artifacts["trials"]).num_rows == 10
    assert {"best_score", "learning_curves", "parallel_coordinates", "importance"} <= set(artifacts)
    bundle = read_bundle(Path(artifacts["bundle"]))
    assert bundle.framework == "xgboost"
    assert bundle.metrics["test_accuracy"] == metrics["test_accuracy"] > 0.85


def test_killed_driver_loses_no_trial_and_no_finished_work(start: StartJob, tmp_path: Path):
    study = ["run.name=killed", "scheduler=none", "search=random", "tune.num_trials=5", *SLOW]
    state = tmp_path / "runs" / "killed"

    with start(*study) as job:
        # Two trials have finished and others are in the middle, and the saved state knows it.
        wait_for(lambda: len(ends_of(job.events())) >= 2, "second end")
        done = set(ends_of(job.events()))

        def in_the_middle() -> str | None:
            assert job.process.poll() is None, job.output()
            saved = saved_epochs(str(state))
            if not all(saved.get(trial, ("", 0))[0] == "TERMINATED" for trial in done):
                return None
            return next((t for t, (_, e) in saved.items() if 3 <= e < 9), None)

        running = wait_for(in_the_middle, "saved state of a trial in the middle")
        job.remember_family()
        job.process.kill()
        job.process.wait()
        wait_for(lambda: not job.survivors_but_agents(), "end of the killed driver's processes", 30)
    before = epochs_of(job.events())

    with start(*study) as again:
        assert again.wait() == 0, again.output()
    assert ", resumed" in again.output()
    metrics = again.result()["metrics"]
    assert (metrics["num_trials"], metrics["num_finished"]) == (5, 5)
    after = epochs_of(again.events())
    # The finished ones did nothing more; the one in the middle went on from a checkpoint.
    assert not done & after.keys()
    assert 3 <= after[running][0] <= before[running][-1] + 1
    assert after[running][-1] == 9
    # Each trial has every epoch; those since the saved state of each of two were trained twice.
    for trial in before.keys() | after.keys():
        assert set(before.get(trial, [])) | set(after.get(trial, [])) == set(range(1, 10))
    twice = sum(len(before[t]) + len(after[t]) - 9 for t in before.keys() & after.keys())
    assert twice <= 2 * 8
    rows = pq.read_table(again.result()["artifacts"]["trials"]).to_pylist()
    assert {row["trial"] for row in rows if row["fate"] == "finished"} >= done
    assert json.loads((state / "run.json").read_text())["tune"]["num_trials"] == 5
