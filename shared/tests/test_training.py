"""What is counted of a run by epochs, and how its end is told."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray_shared import training
from ray_shared.errors import JobError
from ray_shared.groups import TrackingConfig
from ray_shared.report import Report
from ray_shared.storage import open_storage
from ray_shared.tracking import Event, Tracker

EPOCH = {"event": "epoch", "val_loss": 0.5, "val_accuracy": 0.9, "train_loss": 0.6}
EVENTS: list[Event] = [
    {"event": "start", "epoch": 0, "step": 0, "epochs": 3, "damaged": [], "num_workers": 2},
    EPOCH | {"epoch": 1, "step": 20, "samples_per_s": 10.0},
    EPOCH | {"epoch": 2, "step": 40, "samples_per_s": 100.0},
    {"event": "failure", "errors": {"1": "killed"}},
    {
        "event": "start",
        "epoch": 1,
        "step": 20,
        "epochs": 3,
        "damaged": ["checkpoint_2: model is damaged"],
        "num_workers": 2,
    },
    EPOCH | {"epoch": 2, "step": 40, "samples_per_s": 110.0},
    EPOCH | {"epoch": 3, "step": 60, "samples_per_s": 120.0},
]


def test_ray_train_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7"})
    training.set_environment(False, 30.0, 2.5)
    assert os.environ == {
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2.5",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30.0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7",  # The user's own.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }


@pytest.mark.parametrize(("local", "check_s"), [(True, 2.5), (False, None)])
def test_nobody_watches_for_preemptions_without_need(
    monkeypatch: pytest.MonkeyPatch, local: bool, check_s: float | None
):
    monkeypatch.setattr(os, "environ", {})
    training.set_environment(local, 30.0, check_s)
    assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"


def test_events_are_counted():
    # The first epoch warms up and has no part in the rate.
    expected = {"epochs": 3, "steps": 60, "samples_per_s": 110.0, "restarts": 1, "failures": 1}
    assert training.summarize(EVENTS) == expected


def test_run_without_events_has_counts_too():
    expected = {"epochs": 0, "steps": 0, "samples_per_s": 0.0, "restarts": 0, "failures": 0}
    assert training.summarize([]) == expected


def test_a_person_sees_epochs_failures_and_damage(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    for event in EVENTS:
        training.show_progress(event)
    shown = [record.getMessage() for record in caplog.records]
    assert [line.split()[1] for line in shown if line.startswith("epoch")] == ["1", "2", "2", "3"]
    assert "worker 1 failed: killed" in shown
    assert "damaged checkpoint passed over: checkpoint_2: model is damaged" in shown
    assert "2 worker(s) resume after step 20" in shown


def test_workers_with_the_same_error_share_a_line():
    error = "KeyError: 'vall'"
    event = {"event": "failure", "errors": {0: error, 1: error, 2: "OSError: gone"}}
    lines = ["workers 0, 1 failed: KeyError: 'vall'", "worker 2 failed: OSError: gone"]
    assert training.failures(event) == lines


def test_failures_say_whether_the_workers_start_again(tmp_path: Path):
    tracker = Tracker(TrackingConfig("jsonl", 0, None), tmp_path, "x", "run")
    tracker.start({"failure": {"max_failures": 2}})
    for _ in range(3):
        tracker.after_exception(None, {0: OSError("gone")})
    shown = [training.failures(e)[1:] for e in tracker.events() if e["event"] == "failure"]
    again = "all start again from the newest checkpoint: retry {} (failure.max_failures=2)"
    assert shown == [[again.format(1)], [again.format(2)], []]


def test_preempted_nodes_do_not_count(tmp_path: Path):
    tracker = Tracker(TrackingConfig("jsonl", 0, None), tmp_path, "x", "run")
    tracker.start({"failure": {"max_failures": 1}})
    lost = RayActorError(preempted=True)
    tracker.after_exception(None, {0: WorkerHealthCheckFailedError("lost", lost)})
    tracker.after_exception(None, {0: OSError("gone")})
    shown = [training.failures(e)[1] for e in tracker.events() if e["event"] == "failure"]
    assert shown[0].startswith("a node was taken away: all start again")
    assert shown[1].endswith("retry 1 (failure.max_failures=1)")


def test_reason_names_the_type_of_the_workers_exception():
    error = WorkerGroupError("a whole traceback", {0: KeyError("vall")})
    assert training.why(error) == "training failed: KeyError: 'vall'"


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ({"stopped": "diverged", "step": 7}, "the loss is not finite after step 7; the last good"),
        ({"stopped": "damaged", "damaged": ["a: cut"]}, "no checkpoint of the run is intact: a: c"),
    ],
)
def test_training_that_stopped_fails_the_job(
    tmp_path: Path, returned: dict[str, Any], sentence: str
):
    tracker = Tracker(TrackingConfig("jsonl", 0, None), tmp_path, "x", "run")
    report = Report("x", tmp_path, {})
    outcome: Any = SimpleNamespace(return_value=returned, checkpoint=None)
    with (
        pytest.raises(JobError, match=sentence),
        training.recorded(tracker, report, open_storage(str(tmp_path / "run"))),
    ):
        training.finish(outcome, tracker, report)
    assert report.metrics["epochs"] == 0
    assert report.artifacts["events"] == str(tmp_path / "metrics.jsonl")
