"""The jobs from end to end: prepare, killed and run again (the headline fault), train, score."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from data_preprocessing import trips
from data_preprocessing.contract import DROPOFF, PICKUP
from data_preprocessing.features import LABEL
from ray_shared.bundle import read_bundle
from ray_shared.testing import Job, start_job, wait_for

from .conftest import StartJob
from .counting import BEFORE, NUM_UNITS, SMALL, features, manifest_of, quarantine, truth


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, ray_tmpdir: Path) -> Iterator[Job]:
    """An undisturbed run of `action=prepare`, named `trips`."""
    directory = tmp_path_factory.mktemp("calm")
    with start_job("data_preprocessing", [*SMALL, "run.name=trips"], directory) as job:
        job.wait_for_event(lambda e: e["event"] == "unit")
        assert job.wait() == 0, job.output()
        yield job


def test_rows_are_prepared_and_accounted_for(calm: Job):
    calm.wait_until_gone()
    check_prepared(calm.result(), run_of(calm))
    assert "rows/s" in calm.output()
    assert "Traceback" not in calm.output()
    assert "<svg" in Path(calm.result()["artifacts"]["quality"]).read_text()


def test_model_is_trained_and_scores(start: StartJob, tmp_path: Path, calm: Job):
    run = run_of(calm)
    options = ["run.name=model", "train.num_rounds=20", "checkpoint.every_rounds=5"]
    with start("action=train", f"dataset={run}", *options) as job:
        assert job.wait() == 0, job.output()
    metrics = job.result()["metrics"]
    # Half of the median's error would still be a poor model.
    assert metrics["rmse"] < 0.5 * metrics["rmse_of_median"]
    assert metrics["test_rows"] == features(run).filter(pl.col("split_id") == 2).height
    assert [e["step"] for e in job.events() if e["event"] == "round"] == [5, 10, 15, 20]
    alone = rmse_of_one_process(run, metrics["rounds"])
    assert metrics["rmse"] == pytest.approx(alone, rel=0.01)
    bundle = read_bundle(tmp_path / "runs" / "model" / "bundle")
    fitted = run / manifest_of(run)["attempt"] / "preprocessor.json"
    assert bundle.preprocessor == json.loads(fitted.read_text())

    source = tmp_path / "published"
    publish(source)
    with start("action=score", f"data.path={source}/*.parquet", "run.name=scores") as job:
        assert job.wait() == 0, job.output()
    check_scored(job.result(), tmp_path / "runs" / "scores", job.events())


def publish(directory: Path) -> None:
    """Two files in the form of the published ones; of the trips of the second no end is known."""
    directory.mkdir()
    rows = trips.generate(trips.FileSpec(0, 9000, 0.01, "parquet", 1))
    narrow = dict.fromkeys(("VendorID", "PULocationID", "DOLocationID"), pl.Int32)
    rows = rows.with_columns(pl.col(PICKUP, DROPOFF).cast(pl.Datetime("ns")))
    rows = rows.with_columns(pl.col(name).cast(kind) for name, kind in narrow.items())
    rows[:6000].write_parquet(directory / "yellow_tripdata_2024-01.parquet")
    rows[6000:].drop(DROPOFF, "fare_amount").write_parquet(directory / "yesterday.parquet")


def run_of(job: Job) -> Path:
    return Path(job.result()["artifacts"]["run"])


def check_prepared(result: dict[str, Any], run: Path) -> None:
    expected, metrics = truth(), result["metrics"]
    assert result["status"] == "ok"
    assert metrics["quarantine_by_reason"] == expected["reasons"]
    assert metrics["rows_in"] == expected["rows"]
    assert metrics["rows_in"] == metrics["rows_out"] + metrics["rows_quarantined"]
    assert metrics["files_quarantined"] == 1
    assert metrics["rows_per_s"] > 0
    assert metrics["peak_rss_mb"] > 100
    manifest = manifest_of(run)
    names = [Path(f["uri"]).name for f in manifest["unreadable"]]
    assert names == expected["unreadable"]
    rows, rejected = features(run), quarantine(run)
    assert rows.height == metrics["rows_out"]
    assert rejected.height == metrics["rows_quarantined"]
    # Every row of every readable file is in exactly one of the two.
    uris = [source["uri"] for source in manifest["sources"]]
    numbers = pl.DataFrame({"source_file": uris, "file": range(len(uris))})
    gone = rejected.join(numbers, on="source_file").select("file", "row")
    found = pl.concat([rows.select(pl.col("file").cast(pl.Int64), "row"), gone]).sort("file", "row")
    assert found.is_unique().all()
    per_file = dict(found.group_by("file").len().iter_rows())
    assert sorted(per_file.values()) == [400, 400, 10_000, 10_000, 10_000, 10_000]
    # Quarantine keeps the row as it was read.
    speed = rejected.filter(pl.col("reason") == "impossible_speed")["record"][0]
    assert '"trip_distance":40.0' in speed


def test_killed_job_goes_on_and_loses_or_doubles_no_row(start: StartJob, tmp_path: Path, calm: Job):
    with start(*SMALL, "run.name=hurt") as job:
        job.wait_for_event(lambda e: e["event"] == "unit" and e["stage"] == "scan")
        job.remember_family()
        job.process.send_signal(signal.SIGKILL)
        job.process.wait()
    assert not (tmp_path / "runs" / "hurt" / "manifest.json").exists()
    wait_for(lambda: not job.survivors_but_agents(), "end of the killed job's processes")
    with start(*SMALL, "run.name=hurt") as again:
        assert again.wait() == 0, again.output()
    assert "resuming" in again.output()
    units = [e for e in again.events() if e["event"] == "unit"]
    assert len([e for e in units if e["stage"] == "scan"]) < NUM_UNITS
    assert {e["unit"] for e in units if e["stage"] == "done"} <= set(range(NUM_UNITS))
    assert features(tmp_path / "runs" / "hurt").equals(features(run_of(calm)))
    counted = ("rows_in", "rows_out", "rows_quarantined", "quarantine_by_reason", "rows_by_split")
    found, expected = again.result()["metrics"], calm.result()["metrics"]
    assert {k: found[k] for k in counted} == {k: expected[k] for k in counted}


def rmse_of_one_process(run: Path, rounds: int) -> float:
    """What XGBoost reaches in this process with the same rows."""
    rows, names = features(run), manifest_of(run)["features"]
    train, test = (rows.filter(pl.col("split_id") == split) for split in (0, 2))
    matrix = xgb.QuantileDMatrix(train.select(names).to_numpy(), train[LABEL].to_numpy())
    params = {"tree_method": "hist", "max_depth": 8, "eta": 0.2}
    model = xgb.train(params, matrix, rounds)
    predicted = model.inplace_predict(test.select(names).to_numpy())
    return float(np.sqrt(np.mean(np.square(test[LABEL].to_numpy() - predicted))))


def check_scored(result: dict[str, Any], run: Path, events: list[dict[str, Any]]) -> None:
    metrics, manifest = result["metrics"], manifest_of(run)
    # What is wrong with the end of a trip is no reason not to predict it.
    broken = trips.broken_rows(trips.FileSpec(0, 9000, 0.01, "parquet", 1))
    expected = Counter(why for why in broken.values() if why in BEFORE)
    assert metrics["rows_in"] == 9000
    assert metrics["quarantine_by_reason"] == expected
    files = [run / manifest["attempt"] / file["path"] for file in manifest["files"]]
    scored = pl.concat(pl.read_parquet(file) for file in files)
    assert scored.height == metrics["rows_out"] == 9000 - expected.total()
    assert scored.select("file", "row").is_unique().all()
    assert quarantine(run).height == expected.total()
    known = scored.drop_nulls(LABEL)
    in_first_file = [why for row, why in broken.items() if row < 6000]
    assert known.height == 6000 - len(in_first_file)
    errors = known["predicted_min"].cast(pl.Float64) - known[LABEL]
    assert metrics["rmse"] == pytest.approx(float((errors * errors).mean()) ** 0.5)  # type: ignore[arg-type]
    # 20 rounds on 27,000 rows: about half of what the mean alone would be wrong by.
    assert metrics["rmse"] < 0.6 * float(known[LABEL].std())  # type: ignore[arg-type]
    # Two actors have loaded the model, and shared the units.
    assert 1 <= len({e["pid"] for e in events if e["event"] == "unit"}) <= 2
