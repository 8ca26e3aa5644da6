"""Raw trips to features with Ray Data: the file to read.

The input is cut into *units* of some hundred thousand rows. A Ray Data dataset holds one row for
each unit, and its tasks do the work: what travels through Ray is where to read, and what was
counted; the trips themselves stay in the task that reads them. So memory depends on the size of a
unit, not of the input. There are two passes, because a feature such as a zone's mean needs all
training rows before the first row can have it:

1. `scan` checks each row, writes those that break the contract to quarantine, and counts.
2. `transform` reads again, and writes the features of the rows that keep the contract.

Each unit that is done leaves a file. A job that was killed goes on with the others when it is
started again, and since a unit writes the same files whenever it is done, no row is there twice.

    python -m data_preprocessing data.num_rows=2000000

Source: https://docs.ray.io/en/releases-2.60.0/data/transforming-data.html and
https://docs.ray.io/en/releases-2.60.0/data/execution-configurations.html
"""

import functools
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import ray
from ray_shared.report import Report
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage

from data_preprocessing import earlier, output, reading, results, trips
from data_preprocessing.chunks import (
    Work,
    checked_chunks,
    chunk_statistics,
    quarantine,
    splits,
)
from data_preprocessing.config import PROJECT, RAY_DEFAULTS, Config, SplitConfig
from data_preprocessing.contract import PICKUP
from data_preprocessing.features import LABEL, TRACE, Preprocessor, add_up, derive
from data_preprocessing.output import SPLITS, Attempt
from data_preprocessing.quality import check_quality, check_splits, write_page
from data_preprocessing.reading import Unit, UnreadableFileError
from data_preprocessing.zones import load_zones

if TYPE_CHECKING:
    from ray_shared.tracking import Tracker

logger = logging.getLogger(__name__)
Row = dict[str, Any]


def prepare(config: Config, report: Report) -> None:
    """`action=prepare`: from raw files to features, on the connected cluster; fills `report`.

    Raises:
        UserError: If nothing can be made of the input, or the disk is full.
        JobError: If too much of the input breaks the contract.
    """
    # Here, because the tasks import this module, too, and Ray Train takes seconds.
    from ray_shared.tracking import Tracker

    name = run_name(config.run, PROJECT)
    run_dir = open_storage(config.storage.path).child(name)
    record_run(run_dir, earlier.locked(config))
    tracker = Tracker(config.tracking, report.output_dir, PROJECT, name)
    tracker.start(report.config)
    configure()
    with results.recorded(tracker, report, run_dir), report.timed("job_s"):
        files, source = find_input(config, run_dir)
        units, unreadable = reading.cut(files, source.filesystem, config.data.rows_per_unit)
        zones, split, features = load_zones(config.data.zones), config.split, config.features
        settings = {"zones": zones, "split": asdict(split), "features": asdict(features)}
        plan = output.plan_of(files, units, config.locked() | settings)
        attempt, resumed = output.open_attempt(run_dir, plan)
        results.show_plan(run_dir, files, units, resumed)
        work = Work({unit.index: unit for unit in units}, source, attempt, zones)
        stage = Stages(config, work, tracker, report)

        stage.run("scan", scan, units, **each_cpu(work=work, split=split))
        statistics, damaged = output.collect(units, attempt)
        unreadable += [(files[i], why) for i, why in sorted(damaged.items())]
        counts = results.Counts.of(statistics, unreadable)
        report.metrics |= counts.metrics()
        check_quality(config, counts)
        check_splits(config, counts, statistics)
        preprocessor = Preprocessor.fit(statistics, zones, features)
        attempt.directory.child("preprocessor.json").write_atomically(preprocessor.to_json())

        good = [unit for unit in units if unit.file.index not in damaged]
        options = each_cpu(work=work, split=split, preprocessor=preprocessor)
        stage.run("done", transform, good, **options)
        manifest = finish(attempt, good, files, counts, preprocessor)
        page = write_page(report.output_dir, counts, statistics, files)
        report.artifacts |= {"manifest": manifest.uri, "quality": str(page)}
        results.show_result(report, counts)


