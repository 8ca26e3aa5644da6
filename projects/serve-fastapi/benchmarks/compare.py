"""This application beside what a user would pick instead: same model, same requests, one run.

The peers: plain FastAPI on uvicorn, one call of the model for each request; the same with two
workers; the same with batches by hand; and Ray Serve with its defaults. Each serves in turn, and is
asked by the same load generator (`action=load_test`) in a process of its own, on the same cores.
The order changes from round to round; a ratio is the median of the ratios within the rounds. A
missed target is shown as it is.

    nox -s bench -- serve-fastapi
    nox -s bench -- serve-fastapi --variant project --variant uvicorn --rounds 1
    nox -s bench -- serve-fastapi --part settings
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from ray_shared.cluster import available_cpus
from ray_shared.report import versions
from ray_shared.testing import free_port
from rich.console import Console
from rich.table import Table
from serve_fastapi import builtin
from serve_fastapi.config import PROJECT

logger = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
CONCURRENCY = (1, 16, 64, 256)
VARIANTS = {
    "project": ["-m", "serve_fastapi", "serve.block=true", "scale.ingress.max=1"],
    "project, fused": [
        *["-m", "serve_fastapi", "serve.block=true", "scale.ingress.max=1", "scale.fused=true"],
    ],
    "project, 2 replicas": [
        *["-m", "serve_fastapi", "serve.block=true", "scale.fused=true"],
        *["scale.ingress.min=2", "scale.ingress.max=2"],
    ],
    "uvicorn": [str(HERE / "plain.py")],
    "uvicorn, 2 workers": [str(HERE / "plain.py"), "--workers=2"],
    "uvicorn, batched": [str(HERE / "plain.py"), "--batch"],
    "Serve's defaults": [str(HERE / "obvious_serve.py")],
}
# One setting back at Ray Serve's default, or the other way round: what it buys.
FUSED = VARIANTS["project, fused"]
SETTINGS = {
    "project, fused": FUSED,
    "without HAProxy": [*FUSED, "serve.front=python"],
    "HAProxy counts, too": ["RAY_SERVE_HAPROXY_METRICS_ENABLED=1", *FUSED],
    "threads of Serve's own": ["RAY_SERVE_THROUGHPUT_OPTIMIZED=0", *FUSED],
    "a row at a time": [*FUSED, "batch.max_rows=1"],
    "a line of the log each": [
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE=1",
        *FUSED,
        "log.requests=all",
    ],
    "stages apart": VARIANTS["project"],
}
TARGETS = [
    ("rps", "64", "project", "uvicorn", ">=", 1.5),
    ("p99_ms", "64", "project", "uvicorn", "<=", 1.0),
    ("rps", "64", "project", "uvicorn, batched", ">=", 1.0),
    ("rps", "64", "project, 2 replicas", "uvicorn, 2 workers", ">=", 1.0),
    ("rps", "health", "project", "uvicorn", ">=", 0.8),
    ("rps", "64", "project", "Serve's defaults", ">=", 8.0),
]
# Seconds, of this application alone.
BOUNDS = [("start_s", 10.0), ("stop_s", 5.0)]


@contextlib.contextmanager
def serving(variant: str, bundles: dict[str, str], directory: Path) -> Iterator[dict[str, Any]]:
    """Starts a variant; its port, its process and the seconds to its first answer."""
    port = free_port()
    given = (VARIANTS | SETTINGS)[variant]
    variables = dict(item.split("=") for item in given if item.startswith("RAY_"))
    command = [sys.executable, *(item for item in given if not item.startswith("RAY_"))]
    if "serve_fastapi" in given:
        command += [f"serve.port={port}", f"hydra.run.dir={directory}/run"]
        command += [f"+models.bundles.{name}={path}" for name, path in bundles.items()]
    else:
        command += [f"--port={port}", f"--bundle={bundles['digits']}"]
    env = os.environ | variables | {"RAY_TMPDIR": str(directory)}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As in whatever a shell starts with `&`; the server would inherit it and miss every Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.perf_counter()
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=HERE, env=env, stdout=log, stderr=log, start_new_session=True
        )
    server: dict[str, Any] = {"port": port, "process": process}
    try:
        wait_until_ready(process, port, directory / "log")
        server["start_s"] = time.perf_counter() - started
        yield server
    finally:
        stopped = time.perf_counter()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                raise
        server["stop_s"] = time.perf_counter() - stopped


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Until a request for a digit is answered."""
    body = json.dumps({"image": [[0] * 8] * 8}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/digits", body, {"content-type": "application/json"}
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.02)
    raise RuntimeError(f"no answer:\n{log.read_text()[-3000:]}")


def family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """A process and all below it."""
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(process: "subprocess.Popen[bytes]") -> float:
    """What a process and all below it have used so far."""
    total = 0.0
    for member in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def memory_mb(process: "subprocess.Popen[bytes]") -> float:
    """Proportional set size of a process and all below it."""
    total = 0
    for member in family(process):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += member.memory_full_info().pss
    return total / 2**20


def load(
    port: int, concurrency: int, seconds: float, directory: Path, kind: str = "digits"
) -> dict[str, Any]:
    """Asks for some seconds; what the generator counted."""
    out = directory / f"load-{time.time_ns()}"
    command = [sys.executable, "-m", "serve_fastapi", "action=load_test"]
    command += [f"load.address=http://127.0.0.1:{port}", f"load.concurrency={concurrency}"]
    command += [f"load.duration_s={seconds}", f"load.kind={kind}", f"hydra.run.dir={out}"]
    subprocess.run(command, check=True, capture_output=True, cwd=directory)
    metrics: dict[str, Any] = json.loads((out / "result.json").read_text())["metrics"]
    return metrics


