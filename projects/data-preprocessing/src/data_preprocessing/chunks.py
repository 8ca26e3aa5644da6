"""What a task does with each chunk of its unit: check, quarantine, count, split by time."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
from ray_shared.storage import Storage

from data_preprocessing import output, reading
from data_preprocessing.config import SplitConfig
from data_preprocessing.contract import PICKUP, REASONS, check
from data_preprocessing.features import TRACE, count, days, histograms, row
from data_preprocessing.output import SPLITS, Attempt
from data_preprocessing.reading import Unit
from data_preprocessing.zones import zone_ids


@dataclass(frozen=True)
class Work:
    """What every task of a run needs to know."""

    units: dict[int, Unit]
    source: Storage
    """Any directory of the input's filesystem."""
    attempt: Attempt
    zones: dict[int, str]
    """The borough of each zone."""


def checked_chunks(
    unit: Unit, work: Work, before: bool = False
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Each chunk of a unit, as read and as checked (see `check`), with the columns of `TRACE`."""
    zones = zone_ids(work.zones)
    for first_row, chunk in reading.read_chunks(unit, work.source.filesystem):
        position = pl.int_range(first_row, first_row + chunk.height, dtype=pl.Int64)
        file = pl.lit(unit.file.index, pl.Int32)
        checked = check(chunk, zones, before)
        yield chunk, checked.with_columns(file.alias(TRACE[0]), position.alias(TRACE[1]))


def quarantine(
    chunk: pl.DataFrame, checked: pl.DataFrame, unit: Unit, number: int, work: Work
) -> pl.DataFrame:
    """Writes a chunk's bad rows with reason, file, position in it, and the values as read.

    Returns:
        Those of `checked` that are bad.
    """
    broken = checked["reason"].is_not_null()
    rejected = checked.filter(broken)
    if rejected.height:
        record = pl.DataFrame({"record": ["{}"] * rejected.height})  # Of a file without columns.
        if chunk.width:
            values = pl.struct(pl.all()).struct.json_encode()
            record = chunk.filter(broken).select(values.alias("record"))
        kept = rejected.select("reason", pl.lit(unit.file.uri).alias("source_file"), "row")
        name = f"quarantine/{unit.name}-{number:04d}.parquet"
        output.write_parquet(work.attempt.directory.child(name), kept.hstack(record))
    return rejected


def chunk_statistics(
    chunk: pl.DataFrame, rejected: pl.DataFrame, accepted: pl.DataFrame, split: SplitConfig
) -> list[pl.DataFrame]:
    """Rows read, by reason, split and day, the report's bins, and what the fit needs of training.

    Args:
        chunk: As read.
        rejected: Those of its rows that break the contract, with `reason`.
        accepted: The others, derived.
        split: Which rows are for training.
    """
    found = [row("read", 0, chunk.height), histograms(accepted), days(accepted)]
    counts = rejected["reason"].value_counts().iter_rows()
    found += [row("reason", REASONS.index(reason), n) for reason, n in counts]
    for name, chosen in splits(split).items():
        part = accepted.filter(chosen)
        found.append(row("split", SPLITS.index(name), part.height))
        if name == "train":
            found.append(count(part))
    return found


def splits(split: SplitConfig) -> dict[str, pl.Expr]:
    """Which rows are in which split: what was picked up before `val_from` is for training."""
    day = pl.col(PICKUP)
    val_from, test_from = (pl.lit(d).str.to_datetime() for d in (split.val_from, split.test_from))
    return {
        "train": day < val_from,
        "val": (day >= val_from) & (day < test_from),
        "test": day >= test_from,
    }
