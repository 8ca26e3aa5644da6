"""The same work with other tools; each runs in a process of its own: `peers.py NAME IN OUT`.

Read, keep the rows that keep the contract, derive, group by zone and hour, join back, write. What
each prints is the seconds from after its own start-up to the last byte, and the rows written.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PICKUP, DROPOFF = "tpep_pickup_datetime", "tpep_dropoff_datetime"
READ = [PICKUP, DROPOFF, "VendorID", "trip_distance", "PULocationID", "DOLocationID", "fare_amount"]
GROUP = ["PULocationID", "hour"]
NUM_ZONES = 265
WRITTEN = ["minutes", "log_distance", "hour_sin", "hour_cos"]
WRITTEN += ["zone_minutes", "zone_mph", "zone_log_trips"]
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def polars_streaming(source: str, target: str) -> Callable[[], None]:
    """Polars, lazily, with its streaming engine."""
    import polars as pl

    def run() -> None:
        lazy = polars_derived(pl.scan_parquet(source))
        groups = polars_groups(lazy).with_columns(zone_log_trips=pl.col("n").log1p())
        joined = lazy.join(groups, on=GROUP, how="left").select(WRITTEN)
        Path(target).mkdir()
        joined.sink_parquet(f"{target}/part.parquet", compression="lz4", engine="streaming")

    return run


def polars_derived(lazy: Any) -> Any:
    """The contract and the columns that a row has by itself."""
    import polars as pl

    minutes = (pl.col(DROPOFF) - pl.col(PICKUP)).dt.total_microseconds() / 60e6
    lazy = lazy.select(READ).with_columns(minutes=minutes, hour=pl.col(PICKUP).dt.hour())
    kept = lazy.filter(
        pl.all_horizontal(pl.col(name).is_not_null() for name in READ)
        & pl.col("VendorID").is_between(0, 99)
        & pl.col("trip_distance").is_between(0, 500)
        & pl.col("fare_amount").is_between(0, 10_000)
        & (pl.col("minutes") > 0)
        & (pl.col("minutes") <= 1440)
        & (pl.col("trip_distance") / pl.col("minutes") * 60 <= 100)
        & pl.col("PULocationID").is_between(1, NUM_ZONES)
        & pl.col("DOLocationID").is_between(1, NUM_ZONES)
    )
    angle = pl.col("hour") * (2 * math.pi / 24)
    return kept.with_columns(
        log_distance=pl.col("trip_distance").log1p(),
        mph=pl.col("trip_distance") / pl.col("minutes") * 60,
        hour_sin=angle.sin(),
        hour_cos=angle.cos(),
    )


def polars_groups(kept: Any) -> Any:
    """Means by zone and hour."""
    import polars as pl

    return kept.group_by(GROUP).agg(
        zone_minutes=pl.col("minutes").mean(), zone_mph=pl.col("mph").mean(), n=pl.len()
    )


def pandas_derived(trips: Any) -> Any:
    """The same with pandas, for a frame or a Dask partition."""
    import numpy as np

    trips = trips.dropna(subset=READ)
    minutes = (trips[DROPOFF] - trips[PICKUP]).dt.total_seconds() / 60
    miles, fare = trips["trip_distance"], trips["fare_amount"]
    kept = (
        trips["VendorID"].between(0, 99)
        & miles.between(0, 500)
        & fare.between(0, 10_000)
        & (minutes > 0)
        & (minutes <= 1440)
        & (miles / minutes * 60 <= 100)
        & trips["PULocationID"].between(1, NUM_ZONES)
        & trips["DOLocationID"].between(1, NUM_ZONES)
    )
    trips = trips[kept].copy()
    trips["minutes"], trips["mph"] = minutes[kept], miles[kept] / minutes[kept] * 60
    trips["hour"] = trips[PICKUP].dt.hour
    trips["log_distance"] = np.log1p(trips["trip_distance"])
    trips["hour_sin"] = np.sin(trips["hour"] * (2 * math.pi / 24))
    trips["hour_cos"] = np.cos(trips["hour"] * (2 * math.pi / 24))
    return trips


def dask_dataframe(source: str, target: str) -> Callable[[], None]:
    """Dask's data frame, with threads."""
    import dask
    import dask.dataframe as dd
    import numpy as np

    def run() -> None:
        dask.config.set(scheduler="threads", num_workers=CPUS)
        trips = dd.read_parquet(source, columns=READ).map_partitions(pandas_derived)
        means = trips.groupby(GROUP).agg({"minutes": ["mean", "count"], "mph": "mean"}).compute()
        means.columns = ["zone_minutes", "n", "zone_mph"]
        means["zone_log_trips"] = np.log1p(means.pop("n"))
        joined = trips.merge(means.reset_index(), on=GROUP, how="left")
        joined[WRITTEN].to_parquet(target, compression="lz4", write_index=False)

    return run


