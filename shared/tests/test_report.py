"""`result.json`, timings and versions."""

import json
import logging
import math
import platform
from importlib import metadata
from pathlib import Path

import pytest
from ray_shared.report import (
    RESULT_LINE,
    RESULT_TO_LOG,
    Report,
    flat,
    show_artifacts,
    show_table,
    versions,
)


def test_result_holds_every_key(tmp_path: Path):
    report = Report("tiny-job", tmp_path, {"train": {"lr": 0.1}})
    report.metrics["accuracy"] = 0.5
    report.artifacts["bundle"] = "s3://bucket/x"
    report.resources = {"CPU": 2.0}
    with report.timed("job_s"):
        pass
    path = report.write("failed", "the loss is not finite")
    assert path == tmp_path / "result.json"
    result = json.loads(path.read_text())
    versions = result.pop("versions")
    timings = result.pop("timings")
    assert result == {
        "project": "tiny-job",
        "status": "failed",
        "error": "the loss is not finite",
        "metrics": {"accuracy": 0.5},
        "artifacts": {"bundle": "s3://bucket/x"},
        "resources": {"CPU": 2.0},
        "config": {"train": {"lr": 0.1}},
    }
    assert timings.keys() == {"job_s"}
    assert versions["python"] == platform.python_version()


def test_result_is_printed_in_one_line_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    report = Report("tiny-job", tmp_path, {"path": Path("a")})
    report.write("ok")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(RESULT_TO_LOG, "1")
    path = report.write("ok")
    (line,) = filter(None, capsys.readouterr().out.split("\n"))
    assert json.loads(line.removeprefix(RESULT_LINE)) == json.loads(path.read_text())


def test_paths_and_other_objects_are_written_as_text(tmp_path: Path):
    report = Report("tiny-job", tmp_path, {"path": Path("a")})
    assert json.loads(report.write("ok").read_text())["config"] == {"path": "a"}


def test_failed_write_leaves_the_earlier_result_whole(tmp_path: Path):
    report = Report("tiny-job", tmp_path, {})
    before = report.write("ok").read_text()
    report.metrics[object()] = 1  # type: ignore[index] # no key that JSON knows
    with pytest.raises(TypeError):
        report.write("failed")
    assert (tmp_path / "result.json").read_text() == before


def test_reader_never_sees_half_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    write_text = Path.write_text

    def spy(path: Path, text: str) -> int:
        written.append(path.name)
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", spy)
    Report("tiny-job", tmp_path, {}).write("ok")
    assert written != []
    assert "result.json" not in written  # It only ever appears by being renamed.
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_time_is_recorded_also_when_the_block_raises(tmp_path: Path):
    report = Report("tiny-job", tmp_path, {})
    with pytest.raises(ValueError, match="broken"), report.timed("job_s"):
        raise ValueError("broken")
    assert report.timings["job_s"] >= 0
    assert math.isfinite(report.timings["job_s"])


def test_flat_joins_nested_keys_with_dots():
    assert flat({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


def test_versions_names_what_an_installed_distribution_requires():
    found = versions("shared")
    assert found["ray"] == metadata.version("ray")
    assert found["hydra-core"] == metadata.version("hydra-core")
    assert "mlflow" not in found  # An extra.


def test_versions_of_an_unknown_project_names_ray():
    assert versions("no-such-project").keys() == {"python", "ray"}


def test_versions_passes_over_what_is_required_on_other_platforms_only(
    monkeypatch: pytest.MonkeyPatch,
):
    required = ["ray[default]==2.60.0", 'no-such-package>=1; sys_platform == "none"']
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    assert versions("tiny-job").keys() == {"python", "ray"}


def test_table_shows_names_and_values(capsys: pytest.CaptureFixture[str]):
    show_table("Result", {"accuracy": 0.97, "bundle": "runs/x/bundle"})
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "0.97" in shown
    assert "runs/x/bundle" in shown


def test_artifacts_are_named_with_their_places(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    report = Report("tiny-job", tmp_path, {}, artifacts={"learning_curve": "out/curve.png"})
    with caplog.at_level(logging.INFO):
        show_artifacts(report)
    assert caplog.messages == ["learning curve: out/curve.png"]
