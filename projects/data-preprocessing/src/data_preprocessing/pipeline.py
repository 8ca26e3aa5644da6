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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import ray
from ray_shared.report import Report
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage

from data_preprocessing import output, reading, results, trips
from data_preprocessing.config import PROJECT, Config
from data_preprocessing.contract import PICKUP, REASONS, check
from data_preprocessing.features import (
    LABEL,
    TRACE,
    Preprocessor,
    add_up,
    count,
    derive,
    histograms,
    row,
)
from data_preprocessing.output import SPLITS, Attempt
from data_preprocessing.quality import check_quality, write_page
from data_preprocessing.reading import Unit, UnreadableFileError
from data_preprocessing.zones import Zones, load_zones

if TYPE_CHECKING:
    from ray_shared.tracking import Tracker

logger = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What every task of a run needs to know."""

    units: dict[int, Unit]
    source: Storage
    """Any directory of the input's filesystem."""
    attempt: Attempt
    zones: Zones
    val_from: str
    test_from: str


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
    record_run(run_dir, config.locked())
    tracker = Tracker(config.tracking, report.output_dir, PROJECT, name)
    tracker.start(report.config)
    configure()
    with results.recorded(tracker, report, run_dir), report.timed("job_s"):
        files, source = find_input(config, run_dir)
        units, unreadable = reading.cut(files, source.filesystem, config.data.rows_per_unit)
        plan = output.plan_of(files, units, config.locked())
        attempt, resumed = output.open_attempt(run_dir, plan)
        results.show_plan(run_dir, files, units, resumed)
        split = config.split
        numbered = {unit.index: unit for unit in units}
        zones = load_zones(config.data.zones)
        work = Work(numbered, source, attempt, zones, split.val_from, split.test_from)

        run_stage("scan", scan, units, work, tracker, report, **each_cpu(work=work))
        statistics, damaged = output.collect(units, attempt)
        unreadable += [(files[i], why) for i, why in sorted(damaged.items())]
        counts = results.Counts.of(statistics, unreadable)
        report.metrics |= counts.metrics()
        check_quality(config, counts)
        preprocessor = Preprocessor.fit(statistics, zones.boroughs, config.features)
        attempt.directory.child("preprocessor.json").write_atomically(preprocessor.to_json())

        good = [unit for unit in units if unit.file.index not in damaged]
        options = each_cpu(work=work, preprocessor=preprocessor)
        run_stage("done", transform, good, work, tracker, report, **options)
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


def run_stage(
    stage: str,
    task: Any,
    units: list[Unit],
    work: Work,
    tracker: "Tracker",
    report: Report,
    **options: Any,
) -> None:
    """Does the units that are not done yet, as a Ray Data dataset with one row for each.

    Args:
        stage: The journal: the folder of the attempt in which a unit leaves a file when it is done.
        task: What to do with a unit, called with a row of the dataset; or a class, an actor's.
        units: All units of the stage.
        work: What the tasks need to know.
        tracker: Gets an event for each unit.
        report: Gets the statistics of the execution.
        options: How Ray Data is to run it, see `Dataset.map`.
    """
    done = work.attempt.finished(stage)
    todo = [{"unit": unit.index} for unit in units if unit.name not in done]
    progress = results.Progress(stage, len(units), len(units) - len(todo))
    if not todo:
        return
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(task, **options)
    for finished in dataset.iter_rows():
        results.raise_if_failed(finished)
        tracker.log({"event": "unit", "stage": stage, **finished})
        progress.add(finished)
    results.save_statistics(dataset, stage, report)


def each_cpu(**arguments: Any) -> dict[str, Any]:
    """How `run_stage` runs a task with arguments: one for each CPU, as each has one thread."""
    return {"fn_kwargs": arguments, "num_cpus": 1}


