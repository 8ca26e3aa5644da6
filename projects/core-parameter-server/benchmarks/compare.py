"""This parameter server beside what else moves gradients, on the same vector, in one run.

    nox -s bench -- core-parameter-server
    nox -s bench -- core-parameter-server --rounds 1 --part peers

One iteration takes the gradients of two workers to the weights, and the new weights to the workers.
The gradients are there already, so that only moving and adding them counts. The peers:

* the single actor of Ray's documentation (`DocsServer`),
* torch's all-reduce over gloo, between two processes: each has the sum in the end,
* one copy of the vector from memory to memory in one process: what cannot be undercut.

They take turns, round by round; a ratio is the median of the ratios within the rounds.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from core_parameter_server.config import PROJECT, RAY_DEFAULTS, Config
from matplotlib.figure import Figure
from peers import CPUS, NUM_WORKERS, Make, Run, all_reduce, copying, docs_server, our_server
from ray_shared import cluster
from ray_shared.config import compose
from ray_shared.report import Report, versions
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
SIZE = 25_000_000
SIZES = [2_500, 25_000, 250_000, 2_500_000, SIZE, 250_000_000]
SHARDS = [1, 2, 4, 8]
SECONDS = 3.0


def seconds_each(run: Run) -> float:
    """Seconds of one iteration, over about `SECONDS` seconds."""
    run(1)
    started = time.perf_counter()
    run(2)
    iterations = max(2, int(SECONDS / ((time.perf_counter() - started) / 2)))
    started = time.perf_counter()
    run(iterations)
    return (time.perf_counter() - started) / iterations


@contextmanager
def started_ray() -> Iterator[None]:
    # A short path, because Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="r-") as directory:
        os.environ |= {"RAY_TMPDIR": directory} | RAY_DEFAULTS  # For the peers, too.
        config = compose(Config, "core_parameter_server.conf", [])
        report = Report(PROJECT, Path(directory), {})
        demand = cluster.Demand(NUM_WORKERS, CPUS)
        with cluster.connect(config.cluster, demand, report, "core_parameter_server"):
            yield


def take_turns(variants: dict[str, Make], size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of an iteration, by variant and round; the order turns from round to round."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    with started_ray():
        runs = {name: make(size) for name, make in variants.items()}
        for run in runs.values():  # The first time, memory is handed out page by page.
            seconds_each(run)
        for number in range(rounds):
            turned = list(runs)[number % len(runs) :] + list(runs)[: number % len(runs)]
            for name in turned:
                found[name].append(seconds_each(runs[name]))
                print(f"{4 * size / 1e6:>8.2f} MB  {name:<24} {1000 * found[name][-1]:9.2f} ms")
    return found


def peak_bytes(make: Make, size: int) -> int:
    """Memory of all processes at its peak, in a Ray of their own.

    PSS: a page of the object store counts once, however many processes look at it.
    """
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.05):
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            peak = max(peak, sum(map(pss, family)))

    with started_ray():
        run = make(size)
        run(2)
        thread = threading.Thread(target=sample)
        thread.start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            run(5)
        done.set()
        thread.join()
    return peak


def pss(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    except psutil.Error:
        return 0


def compare_peers(rounds: int) -> dict[str, Any]:
    """The main table."""
    variants: dict[str, Make] = {
        **{f"this server, {n} shards": partial(our_server, num_shards=n) for n in (2, 4)},
        "documentation's server": docs_server,
        "gloo all-reduce": all_reduce,
        "memory copy": copying,
    }
    seconds = take_turns(variants, SIZE, rounds)
    rows = {}
    for name, make in variants.items():
        copies = (peak_bytes(make, SIZE) - peak_bytes(make, SIZES[0])) / (4 * SIZE)
        each = statistics.median(seconds[name])
        # What an iteration moves at least: gradients there, weights back, for each worker.
        moved = 4 * SIZE * (1 if name == "memory copy" else 2 * NUM_WORKERS)
        rows[name] = {
            "iterations_per_s": 1 / each,
            "gb_per_s": moved / each / 1e9,
            "copies": copies,
            "seconds": seconds[name],
        }
        for peer in ("documentation's server", "gloo all-reduce"):
            ratios = [a / b for a, b in zip(seconds[peer], seconds[name], strict=True)]
            rows[name][f"speed of {peer}"] = [min(ratios), statistics.median(ratios), max(ratios)]
    show_peers(rows)
    return rows


def show_peers(rows: dict[str, Any]) -> None:
    table = Table(title=f"{SIZE:,} float32, {NUM_WORKERS} workers", title_justify="left")
    columns = ["", "iterations/s", "GB/s", "memory, vectors", "x documentation", "x gloo"]
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        ratios = [row[key] for key in row if key.startswith("speed of")]
        table.add_row(
            name,
            f"{row['iterations_per_s']:.1f}",
            f"{row['gb_per_s']:.1f}",
            f"{row['copies']:.1f}",
            *(f"{middle:.2f} ({low:.2f} to {high:.2f})" for low, middle, high in ratios),
        )
    Console(width=120).print(table)


def compare_scaling() -> dict[str, Any]:
    """Iterations per second over numbers of shards, and over sizes of the vector."""
    shards: dict[str, Make] = {str(n): partial(our_server, num_shards=n) for n in SHARDS}
    by_shards = {n: statistics.median(s) for n, s in take_turns(shards, SIZE, 2).items()}
    peers: dict[str, Make] = {
        "this server, 4 shards": partial(our_server, num_shards=4),
        "documentation's server": docs_server,
        "gloo all-reduce": all_reduce,
    }
    by_size: dict[str, dict[str, float]] = {name: {} for name in peers}
    for size in SIZES:
        # One after the other: eight vectors of 1 GB each would not fit side by side.
        for name, make in peers.items():
            by_size[name][str(size)] = take_turns({name: make}, size, 1)[name][0]
    return {"seconds_by_shards": by_shards, "seconds_by_size": by_size}


def compare_modes(action: str, out: Path) -> dict[str, Any]:
    """Sync, asynchronous and between: the job's own action, which prints a table and a plot."""
    directory = out / action
    command = [sys.executable, "-m", "core_parameter_server", f"action={action}"]
    command += ["train.eval_every_epochs=0.5", f"hydra.run.dir={directory}"]
    subprocess.run(command, check=True)
    metrics: dict[str, Any] = json.loads((directory / "result.json").read_text())["metrics"]
    return metrics