def pyspark_local(source: str, target: str) -> Callable[[], None]:
    """Spark in local mode."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    # Spark reads no nanoseconds; the generated files have microseconds.
    spark = (
        SparkSession.builder.master(f"local[{CPUS}]")
        .config("spark.driver.memory", "8g")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", str(4 * CPUS))
        .config("spark.sql.parquet.compression.codec", "lz4_raw")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    spark.range(1000).count()

    def run() -> None:
        trips = spark.read.parquet(str(Path(source).parent)).select(READ).dropna()
        minutes = (
            f.unix_micros(f.col(DROPOFF).cast("timestamp"))
            - f.unix_micros(f.col(PICKUP).cast("timestamp"))
        ) / 60e6
        trips = trips.withColumn("minutes", minutes).withColumn("hour", f.hour(PICKUP))
        mph = f.col("trip_distance") / f.col("minutes") * 60
        kept = trips.where(
            f.col("VendorID").between(0, 99)
            & f.col("trip_distance").between(0, 500)
            & f.col("fare_amount").between(0, 10_000)
            & (f.col("minutes") > 0)
            & (f.col("minutes") <= 1440)
            & (mph <= 100)
            & f.col("PULocationID").between(1, NUM_ZONES)
            & f.col("DOLocationID").between(1, NUM_ZONES)
        )
        angle = f.col("hour") * (2 * math.pi / 24)
        kept = (
            kept.withColumn("mph", mph)
            .withColumn("log_distance", f.log1p("trip_distance"))
            .withColumn("hour_sin", f.sin(angle))
            .withColumn("hour_cos", f.cos(angle))
        )
        groups = kept.groupBy(*GROUP).agg(
            f.mean("minutes").alias("zone_minutes"),
            f.mean("mph").alias("zone_mph"),
            f.log1p(f.count("*")).alias("zone_log_trips"),
        )
        joined = kept.join(f.broadcast(groups), GROUP, "left").select(WRITTEN)
        joined.write.parquet(target)

    return run


def ray_obvious(source: str, target: str) -> Callable[[], None]:
    """Ray Data as one would write it first: batches of pandas, partial sums by hand."""
    start_ray()
    import numpy as np
    import pandas as pd
    import ray

    def sums(trips: Any) -> Any:
        kept = pandas_derived(trips)
        found = kept.groupby(GROUP).agg({"minutes": ["sum", "count"], "mph": "sum"})
        found.columns = ["minutes", "n", "mph"]
        return found.reset_index()

    def run() -> None:
        folder = str(Path(source).parent)
        partial = (
            ray.data.read_parquet(folder)
            .select_columns(READ)
            .map_batches(sums, batch_format="pandas", batch_size=None, num_cpus=1)
        )
        groups = pd.concat(partial.iter_batches(batch_format="pandas", batch_size=None))
        groups = groups.groupby(GROUP).sum()
        means = pd.DataFrame(
            {
                "zone_minutes": groups["minutes"] / groups["n"],
                "zone_mph": groups["mph"] / groups["n"],
                "zone_log_trips": np.log1p(groups["n"]),
            }
        ).reset_index()

        def join(trips: Any) -> Any:
            return pandas_derived(trips).merge(means, on=GROUP, how="left")[WRITTEN]

        joined = (
            ray.data.read_parquet(folder)
            .select_columns(READ)
            .map_batches(join, batch_format="pandas", batch_size=None, num_cpus=1)
        )
        joined.write_parquet(target)

    return run


def ray_tasks(source: str, target: str) -> Callable[[], None]:
    """Plain Ray tasks, one for each file, with Polars inside: the limit."""
    start_ray()
    import polars as pl
    import ray

    @ray.remote(num_cpus=1)
    def sums(path: str) -> Any:
        kept = polars_derived(pl.scan_parquet(path))
        return (
            kept.group_by(GROUP)
            .agg(pl.col("minutes").sum(), pl.col("mph").sum(), n=pl.len())
            .collect()
        )

    @ray.remote(num_cpus=1)
    def join(path: str, means: Any) -> None:
        kept = polars_derived(pl.scan_parquet(path))
        joined = kept.join(means.lazy(), on=GROUP, how="left").select(WRITTEN).collect()
        joined.write_parquet(f"{target}/{Path(path).name}", compression="lz4")

    def run() -> None:
        Path(target).mkdir()
        paths = sorted(str(p) for p in Path(source).parent.glob(Path(source).name))
        groups = pl.concat(ray.get([sums.remote(p) for p in paths])).group_by(GROUP).sum()
        means = groups.select(
            *GROUP,
            zone_minutes=pl.col("minutes") / pl.col("n"),
            zone_mph=pl.col("mph") / pl.col("n"),
            zone_log_trips=pl.col("n").log1p(),
        )
        shared = ray.put(means)
        ray.get([join.remote(p, shared) for p in paths])

    return run


def start_ray() -> None:
    """A Ray like that of the project."""
    from data_preprocessing.config import RAY_DEFAULTS
    from ray_shared.cluster import ensure_token

    os.environ |= RAY_DEFAULTS
    ensure_token()
    import logging

    import ray

    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, logging_level="WARNING")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


PEERS = {
    "polars": polars_streaming,
    "dask": dask_dataframe,
    "pyspark": pyspark_local,
    "ray-obvious": ray_obvious,
    "ray-tasks": ray_tasks,
}


def main() -> None:
    """Runs one peer and prints what it took."""
    name, source, target = sys.argv[1:]
    run = PEERS[name](source, target)
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    import pyarrow.dataset

    rows = pyarrow.dataset.dataset(target, exclude_invalid_files=True).count_rows()
    print(json.dumps({"seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
