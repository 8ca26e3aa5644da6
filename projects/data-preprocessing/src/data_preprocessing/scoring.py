"""Predictions for raw trips: batch inference with an actor pool.

Loading a model costs more than a batch of predictions, so each actor of the pool loads it once and
then scores unit after unit. When an actor dies, Ray starts another one and repeats its unit, which
writes the same file again.

    python -m data_preprocessing action=score

Source: https://docs.ray.io/en/releases-2.60.0/data/batch_inference.html
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import ray
import xgboost as xgb
from ray_shared.bundle import read_bundle
from ray_shared.report import Report, show_artifacts, show_table
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage

from data_preprocessing import output, pipeline, reading, results
from data_preprocessing.config import PROJECT, Config
from data_preprocessing.features import LABEL, TRACE, Preprocessor, derive
from data_preprocessing.pipeline import Row, Work
from data_preprocessing.reading import UnreadableFileError
from data_preprocessing.zones import load_zones


def score(config: Config, report: Report) -> None:
    """`action=score`: predictions for raw trips, on the connected cluster; fills `report`."""
    # Here, because the tasks import this module, too, and Ray Train takes seconds.
    from ray_shared.tracking import Tracker

    name = run_name(config.run, PROJECT)
    run_dir = open_storage(config.storage.path).child(name)
    bundle = output.find_bundle(config)
    record_run(run_dir, config.locked())
    tracker = Tracker(config.tracking, report.output_dir, PROJECT, name)
    tracker.start(report.config)
    pipeline.configure()
    with results.recorded(tracker, report, run_dir), report.timed("job_s"):
        files, source = pipeline.find_input(config, run_dir)
        units, unreadable = reading.cut(files, source.filesystem, config.data.rows_per_unit)
        settings = config.locked() | {"bundle": bundle.uri}
        attempt, resumed = output.open_attempt(run_dir, output.plan_of(files, units, settings))
        results.show_plan(run_dir, files, units, resumed)
        zones = load_zones(config.data.zones)
        work = Work({u.index: u for u in units}, source, attempt, zones, "", "")

        actors = {
            "fn_constructor_kwargs": {"work": work, "bundle": bundle},
            "compute": ray.data.ActorPoolStrategy(size=config.score.num_actors),
            # Less than a CPU each, so that there is room for whatever else Ray Data runs.
            "num_cpus": config.score.cpus_per_actor,
        }
        pipeline.run_stage("scored", Scorer, units, work, tracker, report, **actors)
        written = [attempt.read_json(f"scored/{unit.name}.json") for unit in units]
        counts = {key: sum(w[key] for w in written) for key in ("rows_in", "rows_out", "squares")}
        rmse = (counts.pop("squares") / max(counts["rows_out"], 1)) ** 0.5
        rejected = counts["rows_in"] - counts["rows_out"]
        report.metrics |= counts | {"rows_quarantined": rejected, "rmse": rmse}
        report.metrics["files_quarantined"] = len(unreadable) + sum("why" in w for w in written)
        paths = [w["file"] for w in written if w["file"] is not None]
        content = {"kind": "predictions", "rows": report.metrics, "files": paths}
        report.artifacts |= {"bundle": bundle.uri, "manifest": output.commit(attempt, content).uri}
        show_result(report)


class Scorer:
    """An actor that holds a model."""

    def __init__(self, work: Work, bundle: Storage):
        with tempfile.TemporaryDirectory() as directory:
            bundle.download(Path(directory))
            described = read_bundle(Path(directory))
            self.model = xgb.Booster(model_file=Path(directory) / described.model["file"])
        self.model.set_param({"nthread": 1})
        self.preprocessor = Preprocessor(described.preprocessor)
        self.work = work

    def __call__(self, row: Row) -> Row:
        """Scores one unit; returns what there was to count."""
        unit = self.work.units[row["unit"]]

        def run() -> Row:
            rows, tables = 0, []
            for _, checked in pipeline.checked_chunks(unit, self.work):
                rows += checked.height
                accepted = checked.filter(pl.col("reason").is_null())
                tables.append(self.predict(derive(accepted, self.work.zones.table)))
            predictions = pl.concat(tables)
            path = f"predictions/{unit.name}.parquet"
            written = output.write_parquet(self.work.attempt.directory.child(path), predictions)
            errors = predictions["predicted_min"].cast(pl.Float64) - predictions[LABEL]
            told: Row = {"rows_in": rows, "rows_out": predictions.height}
            told |= {"squares": float((errors * errors).sum()), "file": {"path": path, **written}}
            self.work.attempt.write_json(f"scored/{unit.name}.json", told)
            bad = rows - predictions.height
            return {"unit": unit.index, "rows": rows, "bad": bad, "pid": os.getpid()}

        try:
            return output.told(run)
        except UnreadableFileError as error:
            nothing = {"rows_in": 0, "rows_out": 0, "squares": 0.0, "file": None}
            self.work.attempt.write_json(f"scored/{unit.name}.json", nothing | {"why": str(error)})
            found = {"unit": unit.index, "rows": 0, "bad": 0, "pid": os.getpid()}
            return found | {"failed": None}

    def predict(self, derived: pl.DataFrame) -> pl.DataFrame:
        """Where each row comes from, how long the trip took, and how long the model says."""
        features = self.preprocessor.transform(derived).to_numpy()
        predicted = pl.Series("predicted_min", self.model.inplace_predict(features), pl.Float32)
        return derived.select(*TRACE, LABEL).with_columns(predicted)


def show_result(report: Report) -> None:
    """The final table, and where everything was written."""
    m = report.metrics
    rows: dict[str, Any] = {
        "rows scored": f"{m['rows_out']:,} of {m['rows_in']:,}",
        "break the contract": f"{m['rows_quarantined']:,}",
        "unreadable files": m["files_quarantined"],
        "RMSE, minutes": f"{m['rmse']:.3f}",
    }
    show_table(report.project, rows)
    show_artifacts(report)
