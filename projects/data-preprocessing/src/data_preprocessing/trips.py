"""Generated trips: plausible, seeded, and broken in known ways.

They have the schema of New York's yellow-taxi files, so that a real one drops in; the zones, the
traffic and the trips themselves are made up. Some rows are broken on purpose, exactly one rule
each, and three files beside the others are broken as files; `truth` says how many of each, so that
a test can count what the pipeline finds.
"""

import io
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from ray_shared.storage import Storage

from data_preprocessing.contract import DROPOFF, PICKUP

NUM_ZONES = 265
BOROUGHS = ("Manhattan", "Brooklyn", "Queens", "Bronx", "Staten Island", "EWR")
FIRST_DAY = np.datetime64("2024-01-01T00:00:00", "us")
NUM_DAYS = 31
ROW_REASONS = (
    "missing_value",
    "out_of_range",
    "negative_fare",
    "dropoff_before_pickup",
    "impossible_speed",
    "unknown_zone",
    "wrong_type",  # Only where there are strings: in CSV and JSON lines.
)
FILE_FAULTS = ("truncated", "lacks_column", "extra_column")
SUFFIXES = {"parquet": ".parquet", "csv": ".csv", "jsonl": ".jsonl"}


@dataclass(frozen=True)
class FileSpec:
    """One file to generate."""

    index: int
    num_rows: int
    broken_fraction: float
    format: str
    """`parquet`, `csv` or `jsonl`."""
    seed: int
    fault: str | None = None
    """One of `FILE_FAULTS`, or null for a good file."""

    @property
    def name(self) -> str:
        """The file's name."""
        return f"trips-{self.index:04d}{SUFFIXES[self.format]}"


