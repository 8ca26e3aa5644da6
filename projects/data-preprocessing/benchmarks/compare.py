"""This pipeline beside what else prepares trips, on the same files, in one run.

    nox -s bench -- data-preprocessing
    nox -s bench -- data-preprocessing --part prepare --rows 5 20 --rounds 1

`--part prepare`: read, keep the rows that keep the contract, derive, group by zone and hour, join
back, write; the peers are in `peers.py`. `--part boost`: XGBoost with two workers on Ray Train
beside one process with as many threads. `--part feed`: batches for torch and TensorFlow. Everybody
starts in a process of its own and takes turns; seconds count from after its own start-up, memory
(PSS of all its processes) from the beginning.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from data_preprocessing import trips
from data_preprocessing.config import PROJECT
from matplotlib.figure import Figure
from ray_shared.cluster import available_cpus
from ray_shared.report import versions
from ray_shared.storage import open_storage
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
OURS = "this pipeline"
ROWS_PER_FILE = 1_000_000
# The same columns as the peers write.
SAME_WORK = [
    "features.numeric=[log_distance,hour_sin,hour_cos,"
    "pickup_hour_minutes,pickup_hour_mph,pickup_hour_log_trips]",
    "features.categorical=[]",
    "quality.max_bad_files=0",
]
SLOWEST_AT = {"dask": 20, "pyspark": 20, "ray-obvious": 20}
"""Millions of rows beyond which a peer is left out: nothing more would be learnt."""


def make_files(millions: int, directory: Path) -> int:
    """Writes files of a million trips each, 1 % of them broken; returns the rows that are right."""
    specs = [trips.FileSpec(i, ROWS_PER_FILE, 0.01, "parquet", 0) for i in range(millions)]
    write = partial(trips.write, directory=open_storage(str(directory)))
    # Polars does not survive a fork.
    with ProcessPoolExecutor(available_cpus(), get_context("spawn")) as pool:
        list(pool.map(write, specs))
    return sum(s.num_rows - len(trips.broken_rows(s)) for s in specs)


def watched(command: list[str], cwd: Path) -> dict[str, Any]:
    """Runs a command to its end.

    Returns:
        `wall_s` and `peak_mb`, and what its last line says, if that is JSON: a peer's.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak = 0

    def sample() -> None:
        nonlocal peak
        while process.poll() is None:
            family = [psutil.Process(process.pid)]
            family += family[0].children(recursive=True)
            peak = max(peak, sum(map(pss, family)))
            time.sleep(0.2)

    thread = threading.Thread(target=sample)
    thread.start()
    stdout, stderr = process.communicate()
    thread.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{stdout}\n{stderr}")
    last = stdout.strip().rpartition("\n")[2]
    found: dict[str, Any] = json.loads(last) if last.startswith("{") else {}
    return found | {"wall_s": time.perf_counter() - started, "peak_mb": peak / 2**20}