def plot_scaling(scaling: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    by_shards = scaling["seconds_by_shards"]
    left.bar(list(by_shards), [1 / s for s in by_shards.values()], color="tab:blue")
    left.set(xlabel="shards", ylabel="iterations/s", title=f"{SIZE:,} float32")
    for name, by_size in scaling["seconds_by_size"].items():
        sizes = [4 * int(size) / 1e6 for size in by_size]
        right.plot(sizes, [1000 * s for s in by_size.values()], marker="o", label=name)
    right.set(xlabel="vector, MB", ylabel="ms an iteration", xscale="log", yscale="log")
    right.legend()
    for ax in (left, right):
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, prints the tables and saves everything."""
    parser = argparse.ArgumentParser(description="Compares the server with its peers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=("peers", "scaling", "modes"), action="append")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be >= 1")
    logging.basicConfig(level=logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    machine = {"cores": cluster.available_cpus(), "load_before": os.getloadavg()[0]}
    machine["memory_gb"] = round(psutil.virtual_memory().total / 2**30, 1)
    found: dict[str, Any] = {"machine": machine, "versions": versions(PROJECT)}
    parts = args.part or ["peers", "scaling", "modes"]
    if "peers" in parts:
        found["peers"] = compare_peers(args.rounds)
    if "scaling" in parts:
        found["scaling"] = compare_scaling()
        plot_scaling(found["scaling"], args.out / "scaling.png")
    if "modes" in parts:
        for action in ("compare", "straggler"):
            found[action] = compare_modes(action, args.out)
    (args.out / "compare.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"everything measured: {args.out}")


if __name__ == "__main__":
    main()
