"""What the tests count, and where it is found."""

from pathlib import Path
from typing import Any

import polars as pl
from data_preprocessing import output, trips
from ray_shared.storage import open_storage

SMALL = ["data.num_rows=40000", "data.num_files=4", "data.rows_per_unit=5000"]


def truth(num_rows: int, num_files: int, kind: str = "parquet") -> dict[str, Any]:
    """What is wrong with the generated trips, by their generator."""
    return trips.truth(trips.specs(num_rows, num_files, 0.01, kind, 0))


def features(run: Path) -> pl.DataFrame:
    """All rows that the run's manifest names, with their split, sorted by where they come from."""
    directory = open_storage(str(run))
    manifest = output.read_manifest(directory)
    assert manifest is not None
    parts = []
    for split in output.SPLITS:
        files = output.feature_files(directory, manifest, split)
        parts += [pl.read_parquet(f, hive_partitioning=False).with_columns(split=pl.lit(split)) for f in files]
    return pl.concat(parts).sort("file", "row")


def quarantine(run: Path) -> pl.DataFrame:
    """All rows in the run's quarantine, sorted by where they come from."""
    manifest = output.read_manifest(open_storage(str(run)))
    assert manifest is not None
    files = [run / manifest["attempt"] / name for name in manifest["quarantine"]]
    return pl.concat(pl.read_parquet(file) for file in files).sort("source_file", "row")
