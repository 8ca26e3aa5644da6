"""What the tests count, and where it is found."""

from pathlib import Path
from typing import Any

import polars as pl
from data_preprocessing import output, trips
from ray_shared.storage import open_storage

# 40,000 trips in 4 files, and the three small broken ones; one is unreadable, the others are units.
SMALL = ["data.num_rows=40000", "data.num_files=4"]
NUM_UNITS = 6
BEFORE = ("missing_column", "missing_value", "out_of_range", "unknown_zone")
"""Of the reasons of generated rows: what can be wrong before a trip."""


def truth(num_rows: int = 40_000, num_files: int = 4, kind: str = "parquet") -> dict[str, Any]:
    """What is wrong with the generated trips, by their generator."""
    return trips.truth(trips.specs(num_rows, num_files, 0.01, kind, 0))


def manifest_of(run: Path) -> dict[str, Any]:
    """The manifest of a finished run."""
    manifest = output.read_manifest(open_storage(str(run)))
    assert manifest is not None
    return manifest


def features(run: Path) -> pl.DataFrame:
    """All rows that the run's manifest names, sorted by where they come from."""
    directory = open_storage(str(run))
    files = [
        file
        for split in output.SPLITS
        for file in output.feature_files(directory, manifest_of(run), split)
    ]
    rows = pl.concat(pl.read_parquet(file, hive_partitioning=False) for file in files)
    return rows.sort("file", "row")


def quarantine(run: Path) -> pl.DataFrame:
    """All rows in the run's quarantine, sorted by where they come from."""
    manifest = manifest_of(run)
    files = [run / manifest["attempt"] / file["path"] for file in manifest["quarantine"]]
    return pl.concat(pl.read_parquet(file) for file in files).sort("source_file", "row")
