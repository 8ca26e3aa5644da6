"""Files that grow, and go, while they are read."""

import json
import threading
from pathlib import Path

import pytest
from rehearsal.context import Context
from rehearsal.manifest import Plan
from rehearsal.options import Options
from rehearsal.timeline import Timeline
from rehearsal.watch import Watch, matching


@pytest.fixture
def watch(tmp_path):
    options = Options(manifest="m", output=str(tmp_path))
    context = Context(Plan("RayJob", "mine", "ray", {}, {}), options, Timeline())
    return Watch(context), context.timeline


def report(tmp_path: Path, *steps: int, end: str = "\n") -> Path:
    file = tmp_path / "volumes" / "runs" / "results" / "metrics.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        lines = [json.dumps({"event": "step", "step": step}) for step in steps]
        stream.write("\n".join(lines) + end)
    return file


def steps(timeline: Timeline) -> list[int]:
    return [event.data["step"] for event in timeline.events if event.kind == "step"]


def test_each_whole_line_is_read_once(watch, tmp_path):
    watch, timeline = watch
    watch.look()
    report(tmp_path, 1, 2)
    watch.look()
    report(tmp_path, 3, end="")
    watch.look()
    assert steps(timeline) == [1, 2]
    file = report(tmp_path)
    watch.look()
    watch.look()
    assert (steps(timeline), watch.furthest) == ([1, 2, 3], 3)
    file.write_text("")
    report(tmp_path, 1)
    watch.look()
    assert steps(timeline) == [1, 2, 3, 1]


def test_directories_that_go_while_it_looks_are_no_error(watch, tmp_path):
    watch, timeline = watch
    report(tmp_path, 1)
    stop = threading.Event()

    def checkpoints() -> None:
        while not stop.is_set():
            for number in range(20):
                (tmp_path / "volumes" / "runs" / f"c{number}" / "a" / "b").mkdir(parents=True)
            for number in range(20):
                for inner in ("a/b", "a", "."):
                    (tmp_path / "volumes" / "runs" / f"c{number}" / inner).rmdir()

    thread = threading.Thread(target=checkpoints)
    thread.start()
    try:
        for _ in range(300):
            watch.look()
    finally:
        stop.set()
        thread.join()
    assert steps(timeline) == [1]


def test_pattern_is_for_the_path_below_the_volumes(tmp_path):
    file = report(tmp_path, 1)
    volumes = tmp_path / "volumes"
    for pattern in ("**/metrics.jsonl", "runs/results/*.jsonl", "runs/*.jsonl"):
        assert matching(volumes, pattern) == [file]
    assert matching(volumes, "results/*.jsonl") == []
