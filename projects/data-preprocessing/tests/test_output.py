"""Attempts: what is resumed, what is replaced, and what counts."""

import json
from pathlib import Path

import polars as pl
import pytest
from data_preprocessing import earlier, output
from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage

PLAN = {"settings": {"a": 1}, "files": [], "units": [[0, 0, 0, [0]]]}


@pytest.fixture
def run_dir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def test_interrupted_attempt_with_the_same_plan_is_gone_on_with(run_dir: Storage):
    first, resumed = output.open_attempt(run_dir, PLAN)
    assert not resumed
    first.write_json("done/unit-000000.json", [])
    again, resumed = output.open_attempt(run_dir, PLAN)
    assert resumed
    assert again == first
    assert again.finished("done") == {"unit-000000"}


def test_attempt_at_something_else_is_removed(run_dir: Storage):
    first, _ = output.open_attempt(run_dir, PLAN)
    first.write_json("done/unit-000000.json", [])
    second, resumed = output.open_attempt(run_dir, PLAN | {"settings": {"a": 2}})
    assert not resumed
    assert second.finished("done") == set()
    assert run_dir.names() == [second.name]


def test_old_output_stays_until_the_new_one_is_whole(run_dir: Storage):
    first, _ = output.open_attempt(run_dir, PLAN)
    output.commit(first, {"kind": "features"})
    second, resumed = output.open_attempt(run_dir, PLAN)
    assert not resumed  # What is complete is made anew, not gone on with.
    assert run_dir.names() == [first.name, second.name, output.MANIFEST]
    assert output.read_manifest(run_dir)["attempt"] == first.name  # type: ignore[index]
    output.commit(second, {"kind": "features"})
    assert run_dir.names() == [second.name, output.MANIFEST]
    assert output.read_manifest(run_dir)["attempt"] == second.name  # type: ignore[index]


def test_half_written_unit_is_not_finished(run_dir: Storage):
    attempt, _ = output.open_attempt(run_dir, PLAN)
    (Path(attempt.directory.path) / "done").mkdir()
    (Path(attempt.directory.path) / "done" / "unit-000000.json.part").write_text("[")
    assert attempt.finished("done") == set()


def test_file_is_written_whole_with_its_hash(run_dir: Storage):
    table = pl.DataFrame({"a": [1, 2, 3]})
    file = run_dir.child("a.parquet")
    told = output.write_parquet(file, table)
    assert output.read_parquet(file).equals(table)
    assert told["rows"] == 3
    assert told["bytes"] == len(file.read_bytes())


def test_newest_run_is_the_one_made_last(tmp_path: Path):
    storage = open_storage(str(tmp_path))
    for name, kind, made in (("b", "features", "1"), ("a", "features", "2"), ("c", "model", "3")):
        content = {"format_version": 1, "kind": kind, "made": made}
        storage.child(name).child(output.MANIFEST).write_bytes(json.dumps(content).encode())
    assert earlier.newest_run(storage, "features", "dataset").path == f"{tmp_path}/a"
    with pytest.raises(UserError, match=r"score.bundle=null: no finished run of action=train"):
        earlier.newest_run(storage.child("a"), "model", "score.bundle")


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 2}'])
def test_damaged_manifest_is_refused_by_name(run_dir: Storage, content: str):
    run_dir.child(output.MANIFEST).write_bytes(content.encode())
    with pytest.raises(UserError, match=r"run/manifest.json: "):
        output.read_manifest(run_dir)