def specs(
    num_rows: int, num_files: int, broken_fraction: float, kind: str, seed: int
) -> list[FileSpec]:
    """The files that together hold `num_rows` trips.

    With broken ones there are three more, of a hundredth of the rows each: a truncated one (in
    Parquet, where that makes it unreadable), one that lacks a column, one with a column too many.
    """
    cuts = [num_rows * i // num_files for i in range(num_files + 1)]
    sizes = [b - a for a, b in itertools.pairwise(cuts)]
    faults: list[str | None] = [None] * num_files
    if broken_fraction:
        extra = [f for f in FILE_FAULTS if f != "truncated" or kind == "parquet"]
        faults += extra
        sizes += [max(num_rows // 100, 10)] * len(extra)
    return [
        FileSpec(i, size, broken_fraction, kind, seed, fault)
        for i, (size, fault) in enumerate(zip(sizes, faults, strict=True))
    ]


def truth(files: list[FileSpec]) -> dict[str, Any]:
    """What the pipeline must find: rows by reason, unreadable files, rows of the readable ones."""
    reasons: Counter[str] = Counter()
    for spec in files:
        if spec.fault == "lacks_column":
            reasons["missing_column"] += spec.num_rows
        elif spec.fault != "truncated":
            reasons.update(Counter(broken_rows(spec).values()))
    readable = [spec for spec in files if spec.fault != "truncated"]
    return {
        "rows": sum(spec.num_rows for spec in readable),
        "reasons": dict(reasons),
        "unreadable": [spec.name for spec in files if spec.fault == "truncated"],
    }


def broken_rows(spec: FileSpec) -> dict[int, str]:
    """Which rows of a file are broken, and how."""
    reasons = [r for r in ROW_REASONS if r != "wrong_type" or spec.format != "parquet"]
    count = round(spec.num_rows * spec.broken_fraction)
    rng = np.random.default_rng([spec.seed, spec.index, 1])
    rows = rng.choice(spec.num_rows, size=count, replace=False)
    return {int(row): reasons[i % len(reasons)] for i, row in enumerate(rows)}


def zone_table() -> pl.DataFrame:
    """The made-up zones: `LocationID`, `Borough`, and where they lie (`x`, `y`, in miles)."""
    rng = np.random.default_rng(265)
    centers = {
        "Manhattan": (0, 0),
        "Brooklyn": (3, -6),
        "Queens": (8, -1),
        "Bronx": (3, 8),
        "Staten Island": (-7, -10),
        "EWR": (-10, -2),
    }
    shares = [0.4, 0.22, 0.2, 0.13, 0.04, 0.01]
    boroughs = rng.choice(BOROUGHS, size=NUM_ZONES, p=shares)
    center = np.array([centers[b] for b in boroughs], float)
    x, y = (center + rng.normal(0, 1.8, center.shape)).T
    return pl.DataFrame(
        {"LocationID": np.arange(1, NUM_ZONES + 1), "Borough": boroughs, "x": x, "y": y}
    )


def generate(spec: FileSpec) -> pl.DataFrame:
    """The trips of one file, broken rows included; the same for the same spec."""
    rng = np.random.default_rng([spec.seed, spec.index])
    n, zones = spec.num_rows, zone_table()
    popular = rng.permutation(NUM_ZONES)
    weight = np.exp(-np.arange(NUM_ZONES) / 60)[np.argsort(popular)]
    start = rng.choice(NUM_ZONES, size=n, p=weight / weight.sum())
    end = rng.choice(NUM_ZONES, size=n, p=weight / weight.sum())
    # Each file covers the whole month: files are cut by size, not by day.
    hour_weight = 1.2 + np.sin((np.arange(24) - 8) / 24 * 2 * np.pi)
    hour = rng.choice(24, size=n, p=hour_weight / hour_weight.sum())
    day = rng.integers(0, NUM_DAYS, n)
    seconds = day * 86_400 + hour * 3600 + rng.integers(0, 3600, n)
    x, y = zones["x"].to_numpy(), zones["y"].to_numpy()
    straight = np.abs(x[start] - x[end]) + np.abs(y[start] - y[end])
    miles = np.round((0.4 + straight) * rng.lognormal(0, 0.15, n), 2)
    minutes = _minutes(miles, hour, day % 7, zones["Borough"].to_numpy()[start], rng)
    fare = np.round(3 + 2.5 * miles + 0.5 * minutes, 2)
    pickup = FIRST_DAY + seconds.astype("timedelta64[s]")
    tip = np.round(fare * rng.choice([0, 0.15, 0.2, 0.25], n), 2)
    trips = pl.DataFrame(
        {
            "VendorID": rng.choice([1, 2], n, p=[0.25, 0.75]),
            PICKUP: pickup,
            DROPOFF: pickup + (minutes * 60).astype("timedelta64[s]"),
            "passenger_count": rng.choice([1.0, 2, 3, 4], n, p=[0.7, 0.18, 0.07, 0.05]),
            "trip_distance": miles,
            "RatecodeID": np.where(rng.random(n) < 0.03, 2.0, 1.0),
            "store_and_fwd_flag": rng.choice(["N", "Y"], n, p=[0.99, 0.01]),
            "PULocationID": start + 1,
            "DOLocationID": end + 1,
            "payment_type": rng.choice([1, 2], n, p=[0.8, 0.2]),
            "fare_amount": fare,
            "extra": np.where((hour >= 16) & (hour < 20), 2.5, 0.0),
            "mta_tax": np.full(n, 0.5),
            "tip_amount": tip,
            "tolls_amount": np.where(rng.random(n) < 0.05, 6.94, 0.0),
            "improvement_surcharge": np.full(n, 1.0),
            "total_amount": np.round(fare + tip + 4.0, 2),
            "congestion_surcharge": np.full(n, 2.5),
            "Airport_fee": np.zeros(n),
        }
    )
    # As with some vendors' meters: allowed to be missing.
    absent = pl.Series(rng.random(n) < 0.04)
    trips = trips.with_columns(
        pl.when(absent).then(None).otherwise(pl.col(name)).alias(name)
        for name in ("passenger_count", "RatecodeID")
    )
    return _break_rows(trips, spec)


def _minutes(
    miles: np.ndarray, hour: np.ndarray, weekday: np.ndarray, borough: np.ndarray, rng: Any
) -> np.ndarray:
    """How long trips take: slow on weekdays' rush hours and in Manhattan, faster when long."""
    rush = np.exp(-((hour - 8.5) ** 2) / 4) + np.exp(-((hour - 17.5) ** 2) / 6)
    mph = 20 - 9 * rush * (weekday < 5) - 4 * (borough == "Manhattan") + np.minimum(miles, 12)
    minutes = 1.5 + miles / np.maximum(mph, 5) * 60
    # Within limits, so that no trip breaks the contract by chance.
    luck = np.clip(rng.lognormal(0, 0.2, len(miles)), 0.45, 2.5)
    return np.clip(minutes * luck, 0.5, 300)


def _break_rows(trips: pl.DataFrame, spec: FileSpec) -> pl.DataFrame:
    """Breaks the chosen rows, one rule each; a text file's columns become strings."""
    broken = broken_rows(spec)
    by_reason = {r: [i for i, why in broken.items() if why == r] for r in ROW_REASONS}
    miles = trips["trip_distance"].to_numpy().copy()
    fare = trips["fare_amount"].to_numpy().copy()
    vendor = trips["VendorID"].to_numpy().copy()
    end = trips["DOLocationID"].to_numpy().copy()
    dropoff = trips[DROPOFF].to_numpy().copy()
    pickup = trips[PICKUP].to_numpy()
    fare[by_reason["negative_fare"]] *= -1
    vendor[by_reason["out_of_range"]] = 1000
    end[by_reason["unknown_zone"]] = 999
    late = by_reason["dropoff_before_pickup"]
    dropoff[late] = pickup[late] - np.timedelta64(90, "s")
    fast = by_reason["impossible_speed"]
    dropoff[fast] = pickup[fast] + np.timedelta64(30, "s")
    miles[fast] = 40.0
    missing = np.zeros(len(trips), bool)
    missing[by_reason["missing_value"]] = True
    trips = trips.with_columns(
        trip_distance=pl.Series(miles),
        fare_amount=pl.Series(fare),
        VendorID=pl.Series(vendor),
        DOLocationID=pl.Series(end),
    ).with_columns(pl.Series(DROPOFF, dropoff))
    trips = trips.with_columns(
        PULocationID=pl.when(pl.Series(missing)).then(None).otherwise(pl.col("PULocationID"))
    )
    if spec.fault == "lacks_column":
        trips = trips.drop("trip_distance")
    if spec.fault == "extra_column":
        trips = trips.with_columns(cbd_congestion_fee=pl.lit(0.75))
    if spec.format != "parquet" and by_reason["wrong_type"]:
        text = trips["trip_distance" if "trip_distance" in trips.columns else "fare_amount"]
        words = text.cast(pl.String).to_list()
        for row in by_reason["wrong_type"]:
            words[row] = "n/a"
        trips = trips.with_columns(pl.Series(text.name, words))
    return trips


def write(spec: FileSpec, directory: Storage) -> None:
    """Generates one file and writes it."""
    trips, buffer = generate(spec), io.BytesIO()
    if spec.format == "parquet":
        trips.write_parquet(buffer, compression="zstd", row_group_size=250_000)
    elif spec.format == "csv":
        trips.write_csv(buffer, datetime_format="%Y-%m-%d %H:%M:%S")
    else:
        trips.write_ndjson(buffer)
    content = buffer.getvalue()
    if spec.fault == "truncated":
        content = content[: len(content) * 2 // 3]
    directory.child(spec.name).write_atomically(content)
