"""Everything that can go wrong in a study, injected and counted."""

import os
import signal
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray_shared.testing import Job, many_nodes, wait_for
from ray_shared.testing_s3 import S3Server

from .conftest import StartJob
from .counting import Event, ends_of, epochs_of, saved_epochs, trained
from .test_job import SLOW

pytestmark = pytest.mark.fault


def terminated(study: str) -> set[str]:
    """The trials that a study which starts again would leave alone."""
    return {t for t, (status, _) in saved_epochs(study).items() if status == "TERMINATED"}


def every_epoch_once_or_redone(events: list[Event], last: int, redone: int) -> None:
    """Each trial has trained each of its epochs, and few of them twice."""
    for trial, epochs in epochs_of(events).items():
        assert set(epochs) == set(range(1, last + 1)), trial
    spent = sum(map(len, epochs_of(events).values()))
    assert spent - last * len(epochs_of(events)) <= redone


def test_trial_that_raises_is_listed_and_the_exit_code_says_when_they_are_too_many(
    start: StartJob,
):
    study = ["search=random", "scheduler=none", "tune.num_trials=6", "train.epochs=4"]
    # XGBoost refuses a subsample of 1.5 when it grows the first tree.
    study += ["~space.subsample", "+space.subsample={choice: [0.8, 1.5]}"]
    with start(*study, "failure.max_failed_fraction=0.1") as job:
        assert job.wait() == 1, job.output()
    metrics, ends = job.result()["metrics"], ends_of(job.events())
    drawn = {
        e["trial"]: e["hyperparameters"]["subsample"] for e in job.events() if e["event"] == "trial"
    }
    wrong = {trial for trial, subsample in drawn.items() if subsample > 1}
    assert 1 <= len(wrong) <= 5, "the seed draws both values"
    assert {t for t, e in ends.items() if e["fate"] == "failed"} == wrong
    assert (metrics["num_failed"], metrics["num_retries"]) == (len(wrong), len(wrong))
    assert metrics["num_finished"] == 6 - len(wrong)
    for trial in wrong:
        assert "subsample" in ends[trial]["error"]
        assert "Traceback" not in ends[trial]["error"]
    rows = pq.read_table(job.result()["artifacts"]["trials"]).to_pylist()
    assert {row["trial"] for row in rows if row["error"]} == wrong
    sentence = f"{len(wrong)} of 6 trials failed, more than failure.max_failed_fraction=0.1 allows"
    assert job.result()["error"] == sentence
    assert Path(job.result()["artifacts"]["bundle"], "model.ubj").exists()

    with start(*study, "failure.max_failed_fraction=1") as tolerant:
        assert tolerant.wait() == 0, tolerant.output()
    assert tolerant.result()["metrics"]["num_failed"] == len(wrong)


def test_study_in_which_every_trial_fails_says_so(start: StartJob):
    study = ["search=random", "tune.num_trials=2", "failure.max_failures=0"]
    study += ["~space.subsample", "+space.subsample={choice: [1.4, 1.5]}"]
    with start(*study, "failure.max_failed_fraction=1") as job:
        assert job.wait() == 1, job.output()
    assert job.result()["error"] == "none of 2 trials finished; 2 failed"
    assert "Traceback" not in job.output()
    assert "Trials did not complete" not in job.output()


def test_trial_that_hangs_is_killed_and_goes_on_from_its_checkpoint(start: StartJob):
    study = ["search=random", "scheduler=none", "tune.num_trials=3", *SLOW]
    with start(*study, "failure.report_timeout_s=20") as job:
        pid = job.wait_for_event(trained(3))["pid"]
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGSTOP)
        job.wait_for_event(lambda e: e["event"] == "failure")
        wait_for(lambda: not process.is_running(), "end of the hanging process", 30)
        assert job.wait() == 0, job.output()
    metrics, events = job.result()["metrics"], job.events()
    (failure,) = [e for e in events if e["event"] == "failure"]
    assert failure["error"] == "killed: no report for failure.report_timeout_s=20"
    assert (metrics["num_failed"], metrics["num_finished"]) == (0, 3)
    every_epoch_once_or_redone(events, 9, redone=1)


