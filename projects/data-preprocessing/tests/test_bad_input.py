"""A user's mistake: exit code 2, one sentence, no Ray, nothing in storage."""

import json
from pathlib import Path

import pytest
from data_preprocessing import earlier, output, trips
from data_preprocessing.config import Config
from ray_shared.config import compose
from ray_shared.errors import UserError
from ray_shared.runs import RECORD, check_run, record_run
from ray_shared.storage import open_storage

from .conftest import StartJob


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.num_row=5"], "unknown key 'data.num_row': did you mean 'data.num_rows'?"),
        (["+data.num_row=5"], "unknown key 'data.num_row'"),
        (["data.num_rows=lots"], "data.num_rows=lots: must be an integer"),
        (["data.num_rows=5"], "data.num_rows=5: must be >= 1000"),
        (["data.format=xml"], "data.format=xml: must be one of parquet, csv, jsonl"),
        (["data.broken_fraction=0.9"], "data.broken_fraction=0.9: must be in [0, 0.5]"),
        (["data.path=trips"], "data.zones=null: trips of your own need their table of zones"),
        (["quality.max_bad_fraction=2"], "quality.max_bad_fraction=2.0: must be in [0, 1]"),
        (["split.val_from=2024-1-1"], "split.val_from=2024-1-1: must be YYYY-MM-DD"),
        (["split.test_from=2024-01-22"], "split.test_from=2024-01-22: must be later than"),
        (
            ["features.numeric=[log_distanze]"],
            "features.numeric: unknown column 'log_distanze': did you mean 'log_distance'?",
        ),
        (["features.categorical=[fare]"], "features.categorical: unknown column 'fare'"),
        (["features.numeric=[]", "features.categorical=[]"], "features.numeric=[]: must be at"),
        (["train.lr=0"], "train.lr=0.0: must be in (0, 1]"),
        (["scaling.num_workers=0"], "scaling.num_workers=0: must be >= 1"),
        (["score.num_actors=0"], "score.num_actors=0: must be >= 1"),
        (["dataset=runs/x"], "dataset=runs/x: only with action=train"),
        (["action=train", "data.path=x"], "data.path=x: action=train reads prepared rows"),
        (["action=fly"], "action=fly: must be one of prepare, train, score"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_value_is_refused_by_key(overrides: list[str], expected: str):
    with pytest.raises(UserError) as caught:
        compose(Config, "data_preprocessing.conf", overrides)
    assert str(caught.value).startswith(expected)


def refused(start: StartJob, *overrides: str, env: dict[str, str] | None = None) -> str:
    """Runs the job, which must be refused, and returns its sentence."""
    with start(*overrides, env=env) as job:
        sentence = job.refusal()
    assert not (job.output_dir.parent / "runs").exists()
    return sentence


@pytest.fixture
def zones(tmp_path: Path) -> Path:
    path = tmp_path / "zones.csv"
    trips.zone_table().write_csv(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "trips"
    trips.write(trips.FileSpec(0, 1000, 0.0, "parquet", 0), open_storage(str(directory)))
    return directory


def test_no_file_matches(start: StartJob, tmp_path: Path, zones: Path):
    path = f"{tmp_path}/*.parquet"
    message = refused(start, f"data.path={path}", f"data.zones={zones}")
    assert message.startswith(f"data.path={path}: no file matches")


def test_empty_file(start: StartJob, files: Path, zones: Path):
    empty = files / "trips-0009.csv"
    empty.touch()
    message = refused(start, f"data.path={files}", f"data.zones={zones}")
    assert message == f"{empty}: is empty; remove it from data.path={files}"


def test_zone_that_is_in_the_table_twice(start: StartJob, files: Path, zones: Path):
    with zones.open("a") as file:
        file.write("17,Queens,0,0\n")
    message = refused(start, f"data.path={files}", f"data.zones={zones}")
    assert message.startswith(f"data.zones={zones}: LocationID=17 is there twice, in lines 18 and ")


def test_table_of_zones_without_its_columns(start: StartJob, files: Path, zones: Path):
    zones.write_text("id,name\n1,Queens\n")
    message = refused(start, f"data.path={files}", f"data.zones={zones}")
    expected = f"data.zones={zones}: must be a CSV with the columns LocationID and Borough"
    assert message == expected


def test_missing_credentials_for_s3(start: StartJob, s3_server: object, zones: Path):
    nobody = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_EC2_METADATA_DISABLED": "1",
    }
    message = refused(start, "data.path=s3://nowhere/trips", f"data.zones={zones}", env=nobody)
    assert message.startswith("data.path=s3://nowhere/trips: ")


def test_nothing_to_train_on(start: StartJob, tmp_path: Path):
    message = refused(start, "action=train")
    expected = f"dataset=null: no finished run of action=prepare in {tmp_path}/runs"
    assert message == expected


def test_nothing_to_score_with(start: StartJob, tmp_path: Path):
    message = refused(start, "action=score")
    assert message == f"score.bundle=null: no finished run of action=train in {tmp_path}/runs"
    message = refused(start, "action=score", "storage.path=/dev/null")
    assert message.startswith("storage.path=/dev/null: not writable: ")
    message = refused(start, "action=score", f"score.bundle={tmp_path}/nowhere")
    assert message == f"score.bundle={tmp_path}/nowhere: no bundle there"


def test_damaged_bundle_is_refused_by_name(start: StartJob, tmp_path: Path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text("{")
    message = refused(start, "action=score", f"score.bundle={bundle}")
    assert message.startswith(f"score.bundle: {bundle}/bundle.json: ")


def test_more_actors_than_the_cluster_has_room_for(start: StartJob):
    options = ["action=score", "score.num_actors=9", "cluster.num_cpus=2"]
    message = refused(start, *options)
    assert message.startswith("score.num_actors=9: each needs 0.5 CPU, and the cluster")


@pytest.mark.fault  # Two whole jobs; test_results.py looks at the sentence alone.
def test_split_that_leaves_no_row_names_the_days_there_are(start: StartJob, tmp_path: Path):
    options = ["data.num_rows=1000", "data.num_files=1", "run.name=mine"]
    with start(*options, "split.val_from=2023-01-01") as job:
        assert job.wait() == 2, job.output()
    expected = "split.val_from=2023-01-01: leaves no row for train: the trips are of 2024-01-01 to"
    assert expected in job.output()
    assert "Traceback" not in job.output()
    # It is not held to that day.
    with start(*options) as job:
        assert job.wait() == 0, job.output()


def test_model_is_not_resumed_on_other_rows(tmp_path: Path):
    for name, made in (("a", "2024-01-01"), ("b", "2024-01-02")):
        manifest = {"format_version": 1, "kind": "features", "made": made, "files": []}
        run = open_storage(str(tmp_path / name))
        run.child(output.MANIFEST).write_bytes(json.dumps(manifest).encode())
    config = compose(
        Config,
        "data_preprocessing.conf",
        ["action=train", "run.name=model", f"dataset={tmp_path}/a"],
    )
    runs = open_storage(str(tmp_path))
    record_run(runs.child("model"), earlier.locked(config))
    config.dataset = f"{tmp_path}/b"
    with pytest.raises(UserError) as caught:
        check_run(config.run, runs, earlier.locked(config), RECORD)
    expected = f"dataset={tmp_path}/b of 2024-01-02: run 'model' was started with {tmp_path}/a of"
    assert str(caught.value).startswith(expected)


def test_more_workers_than_the_cluster_has_room_for(start: StartJob, tmp_path: Path):
    options = ["action=train", "scaling.num_workers=9", "cluster.num_cpus=2"]
    message = refused(start, *options)
    assert message.startswith("scaling.num_workers=9: each needs 1 CPU, and the cluster")


@pytest.mark.fault  # A whole job; test_results.py looks at the limits alone.
def test_too_rotten_input_stops_before_features_are_written(start: StartJob, tmp_path: Path):
    options = ["data.num_rows=5000", "data.num_files=1", "data.broken_fraction=0.2"]
    with start(*options, "run.name=rotten") as job:
        assert job.wait() == 1, job.output()
    reason = job.result()["error"]
    assert "of the rows break the contract, more than quality.max_bad_fraction=0.1" in reason
    assert "negative_fare" in reason
    assert job.result()["metrics"]["rows_quarantined"] > 1000
    run = tmp_path / "runs" / "rotten"
    assert not (run / "manifest.json").exists()
    assert not list(run.rglob("features"))