def run_round(
    number: int, variants: list[str], seconds: float, bundles: dict[str, str]
) -> dict[str, Any]:
    """Serves each variant once, another one first in each round."""
    shift, figures = number % len(variants), {}
    for variant in variants[shift:] + variants[:shift]:
        with tempfile.TemporaryDirectory(prefix="b-", ignore_cleanup_errors=True) as name:
            with serving(variant, bundles, Path(name)) as server:
                found: dict[str, Any] = {"start_s": server["start_s"]}
                load(server["port"], 16, 2, Path(name))  # Warm.
                for concurrency, kind in [*((c, "digits") for c in CONCURRENCY), (64, "health")]:
                    before = cpu_seconds(server["process"])
                    one = load(server["port"], concurrency, seconds, Path(name), kind)
                    used = cpu_seconds(server["process"]) - before
                    one["cpu_s_per_1000"] = 1000 * used / max(one["num_requests"], 1)
                    found[kind if kind == "health" else str(concurrency)] = one
                    logger.info(
                        "round %d  %-20s %s, c=%3d  %6.0f/s  p50 %6.1f  p99 %7.1f ms  %d failed",
                        *(number, variant, kind, concurrency, one["rps"]),
                        *(one["p50_ms"], one["p99_ms"], one["num_failed"]),
                    )
                found["memory_mb"] = memory_mb(server["process"])
            found["stop_s"] = server["stop_s"]
            figures[variant] = found
    return figures


def ratio(rounds: list[dict[str, Any]], key: str, at: str, ours: str, peer: str) -> float:
    """Our figure by the peer's: the median over the rounds."""
    return statistics.median(r[ours][at][key] / r[peer][at][key] for r in rounds)


def show(rounds: list[dict[str, Any]], variants: list[str]) -> list[dict[str, Any]]:
    """Prints medians and targets; returns the targets."""

    def median(variant: str, *path: str) -> float:
        values = []
        for one in rounds:
            value: Any = one[variant]
            for step in path:
                value = value[step]
            values.append(float(value))
        return statistics.median(values)

    table = Table(title=f"{PROJECT}: medians of {len(rounds)} round(s)", title_justify="left")
    heads = [*(f"{c} at a time" for c in CONCURRENCY), "no model, 64"]
    for head in ("requests/s, p99 ms", *heads, "CPU s/1000", "MB", "start s", "stop s"):
        table.add_column(head, justify="right")
    for variant in variants:
        cells = [
            f"{median(variant, at, 'rps'):,.0f}, {median(variant, at, 'p99_ms'):.0f}"
            for at in [*map(str, CONCURRENCY), "health"]
        ]
        cells.append(f"{median(variant, '64', 'cpu_s_per_1000'):.2f}")
        cells.append(f"{median(variant, 'memory_mb'):,.0f}")
        cells += [f"{median(variant, key):.1f}" for key in ("start_s", "stop_s")]
        table.add_row(variant, *cells)
    Console(width=max(130, Console().width)).print(table)
    targets = []
    for key, at, ours, peer, sign, bound in TARGETS:
        if not {ours, peer} <= set(variants):
            continue
        value = ratio(rounds, key, at, ours, peer)
        met = value >= bound if sign == ">=" else value <= bound
        word = "met   " if met else "missed"
        print(f"{word}  {ours}: {key} at {at} vs {peer}: {value:.2f}, {sign} {bound}")
        targets.append({"metric": key, "at": at, "against": peer, "ratio": value, "met": met})
    for key, bound in BOUNDS:
        if "project" in variants:
            value = median("project", key)
            word = "met   " if value <= bound else "missed"
            print(f"{word}  project: {key} {value:.1f}, <= {bound}")
            targets.append({"metric": key, "value": value, "met": value <= bound})
    return targets


def plot(rounds: list[dict[str, Any]], variants: list[str], path: Path) -> None:
    """Requests per second, and the 99th percentile of latency, over concurrency."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, title in zip(
        axes, ("rps", "p99_ms"), ("requests/s", "99th percentile, ms"), strict=True
    ):
        for variant in variants:
            values = [
                statistics.median(r[variant][str(c)][key] for r in rounds) for c in CONCURRENCY
            ]
            axis.plot(CONCURRENCY, values, marker="o", label=variant)
        axis.set(title=title, xlabel="requests at a time", xscale="log")
        axis.set_xticks(CONCURRENCY, [str(c) for c in CONCURRENCY])
        axis.minorticks_off()
    axes[0].set_ylim(0)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs the rounds, prints the table and saves everything measured."""
    parser = argparse.ArgumentParser(description="Compares this project with its peers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="of the peers")
    parser.add_argument("--part", choices=("peers", "settings"), action="append")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parts = {"peers": args.variant or list(VARIANTS), "settings": list(SETTINGS)}
    machine = {"cpu": platform.processor(), "cores": available_cpus()}
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    for part in args.part or parts:
        variants = parts[part]
        with tempfile.TemporaryDirectory(prefix="b-") as name:
            bundles = builtin.ensure(Path(name))
            rounds = [run_round(n, variants, args.seconds, bundles) for n in range(args.rounds)]
        result = {"machine": machine | {"versions": versions(PROJECT)}}
        result |= {"targets": show(rounds, variants), "rounds": rounds}
        (results / f"{part}.json").write_text(json.dumps(result, indent=2) + "\n")
        plot(rounds, variants, results / f"{part}.png")
    print(f"everything measured: {results}")


if __name__ == "__main__":
    main()