def test_killed_trial_goes_on_from_its_checkpoint(start: StartJob):
    with start("search=random", "scheduler=none", "tune.num_trials=3", *SLOW) as job:
        os.kill(job.wait_for_event(trained(4))["pid"], signal.SIGKILL)
        assert job.wait() == 0, job.output()
    metrics, events = job.result()["metrics"], job.events()
    assert (metrics["num_retries"], metrics["num_failed"]) == (1, 0)
    assert "its process died" in next(e["error"] for e in events if e["event"] == "failure")
    every_epoch_once_or_redone(events, 9, redone=1)


def test_trial_without_memory_fails_alone(start: StartJob):
    # Ray kills a process once the machine has 3 GiB more in use than now; the wide network's
    # weights, gradients and moments take 6.
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + 3 * 2**30) / memory.total
    env = {"RAY_memory_usage_threshold": f"{share:.3f}"}
    study = ["objective=torch", "search=random", "scheduler=none", "tune.num_trials=4"]
    study += ["tune.max_concurrent=1", "train.epochs=2", "failure.max_failures=0"]
    study += ["~space.width", "+space.width={choice: [32, 20000]}", "~space.num_layers"]
    with start(*study, "failure.max_failed_fraction=1", env=env) as job:
        assert job.wait() == 0, job.output()
    drawn = {
        e["trial"]: e["hyperparameters"]["width"] for e in job.events() if e["event"] == "trial"
    }
    wide = {trial for trial, width in drawn.items() if width > 32}
    ends = ends_of(job.events())
    assert 1 <= len(wide) <= 3, "the seed draws both values"
    assert {t for t, e in ends.items() if e["fate"] == "failed"} == wide
    assert {ends[trial]["error"] for trial in wide} == {"out of memory: Ray killed its process"}


def test_lost_node_costs_at_most_an_epoch_a_trial(start: StartJob, ray_tmpdir: Path):
    study = ["search=random", "scheduler=none", "tune.num_trials=4", *SLOW]
    with many_nodes([1, 1]) as cluster:
        address = f"cluster.address={cluster.address}"
        with start("cluster=existing", address, *study) as job:
            # Both nodes train.
            wait_for(lambda: len(epochs_of(job.events())) >= 2, "second trial")
            job.wait_for_event(trained(4))
            (node,) = cluster.worker_nodes
            cluster.remove_node(node, allow_graceful=False)
            assert job.wait() == 0, job.output()
    metrics, events = job.result()["metrics"], job.events()
    assert metrics["num_retries"] >= 1
    assert (metrics["num_failed"], metrics["num_finished"]) == (0, 4)
    every_epoch_once_or_redone(events, 9, redone=metrics["num_retries"])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_the_study_and_the_next_start_goes_on(
    start: StartJob, tmp_path: Path, signum: int, code: int
):
    study = ["run.name=stopped", "search=random", "scheduler=none", "tune.num_trials=3", *SLOW]
    with start(*study) as job:
        job.wait_for_event(lambda e: e["event"] == "end")
        done = set(ends_of(job.events()))
        wait_for(lambda: done <= terminated(f"{tmp_path}/runs/stopped"), "saved state")
        job.remember_family()
        os.kill(job.process.pid, signum)
        assert job.wait(30) == code, job.output()
        job.wait_until_gone()
    assert job.result()["status"] == "failed"
    assert "Traceback" not in job.output()
    with start(*study) as again:
        assert again.wait() == 0, again.output()
    assert again.result()["metrics"]["num_finished"] == 3
    assert not done & epochs_of(again.events()).keys()


def kill(job: Job) -> None:
    """SIGKILLs the driver, and waits for the end of what it had started."""
    job.remember_family()
    job.process.kill()
    job.process.wait()
    wait_for(lambda: not job.survivors_but_agents(), "end of the killed driver's processes", 30)


def test_population_goes_on_taking_over_after_a_killed_driver(start: StartJob, tmp_path: Path):
    study = ["run.name=pbt", "objective=torch", "scheduler=pbt", "tune.num_trials=4"]
    study += ["objective.hyperparameters.batch_size=8", "~space.batch_size", "train.epochs=80"]
    with start(*study) as job:
        job.wait_for_event(trained(9))
        wait_for(
            lambda: any(epoch >= 9 for _, epoch in saved_epochs(f"{tmp_path}/runs/pbt").values()),
            "saved state",
        )
        kill(job)
    with start(*study) as again:
        assert again.wait() == 0, again.output()
    metrics = again.result()["metrics"]
    assert (metrics["num_trials"], metrics["num_finished"]) == (4, 4)
    taken = [e for e in again.events() if e["event"] == "exploit"]
    # Where there are checkpoints.
    assert len(taken) >= 1
    assert {e["epoch"] % 4 for e in taken} == {0}