def pss(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    except psutil.Error:
        return 0


def prepare_once(name: str, source: Path, directory: Path) -> dict[str, Any]:
    """One run of one contestant; its output is removed again."""
    target = directory / "out"
    if name != OURS:
        command = [sys.executable, str(HERE / "peers.py"), name, f"{source}/*.parquet", str(target)]
        found = watched(command, directory)
        shutil.rmtree(target)
        return found
    zones = directory / "zones.csv"
    trips.zone_table().write_csv(zones)
    command = [sys.executable, "-m", "data_preprocessing", f"data.path={source}"]
    command += [f"data.zones={zones}", f"storage.path={target}", f"hydra.run.dir={target}/hydra"]
    found = watched([*command, *SAME_WORK, "hydra.output_subdir=null"], directory)
    result = json.loads((target / "hydra" / "result.json").read_text())
    found |= {"seconds": result["timings"]["job_s"], "rows": result["metrics"]["rows_out"]}
    shutil.rmtree(target)
    return found


def prepare_for_training(millions: int, directory: Path) -> Path:
    """A prepared run of generated trips, with the default features; made once."""
    storage = directory / f"prepared-{millions}"
    if not storage.exists():
        command = [sys.executable, "-m", "data_preprocessing", "run.name=bench"]
        command += [f"data.num_rows={millions * 1_000_000}", f"data.num_files={4 * millions}"]
        command += [f"storage.path={storage}", f"hydra.run.dir={directory}/prepare"]
        watched(command, directory)
    return storage / "bench"


def compare_prepare(sizes: list[int], rounds: int, names: list[str], directory: Path) -> Any:
    """Seconds, memory and rows of every contestant, by size."""
    found: dict[str, dict[str, Any]] = {}
    for millions in sizes:
        source = directory / f"trips-{millions}"
        right = make_files(millions, source)
        chosen = [n for n in names if millions <= SLOWEST_AT.get(n, millions)]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
        for number in range(rounds):
            turned = chosen[number % len(chosen) :] + chosen[: number % len(chosen)]
            for name in turned:
                run = prepare_once(name, source, directory)
                if run["rows"] != right:
                    raise SystemExit(f"{name} wrote {run['rows']} rows, right are {right}")
                runs[name].append(run)
                print(
                    f"{millions:>3} million  {name:<14} {run['seconds']:7.1f} s "
                    f"{run['peak_mb']:7.0f} MB",
                    flush=True,
                )
        shutil.rmtree(source)
        found[str(millions)] = runs
        show_prepare(millions, runs)
    return found


def show_prepare(millions: int, runs: dict[str, list[dict[str, Any]]]) -> None:
    table = Table(title=f"{millions} million rows, {available_cpus()} cores", title_justify="left")
    for column in ("", "seconds", "million rows/s", "peak MB", "time of this pipeline / its"):
        table.add_column(column, justify="right" if column else "left")
    for name, rounds in runs.items():
        seconds = statistics.median(r["seconds"] for r in rounds)
        pairs = zip(runs[OURS], rounds, strict=True)
        ratios = [ours["seconds"] / other["seconds"] for ours, other in pairs]
        peak = statistics.median(r["peak_mb"] for r in rounds)
        table.add_row(
            name,
            f"{seconds:.1f}",
            f"{millions / seconds:.2f}",
            f"{peak:,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    Console(width=120).print(table)


def plot_prepare(found: dict[str, Any], path: Path) -> dict[str, float]:
    """Draws seconds and memory over rows; returns how each one's seconds grow: the exponent."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for runs in found.values() for name in runs))
    exponents: dict[str, float] = {}
    for name in sorted(names, key=lambda n: n != OURS):
        sizes = [int(size) for size, runs in found.items() if name in runs]
        rounds = [found[str(size)][name] for size in sizes]
        seconds = [statistics.median(r["seconds"] for r in each) for each in rounds]
        label = name
        if len(sizes) > 1:
            exponents[name] = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
            label = f"{name} (rows^{exponents[name]:.2f})"
        left.plot(sizes, seconds, marker="o", label=label)
        memory = [statistics.median(r["peak_mb"] for r in each) / 1024 for each in rounds]
        right.plot(sizes, memory, marker="o", label=name)
    left.set(xlabel="million rows", ylabel="seconds", xscale="log", yscale="log")
    right.set(xlabel="million rows", ylabel="peak memory, GB", ylim=(0, None))
    ticks = [int(size) for size in found]
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for ax in (left, right):
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return exponents


def main() -> None:
    """Measures, prints the tables and saves everything."""
    parser = argparse.ArgumentParser(description="Compares the pipeline with its peers.")
    peers = ["polars", "dask", "pyspark", "ray-obvious", "ray-tasks"]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[5, 20, 60], help="millions")
    parser.add_argument("--peers", nargs="*", default=peers, choices=peers)
    parser.add_argument("--part", choices=("prepare", "boost", "feed", "all"), default="all")
    parser.add_argument("--boost-rows", type=int, nargs="+", default=[1, 5], help="millions")
    parser.add_argument("--feed-rows", type=int, default=5, help="millions")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be >= 1")
    args.out.mkdir(parents=True, exist_ok=True)
    machine = {"cores": available_cpus(), "load_before": os.getloadavg()[0]}
    machine["memory_gb"] = round(psutil.virtual_memory().total / 2**30, 1)
    found: dict[str, Any] = {"machine": machine, "versions": versions(PROJECT)}
    if "pyspark" in args.peers and shutil.which("java") is None:
        print("pyspark is left out: there is no Java runtime")
        args.peers.remove("pyspark")
    # A short path, because Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="r-") as directory:
        os.environ |= {"RAY_TMPDIR": directory, "TMPDIR": directory}
        if args.part in ("prepare", "all"):
            found["prepare"] = compare_prepare(
                args.rows, args.rounds, [OURS, *args.peers], Path(directory)
            )
            found["growth"] = plot_prepare(found["prepare"], args.out / "prepare.png")
        if args.part in ("boost", "all"):
            from boost import compare_boost

            found["boost"] = compare_boost(args.boost_rows, args.rounds, Path(directory))
        if args.part in ("feed", "all"):
            from feed import compare_feeding

            found["feed"] = compare_feeding(args.feed_rows, args.rounds, Path(directory))
    (args.out / "compare.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"everything measured: {args.out}")


if __name__ == "__main__":
    main()
