"""XGBoost on Ray Train beside one process with as many threads; imported by compare.py.

`boost.py DATASET ROUNDS THREADS` is the one process: it reads the same prepared rows, trains the
same rounds, and prints its seconds and its RMSE on the same test rows.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 30
WORKERS = 2


def single(dataset: str, rounds: int, threads: int) -> dict[str, Any]:
    """Reads, trains and tests in this process."""
    import polars as pl
    import xgboost as xgb
    from data_preprocessing import output
    from data_preprocessing.features import LABEL
    from ray_shared.storage import open_storage

    run_dir = open_storage(dataset)
    manifest = output.read_manifest(run_dir)
    assert manifest is not None
    names = manifest["features"]

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        files = output.feature_files(run_dir, manifest, split)
        rows = pl.read_parquet(files, columns=[LABEL, *names], hive_partitioning=False)
        return rows.select(names).to_numpy(), rows[LABEL].to_numpy()

    started = time.perf_counter()
    params = {"objective": "reg:squarederror", "tree_method": "hist", "max_depth": 8, "eta": 0.2}
    params |= {"max_bin": 256, "seed": 0, "nthread": threads}
    train = xgb.QuantileDMatrix(*read("train"), nthread=threads)
    val = xgb.QuantileDMatrix(*read("val"), nthread=threads, ref=train)
    read_s = time.perf_counter() - started
    evals = [(train, "train"), (val, "val")]
    model = xgb.train(params, train, rounds, evals=evals, verbose_eval=False)
    train_s = time.perf_counter() - started - read_s
    features, labels = read("test")
    rmse = float(np.sqrt(np.mean(np.square(labels - model.inplace_predict(features)))))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "read_s": read_s, "train_s": train_s, "rmse": rmse}


def distributed(dataset: Path, directory: Path, watched: Any) -> dict[str, Any]:
    """The project's own job."""
    target = directory / "out"
    command = [sys.executable, "-m", "data_preprocessing", "action=train", f"dataset={dataset}"]
    command += [f"train.num_rounds={ROUNDS}", "train.early_stopping_rounds=0"]
    command += [f"scaling.num_workers={WORKERS}", f"storage.path={directory}/models"]
    found = watched([*command, f"hydra.run.dir={target}"], directory)
    result = json.loads((target / "result.json").read_text())
    names = ("read_s", "train_s", "rmse")
    found |= {name: result["metrics"][name] for name in names}
    return found | {"seconds": result["timings"]["job_s"]}


def compare_boost(sizes: list[int], rounds: int, directory: Path) -> dict[str, Any]:
    """Seconds of both, by size, in turns."""
    from compare import prepare_for_training, watched

    found: dict[str, Any] = {}
    for millions in sizes:
        dataset = prepare_for_training(millions, directory)
        runs: dict[str, list[dict[str, Any]]] = {"one process": [], "Ray Train": []}
        for _ in range(rounds):
            one = [sys.executable, __file__, str(dataset), str(ROUNDS), str(WORKERS)]
            runs["one process"].append(watched(one, directory))
            runs["Ray Train"].append(distributed(dataset, directory, watched))
        found[str(millions)] = runs
        show_boost(millions, runs)
    return found


def show_boost(millions: int, runs: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"XGBoost, {millions} million rows, {ROUNDS} rounds, {WORKERS} workers or threads"
    table = Table(title=title, title_justify="left")
    for column in ("", "seconds", "reading", "ms a round", "peak MB", "test RMSE"):
        table.add_column(column, justify="right" if column else "left")
    for name, each in runs.items():
        middle = {key: statistics.median(r[key] for r in each) for key in each[0]}
        table.add_row(
            name,
            f"{middle['seconds']:.1f}",
            f"{middle['read_s']:.1f}",
            f"{1000 * middle['train_s'] / ROUNDS:.0f}",
            f"{middle['peak_mb']:,.0f}",
            f"{middle['rmse']:.4f}",
        )
    Console(width=120).print(table)
    pairs = list(zip(runs["Ray Train"], runs["one process"], strict=True))
    for key in ("seconds", "train_s"):
        ratios = [ours[key] / one[key] for ours, one in pairs]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{key}: {middle:.2f} ({low:.2f} to {high:.2f}) times one process's", flush=True)


if __name__ == "__main__":
    print(json.dumps(single(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