def scan(row: Row, work: Work) -> Row:
    """First pass over a unit: the rows that break the contract, and what the others add up to."""
    unit = work.units[row["unit"]]

    def run() -> Row:
        found, rows, bad = [], 0, 0
        for number, (chunk, checked) in enumerate(checked_chunks(unit, work)):
            broken = checked["reason"].is_not_null()
            rejected, accepted = checked.filter(broken), checked.filter(~broken)
            if rejected.height:
                name = f"{unit.name}-{number:04d}.parquet"
                file = work.attempt.directory.child("quarantine").child(name)
                output.write_parquet(file, quarantined(rejected, chunk.filter(broken), unit))
            accepted = derive(accepted, work.zones.table)
            found += chunk_statistics(rejected, accepted, work)
            rows, bad = rows + checked.height, bad + rejected.height
        file = work.attempt.directory.child("scan").child(f"{unit.name}.parquet")
        output.write_parquet(file, add_up(found))
        return {"unit": unit.index, "rows": rows, "bad": bad}

    try:
        return output.told(run)
    except UnreadableFileError as error:
        work.attempt.write_json(f"scan/{unit.name}.json", {"unreadable": str(error)})
        return {"unit": unit.index, "rows": 0, "bad": 0, "failed": None}


def checked_chunks(unit: Unit, work: Work) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Each chunk of a unit, as read and as checked, with the columns of `TRACE`."""
    for first_row, chunk in reading.read_chunks(unit, work.source.filesystem):
        position = pl.int_range(first_row, first_row + chunk.height, dtype=pl.Int64)
        file = pl.lit(unit.file.index, pl.Int32)
        checked = check(chunk, work.zones.ids)
        yield chunk, checked.with_columns(file.alias(TRACE[0]), position.alias(TRACE[1]))


def quarantined(rejected: pl.DataFrame, original: pl.DataFrame, unit: Unit) -> pl.DataFrame:
    """What quarantine keeps of rows: reason, file, position in it, and the values as read."""
    record = original.select(pl.struct(pl.all()).struct.json_encode().alias("record"))
    source = pl.lit(unit.file.uri).alias("source_file")
    return rejected.select("reason", source, "row").hstack(record)


def chunk_statistics(
    rejected: pl.DataFrame, accepted: pl.DataFrame, work: Work
) -> list[pl.DataFrame]:
    """Rows by reason and by split, bins of the report, and what the fit needs of training rows."""
    found = [histograms(accepted)]
    for reason, group in rejected.group_by("reason"):
        found.append(row("reason", REASONS.index(str(reason[0])), group.height))
    splits = split_by_time(accepted, work)
    found += [row("split", SPLITS.index(name), group.height) for name, group in splits.items()]
    return [*found, count(splits["train"])]


def split_by_time(accepted: pl.DataFrame, work: Work) -> dict[str, pl.DataFrame]:
    """Rows by split: what was picked up before `val_from` is for training, and so on."""
    day = pl.col(PICKUP)
    val_from, test_from = (pl.lit(d).str.to_datetime() for d in (work.val_from, work.test_from))
    return {
        "train": accepted.filter(day < val_from),
        "val": accepted.filter((day >= val_from) & (day < test_from)),
        "test": accepted.filter(day >= test_from),
    }


def transform(row: Row, work: Work, preprocessor: Preprocessor) -> Row:
    """Second pass over a unit: the features of the rows that keep the contract."""
    unit = work.units[row["unit"]]

    def run() -> Row:
        files, rows = [], 0
        for number, (_, checked) in enumerate(checked_chunks(unit, work)):
            accepted = checked.filter(pl.col("reason").is_null())
            derived = derive(accepted, work.zones.table)
            for split, part in split_by_time(derived, work).items():
                if part.height:
                    split_id = pl.lit(SPLITS.index(split), pl.Int8).alias("split_id")
                    head = part.select(*TRACE, split_id, PICKUP, pl.col(LABEL).cast(pl.Float32))
                    table = head.hstack(preprocessor.transform(part))
                    path = f"features/split={split}/{unit.name}-{number:04d}.parquet"
                    written = output.write_parquet(work.attempt.directory.child(path), table)
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
    rows_out = sum(file["rows"] for file in written)
    assert counts.rows_in == rows_out + counts.rows_quarantined, (counts, rows_out)
    quarantine = attempt.directory.child("quarantine")
    valid = {unit.name for unit in units}
    rejected = [name for name in quarantine.names() if name.rpartition("-")[0] in valid]
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
        "quarantine": [f"quarantine/{name}" for name in rejected],
        "sources": [{"uri": f.uri, "size": f.size, "modified": f.modified} for f in files],
        "unreadable": [{"uri": f.uri, "reason": why} for f, why in counts.unreadable],
    }
    return output.commit(attempt, content)