def configure() -> None:
    """Keeps Ray Data's own progress off the console; ours says what a person wants to know."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Units are done in whatever order; one that is slow holds nobody up.
    context.execution_options.preserve_order = False
    # It would also warn that the progress bars are off.
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def find_input(config: Config, run_dir: Storage) -> tuple[list[reading.InputFile], Storage]:
    """The input files, generated first if there is no `data.path`."""
    data = config.data
    if data.path is not None:
        return reading.find_files(data.path), open_storage(data.path)
    directory = run_dir.child("input")
    specs = trips.specs(data.num_rows, data.num_files, data.broken_fraction, data.format, data.seed)
    there = set(directory.names())
    missing = [{"file": spec.index} for spec in specs if spec.name not in there]
    if missing:
        logger.info("generating %s trips in %s", f"{data.num_rows:,}", directory.uri)
        dataset = ray.data.from_items(missing, override_num_blocks=len(missing)).map(
            functools.partial(generate, specs=specs, directory=directory), num_cpus=1
        )
        with results.task_errors():
            for done in dataset.iter_rows():
                results.raise_if_failed(done)
    return reading.find_files(directory.uri), directory


def generate(row: Row, specs: list[trips.FileSpec], directory: Storage) -> Row:
    """One file of generated trips; runs in a task."""
    spec = specs[row["file"]]

    def run() -> Row:
        trips.write(spec, directory)
        return {"rows": spec.num_rows}

    return output.told(run)


@dataclass(frozen=True)
class Stages:
    """Does units of work, one stage after the other."""

    config: Config
    work: Work
    tracker: "Tracker"
    """Gets an event for each unit."""
    report: Report
    """Gets the statistics of each execution."""

    def run(self, stage: str, task: Any, units: list[Unit], **options: Any) -> None:
        """Does the units that are not done yet, as a Ray Data dataset with one row for each.

        Args:
            stage: The journal: the attempt's folder in which a unit leaves a file when it is done.
            task: What to do with a unit, called with a row of the dataset; or a class, an actor's.
            units: All units of the stage.
            options: How Ray Data is to run it, see `Dataset.map`.

        Raises:
            JobError: If a unit failed. One that kills its process is repeated without end: Ray Data
                is about to take away the means to limit that.
        """
        done = self.work.attempt.finished(stage)
        todo = [{"unit": unit.index} for unit in units if unit.name not in done]
        progress = results.Progress(stage, len(units), len(units) - len(todo))
        if not todo:
            return
        if self.config.cluster.mode == "existing":
            # On a cluster that this job has not started, processes do not inherit it.
            options["runtime_env"] = {"env_vars": RAY_DEFAULTS}
        dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(task, **options)
        with results.task_errors():
            for finished in dataset.iter_rows():
                results.raise_if_failed(finished)
                self.tracker.log({"event": "unit", "stage": stage, **finished})
                progress.add(finished)
        results.save_statistics(dataset, stage, self.report)


def each_cpu(**arguments: Any) -> dict[str, Any]:
    """How `Stages` runs a task with arguments: one for each CPU, as each has one thread."""
    return {"fn_kwargs": arguments, "num_cpus": 1}


def scan(row: Row, work: Work, split: SplitConfig) -> Row:
    """First pass over a unit: the rows that break the contract, and what the others add up to."""
    unit = work.units[row["unit"]]

    def run() -> Row:
        found, rows, bad = [], 0, 0
        for number, (chunk, checked) in enumerate(checked_chunks(unit, work)):
            rejected = quarantine(chunk, checked, unit, number, work)
            accepted = derive(checked.filter(pl.col("reason").is_null()))
            found += chunk_statistics(chunk, rejected, accepted, split)
            rows, bad = rows + chunk.height, bad + rejected.height
        file = work.attempt.directory.child("scan").child(f"{unit.name}.parquet")
        output.write_parquet(file, add_up(found))
        return {"unit": unit.index, "rows": rows, "bad": bad}

    try:
        return output.told(run)
    except UnreadableFileError as error:
        work.attempt.write_json(f"scan/{unit.name}.json", {"unreadable": str(error)})
        return {"unit": unit.index, "rows": 0, "bad": 0, "failed": None}


def transform(row: Row, work: Work, split: SplitConfig, preprocessor: Preprocessor) -> Row:
    """Second pass over a unit: the features of the rows that keep the contract."""
    unit = work.units[row["unit"]]

    def run() -> Row:
        files, rows = [], 0
        for number, (_, checked) in enumerate(checked_chunks(unit, work)):
            derived = derive(checked.filter(pl.col("reason").is_null()))
            head = derived.select(*TRACE, PICKUP, pl.col(LABEL).cast(pl.Float32))
            table = head.hstack(preprocessor.transform(derived))
            for name, chosen in splits(split).items():
                split_id = pl.lit(SPLITS.index(name), pl.Int8).alias("split_id")
                part = table.filter(chosen).select(*TRACE, split_id, pl.exclude(TRACE))
                if part.height:
                    path = f"features/split={name}/{unit.name}-{number:04d}.parquet"
                    written = output.write_parquet(work.attempt.directory.child(path), part)
                    files.append({"path": path, **written})
                    rows += part.height
        work.attempt.write_json(f"done/{unit.name}.json", files)
        return {"unit": unit.index, "rows": rows, "bad": 0}

    return output.told(run)


def finish(
    attempt: Attempt,
    units: list[Unit],
    files: list[reading.InputFile],
    counts: results.Counts,
    preprocessor: Preprocessor,
) -> Storage:
    """Checks that no row was lost or doubled, and makes the attempt the run's output."""
    written = [file for unit in units for file in attempt.read_json(f"done/{unit.name}.json")]
    rejected = output.quarantine_files(units, attempt)
    results.check_balance(counts, written, rejected)
    schema = dict.fromkeys((LABEL, *preprocessor.features), "float32")
    content = {
        "kind": "features",
        "rows": counts.metrics(),
        "schema": {
            "file": "int32",
            "row": "int64",
            "split_id": "int8",
            PICKUP: "timestamp[us]",
            **schema,
        },
        "features": preprocessor.features,
        "label": LABEL,
        "files": written,
        "quarantine": rejected,
        "sources": [{"uri": f.uri, "size": f.size, "modified": f.modified} for f in files],
        "unreadable": results.named(counts.unreadable),
    }
    return output.commit(attempt, content)
