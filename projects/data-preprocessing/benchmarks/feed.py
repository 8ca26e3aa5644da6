"""Rows a second that a trainer gets out of a prepared run; imported by compare.py.

`feed.py NAME DATASET` is one contestant in a process of its own: it reads the training rows once to
warm up, then again, and prints the rows a second of the second time. Nothing learns from them.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BATCH = 4096
READERS = 2
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Batches = Callable[[], Iterable[Any]]


def torch_dataset(dataset: str) -> Batches:
    """The limit: a loop over the Parquet files in the trainer's own process, without Ray."""
    import polars as pl
    import torch
    from data_preprocessing import output
    from data_preprocessing.features import LABEL
    from ray_shared.storage import open_storage

    run_dir = open_storage(dataset)
    manifest = output.read_manifest(run_dir)
    assert manifest is not None
    names = manifest["features"]

    def batches() -> Iterable[Any]:
        for path in output.feature_files(run_dir, manifest, "train"):
            rows = pl.read_parquet(path, columns=[LABEL, *names], hive_partitioning=False)
            features = torch.from_numpy(rows.select(names).to_numpy())
            labels = torch.from_numpy(rows[LABEL].to_numpy(writable=True))
            yield from zip(features.split(BATCH), labels.split(BATCH), strict=True)

    return batches


def prepared(dataset: str) -> tuple[Any, dict[str, Any]]:
    """A Ray like that of the project, the run, and its manifest."""
    from data_preprocessing import output
    from peers import start_ray
    from ray_shared.storage import open_storage

    start_ray()
    run_dir = open_storage(dataset)
    manifest = output.read_manifest(run_dir)
    assert manifest is not None
    return run_dir, manifest


def torch_batches(dataset: str) -> Batches:
    """Tuned as the project does."""
    from data_preprocessing import feeding

    rows = feeding.stacked(*prepared(dataset), "train")
    return lambda: feeding.torch_batches(rows, BATCH)


def torch_batches_without_prefetch(dataset: str) -> Batches:
    """The same, each batch fetched when it is asked for."""
    from data_preprocessing import feeding

    rows = feeding.stacked(*prepared(dataset), "train")
    return lambda: feeding.torch_batches(rows, BATCH, prefetch=0)


def torch_batches_by_column(dataset: str) -> Batches:
    """A tensor for each column, stacked by the trainer."""
    import ray
    import torch
    from data_preprocessing import output
    from data_preprocessing.features import LABEL

    run_dir, manifest = prepared(dataset)
    names = manifest["features"]
    files = output.feature_files(run_dir, manifest, "train")
    rows = ray.data.read_parquet(files, partitioning=None).select_columns([LABEL, *names])

    def batches() -> Iterable[Any]:
        for batch in rows.iter_torch_batches(batch_size=BATCH, prefetch_batches=2):
            yield torch.stack([batch[name] for name in names], dim=1), batch[LABEL]

    return batches


def tensorflow_dataset(dataset: str) -> Batches:
    """`to_tf`."""
    from data_preprocessing import feeding

    rows = feeding.stacked(*prepared(dataset), "train")
    return lambda: feeding.tensorflow_dataset(rows, BATCH)


def split_streams(dataset: str) -> Batches:
    """`streaming_split`: all rows, by as many readers as a data-parallel trainer would have."""
    from data_preprocessing import feeding

    rows = feeding.stacked(*prepared(dataset), "train")
    streams = feeding.streams(rows, READERS)

    def batches() -> Iterable[Any]:
        with ThreadPoolExecutor(READERS) as pool:
            for part in pool.map(lambda s: list(feeding.torch_batches(s, BATCH)), streams):
                yield from part

    return batches


CONTESTANTS = {
    "Parquet files, no Ray": torch_dataset,
    "iter_torch_batches": torch_batches,
    "  without prefetch": torch_batches_without_prefetch,
    "  a tensor a column": torch_batches_by_column,
    "to_tf": tensorflow_dataset,
    "streaming_split, 2 readers": split_streams,
}


def measure(name: str, dataset: str) -> dict[str, float]:
    """Rows a second of the second pass."""
    batches = CONTESTANTS[name](dataset)
    rows = 0
    for _ in range(2):
        started, rows = time.perf_counter(), 0
        for _, labels in batches():
            rows += len(labels)
        seconds = time.perf_counter() - started
    return {"rows": rows, "rows_per_s": rows / seconds}


def compare_feeding(millions: int, rounds: int, directory: Path) -> dict[str, Any]:
    """Rows a second of everybody, in turns."""
    from compare import prepare_for_training, watched

    dataset = prepare_for_training(millions, directory)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, found in runs.items():
            found.append(watched([sys.executable, __file__, name, str(dataset)], directory))
    show(millions, runs)
    return {"millions": millions, "batch": BATCH, "runs": runs}


def show(millions: int, runs: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"Feeding a trainer, {millions} million trips, batches of {BATCH}"
    table = Table(title=title, title_justify="left")
    for column in ("", "million rows/s", "peak MB"):
        table.add_column(column, justify="right" if column else "left")
    for name, each in runs.items():
        speed = statistics.median(r["rows_per_s"] for r in each) / 1e6
        peak = statistics.median(r["peak_mb"] for r in each)
        table.add_row(name, f"{speed:.2f}", f"{peak:,.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
