"""Tracking without a cluster: files, backends that break, and following along."""

import json
import logging
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from ray_shared import tracking
from ray_shared.errors import UserError
from ray_shared.groups import TrackingConfig
from ray_shared.testing import wait_for
from ray_shared.tracking import Tracker, read_events


def tracker(directory: Path, backend: str = "jsonl", uri: str | None = None) -> Tracker:
    return Tracker(TrackingConfig(backend, 0, uri), directory, "tiny-job", "mine")


class Broken:
    """Breaks in one of its methods."""

    def __init__(self, method: str):
        self.method = method
        self.calls: list[str] = []

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if method == self.method:
            raise OSError("the disk is full")

    def start(self, params: dict[str, Any]) -> None:
        self._call("start")

    def log(self, event: dict[str, Any]) -> None:
        self._call("log")

    def finish(self, status: str) -> None:
        self._call("finish")


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("start", ["start"]),
        ("log", ["start", "log"]),
        ("finish", ["start", "log", "log", "log", "finish"]),
    ],
)
def test_backend_that_breaks_is_given_up_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, calls: list[str]
):
    tracked, broken = tracker(tmp_path), Broken(method)
    tracked._backends.insert(0, broken)
    with caplog.at_level(logging.WARNING):
        tracked.start({})
        for epoch in range(2):
            tracked.log({"event": "epoch", "epoch": epoch})
        tracked.finish("ok", {})
    assert broken.calls == calls
    assert [r.getMessage() for r in caplog.records] == [
        "tracking with Broken stopped: the disk is full"
    ]
    assert [e["event"] for e in tracked.events()] == ["params", "epoch", "epoch", "end"]


def test_event_file_that_cannot_be_written_never_breaks_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tracked = tracker(tmp_path / "none")
    with caplog.at_level(logging.WARNING):
        tracked.start({})
        tracked.log({"event": "epoch"})
        tracked.finish("ok", {})
    assert len(caplog.records) == 1
    assert tracked.events() == []


def test_exception_without_a_message_never_breaks_the_run(tmp_path: Path):
    tracked = tracker(tmp_path)
    tracked.start({})
    tracked.after_exception(None, {0: ValueError(), 1: ValueError("first\nlast")})
    assert tracked.events()[-1]["errors"] == {
        "0": "ValueError: no message",
        "1": "ValueError: last",
    }


def test_run_directory_that_is_used_again_starts_over(tmp_path: Path):
    for _ in range(2):
        tracked = tracker(tmp_path)
        tracked.start({"train": {"lr": 0.1}})
        tracked.finish("ok", {"accuracy": 0.5})
    params, end = tracked.events()
    assert params.pop("time") <= end.pop("time")
    assert params == {"event": "params", "train.lr": 0.1}
    assert end == {"event": "end", "status": "ok", "accuracy": 0.5}


def test_line_that_is_still_being_written_is_left_for_later(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_events(path) == []
    path.write_text('{"event": "start"}\n{"event": "ep')
    assert read_events(path) == [{"event": "start"}]


def test_follow_shows_each_event_once_in_order_as_it_comes(tmp_path: Path):
    tracked = tracker(tmp_path)
    tracked.start({})
    shown: list[int] = []
    seen_early = threading.Event()

    def show(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            shown.append(event["step"])
            seen_early.set()

    with tracked.follow(show):
        for step in range(50):
            tracked.log({"event": "step", "step": step})
        assert seen_early.wait(10)  # Not only at the end.
        wait_for(lambda: len(shown) == 50, "fifty events", 10)
        # The last ones come in the moment in which the block ends.
        for step in range(50, 60):
            tracked.log({"event": "step", "step": step})
    assert shown == list(range(60))


def test_mlflow_records_parameters_metrics_by_step_and_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    tracked = tracker(tmp_path, "mlflow")  # Its default: `mlflow.db` in the working directory.
    tracked.start({"train": {"lr": 0.1}})
    tracked.log({"event": "epoch", "step": 10, "loss": 0.5})
    tracked.finish("ok", {"accuracy": 0.9})
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select name, status from runs").fetchall() == [
            ("mine", "FINISHED")
        ]
        metrics = database.execute("select key, value, step from metrics").fetchall()
    database.close()
    assert ("epoch/loss", 0.5, 10) in metrics
    assert ("end/accuracy", 0.9, 0) in metrics


def test_mlflow_store_that_cannot_be_opened_never_breaks_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("mlflow")
    tracked = tracker(tmp_path, "mlflow", "nonsense://host")
    with caplog.at_level(logging.WARNING, "ray_shared"):
        tracked.start({})
        tracked.finish("ok", {})
    ours = [r for r in caplog.records if r.name == "ray_shared.tracking"]
    assert len(ours) == 1
    assert ours[0].getMessage().startswith("tracking with MLflow stopped: ")
    assert [e["event"] for e in tracked.events()] == ["params", "end"]


@pytest.mark.parametrize(
    ("backend", "module"), [("mlflow", "mlflow"), ("tensorboard", "tensorboardX")]
)
def test_backend_that_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, module: str
):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(
        UserError, match=rf"tracking={backend}: {module} is not installed: .* -m pip install"
    ):
        tracker(tmp_path, backend).start({})


def test_unknown_backend_is_refused():
    with pytest.raises(UserError, match=r"tracking\.backend=wandb: must be one of jsonl,"):
        TrackingConfig("wandb", 0, None)


def test_every_event_is_one_line_of_json(tmp_path: Path):
    tracked = tracker(tmp_path)
    tracked.log({"event": "epoch", "path": Path("a\nb")})
    (line,) = tracked.events_path.read_text().splitlines()
    assert json.loads(line)["path"] == "a\nb"
    assert tracking.read_events(tracked.events_path)[0]["time"] > 1e9