def test_study_with_tpe_and_asha_is_resumed(start: StartJob, tmp_path: Path):
    study = ["run.name=tpe", "tune.num_trials=8", "search.num_startup_trials=2", *SLOW]
    with start(*study) as job:
        job.wait_for_event(lambda e: e["event"] == "end")
        done = set(ends_of(job.events()))
        wait_for(lambda: done <= terminated(f"{tmp_path}/runs/tpe"), "saved state")
        kill(job)
    with start(*study) as again:
        assert again.wait() == 0, again.output()
    metrics = again.result()["metrics"]
    assert metrics["num_trials"] == metrics["num_finished"] + metrics["num_pruned"] == 8
    assert not done & epochs_of(again.events()).keys()
    # The rungs know the trials of the first start.
    assert metrics["rungs"][0]["reached"] == 8


def test_comparison_is_resumed_with_its_budget(start: StartJob, tmp_path: Path):
    study = ["action=compare", "run.name=cmp", "tune.num_trials=3", "compare.num_seeds=1"]
    study += ["compare.variants=[random,asha]", *SLOW]
    with start(*study) as job:
        asha = job.output_dir / "asha-0" / "metrics.jsonl"
        wait_for(lambda: asha.exists() and '"epoch": 4' in asha.read_text(), "second study")
        wait_for(lambda: terminated(f"{tmp_path}/runs/cmp/asha-0"), "its saved state")
        kill(job)
    with start(*study) as again:
        assert again.wait() == 0, again.output()
    metrics = again.result()["metrics"]
    # The first study was complete, the second one stops at its budget, and not far beyond.
    assert metrics["random"]["epochs_spent"] == 3 * 9
    assert 3 * 9 <= metrics["asha"]["epochs_spent"] <= 3 * 9 + 4


def test_study_in_s3_is_resumed(start: StartJob, s3_server: S3Server):
    s3_server.create_bucket("studies")
    study = ["run.name=far", "storage.path=s3://studies/here", "scheduler=none"]
    study += ["search=random", "tune.num_trials=3", *SLOW]
    with start(*study) as job:
        job.wait_for_event(lambda e: e["event"] == "end")
        done = set(ends_of(job.events()))
        wait_for(lambda: done <= terminated("s3://studies/here/far"), "saved state")
        kill(job)
    with start(*study) as again:
        assert again.wait() == 0, again.output()
    assert again.result()["metrics"]["num_finished"] == 3
    assert not done & epochs_of(again.events()).keys()


@pytest.mark.parametrize("objective", ["torch", "xgboost"])
def test_replay_of_a_populations_best_schedule_reaches_its_score(start: StartJob, objective: str):
    study = [f"objective={objective}", "scheduler=pbt", "tune.num_trials=8", "train.epochs=16"]
    with start(*study) as job:
        assert job.wait() == 0, job.output()
    metrics = job.result()["metrics"]
    assert metrics["num_exploits"] >= 1
    # As `--config-dir` does.
    searchpath = f"hydra.searchpath=[pkg://ray_shared.conf,file://{job.output_dir}/best]"
    with start(searchpath, f"objective={objective}", "experiment=best", "action=train") as replay:
        assert replay.wait() == 0, replay.output()
    again = replay.result()["metrics"]
    assert again["best_score"] == metrics["best_score"]
    test = "test_logloss"
    assert again[test] == metrics[test]


def test_variants_are_compared(start: StartJob):
    with start(
        "action=compare",
        "tune.num_trials=3",
        "train.epochs=8",
        "compare.num_seeds=1",
    ) as job:
        assert job.wait(240) == 0, job.output()
    metrics, artifacts = job.result()["metrics"], job.result()["artifacts"]
    assert metrics["random"]["epochs_spent"] == 24
    assert metrics["random"]["share_of_epochs"] <= 1.0
    assert metrics["asha"]["num_pruned"] >= 1
    assert metrics["asha"]["num_trials"] > 3
    assert metrics["pbt"]["num_trials"] == 3
    assert 24 <= metrics["asha_tpe"]["epochs_spent"] <= 26
    assert Path(artifacts["plot"]).read_bytes().startswith(b"\x89PNG")
    assert pq.read_table(artifacts["studies"]).num_rows == 4
