"""Predictions for raw trips: batch inference with an actor pool.

Loading a model costs more than a batch of predictions, so each actor of the pool loads it once and
then scores unit after unit. When an actor dies, Ray starts another one and repeats its unit, which
writes the same file again.

    python -m data_preprocessing action=score

Source: https://docs.ray.io/en/releases-2.60.0/data/batch_inference.html
"""

import math
import os
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
import ray
import xgboost as xgb
from ray_shared.bundle import read_bundle
from ray_shared.report import Report
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage

from data_preprocessing import earlier, output, pipeline, reading, results
from data_preprocessing.chunks import Work, checked_chunks, quarantine
from data_preprocessing.config import PROJECT, Config
from data_preprocessing.contract import check
from data_preprocessing.features import LABEL, TRACE, Preprocessor, derive
from data_preprocessing.pipeline import Row
from data_preprocessing.quality import check_quality
from data_preprocessing.reading import InputFile, Unit, UnreadableFileError
from data_preprocessing.zones import zone_ids


def score(config: Config, report: Report) -> None:
    """`action=score`: predictions for raw trips, on the connected cluster; fills `report`.

    Raises:
        UserError: If nothing can be made of the input, or the disk is full.
        JobError: If too much of the input breaks the contract.
    """
    # Here, because the tasks import this module, too, and Ray Train takes seconds.
    from ray_shared.tracking import Tracker

    name = run_name(config.run, PROJECT)
    run_dir = open_storage(config.storage.path).child(name)
    bundle, described = earlier.find_bundle(config)
    locked = earlier.locked(config)
    record_run(run_dir, locked)
    tracker = Tracker(config.tracking, report.output_dir, PROJECT, name)
    tracker.start(report.config)
    pipeline.configure()
    with results.recorded(tracker, report, run_dir), report.timed("job_s"):
        files, source = pipeline.find_input(config, run_dir)
        units, unreadable = reading.cut(files, source.filesystem, config.data.rows_per_unit)
        attempt, resumed = output.open_attempt(run_dir, output.plan_of(files, units, locked))
        results.show_plan(run_dir, files, units, resumed)
        zones = {int(z): borough for z, borough in described.preprocessor["zones"].items()}
        work = Work({unit.index: unit for unit in units}, source, attempt, zones)
        actors = {
            "fn_constructor_kwargs": {"work": work, "bundle": bundle},
            "compute": ray.data.ActorPoolStrategy(size=config.score.num_actors),
            # Less than a CPU each, so that there is room for whatever else Ray Data runs.
            "num_cpus": config.score.cpus_per_actor,
        }
        pipeline.Stages(config, work, tracker, report).run("scored", Scorer, units, **actors)
        finish(config, work, unreadable, report)
        report.artifacts["bundle"] = bundle.uri
        show_result(report)


def finish(
    config: Config, work: Work, unreadable: list[tuple[InputFile, str]], report: Report
) -> None:
    """Adds up what the units say, judges the input, and makes the attempt the run's output."""
    units, attempt = list(work.units.values()), work.attempt
    told = {unit: attempt.read_json(f"scored/{unit.name}.json") for unit in units}
    damaged = {unit.file: t["unreadable"] for unit, t in told.items() if "unreadable" in t}
    unreadable = [*unreadable, *damaged.items()]
    # Of a file that turned out to be damaged, what was read before does not count either.
    good = [unit for unit in units if unit.file not in damaged]
    reasons = Counter[str]()
    for unit in good:
        reasons.update(told[unit]["reasons"])
    rows_in, rows_out, known = (sum(told[u][key] for u in good) for key in ("in", "out", "known"))
    counts = results.Counts(dict(reasons), {"scored": rows_out}, unreadable, rows_in)
    report.metrics |= counts.metrics()
    check_quality(config, counts)
    written = [file for unit in good for file in told[unit]["files"]]
    rejected = output.quarantine_files(good, attempt)
    results.check_balance(counts, written, rejected)
    if known:
        report.metrics["rmse"] = math.sqrt(sum(told[u]["squares"] for u in good) / known)
    content = {
        "kind": "predictions",
        "rows": report.metrics,
        "files": written,
        "quarantine": rejected,
        "unreadable": results.named(unreadable),
    }
    report.artifacts["manifest"] = output.commit(attempt, content).uri


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
        found = {"unit": unit.index, "rows": 0, "bad": 0, "pid": os.getpid()}

        def run() -> Row:
            told = self.score(unit)
            self.work.attempt.write_json(f"scored/{unit.name}.json", told)
            return found | {"rows": told["in"], "bad": told["in"] - told["out"]}

        try:
            return output.told(run)
        except UnreadableFileError as error:
            self.work.attempt.write_json(f"scored/{unit.name}.json", {"unreadable": str(error)})
            return found | {"failed": None}

    def score(self, unit: Unit) -> Row:
        """Writes the predictions of a unit, chunk by chunk.

        Returns:
            Rows `in` and `out`; `reasons` of the others; `squares` of the errors, in square
            minutes, of the rows whose duration is `known`; and the `files` written.
        """
        told: Row = {"in": 0, "out": 0, "known": 0, "squares": 0.0, "reasons": {}, "files": []}
        reasons = Counter[str]()
        for number, (chunk, checked) in enumerate(checked_chunks(unit, self.work, before=True)):
            rejected = quarantine(chunk, checked, unit, number, self.work)
            reasons.update(rejected["reason"].to_list())
            # Whether all of the contract is kept: an end that cannot be true says nothing.
            plausible = check(chunk, zone_ids(self.work.zones))["reason"].is_null()
            checked = checked.with_columns(plausible=plausible)
            scored = self.predict(derive(checked.filter(pl.col("reason").is_null())))
            told["in"], told["out"] = told["in"] + chunk.height, told["out"] + scored.height
            if scored.height:
                path = f"predictions/{unit.name}-{number:04d}.parquet"
                file = self.work.attempt.directory.child(path)
                told["files"].append({"path": path, **output.write_parquet(file, scored)})
            errors = (scored["predicted_min"].cast(pl.Float64) - scored[LABEL]).drop_nulls()
            told["known"] += errors.len()
            told["squares"] += float((errors * errors).sum())
        return told | {"reasons": dict(reasons)}

    def predict(self, derived: pl.DataFrame) -> pl.DataFrame:
        """Where each row comes from, how long the trip took, if that is known, and the prediction.

        Args:
            derived: With `plausible`: whether the end of the trip can be true.
        """
        features = self.preprocessor.transform(derived).to_numpy()
        predicted = pl.Series("predicted_min", self.model.inplace_predict(features), pl.Float32)
        known = pl.when("plausible").then(LABEL).alias(LABEL)
        return derived.select(*TRACE, known).with_columns(predicted)


def show_result(report: Report) -> None:
    """The final table, and where everything was written."""
    m = report.metrics
    rows: dict[str, object] = {
        "rows scored": f"{m['rows_out']:,} of {m['rows_in']:,}",
        "in quarantine": f"{m['rows_quarantined']:,}",
        "unreadable files": m["files_quarantined"],
    }
    if "rmse" in m:
        rows["RMSE, minutes"] = f"{m['rmse']:.3f}"
    report.show(rows)
