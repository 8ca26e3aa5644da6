"""This project beside `torchrun`: the same model, data, steps and processes, in one run.

Three commands take turns: this project with its defaults; `torchrun_ddp.py`, a plain DDP script in
the manner of PyTorch's tutorial; and that script with this project's loader. The order changes from
round to round, and a ratio is the median of the ratios within the rounds, so that a slow minute of
the machine does not decide. A missed target is shown as it is.

    nox -s bench -- torch-ddp-train
    python benchmarks/compare.py --rounds 1 --epochs 5
"""

import argparse
import dataclasses
import json
import logging
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from ray_shared.cluster import available_cpus
from ray_shared.config import compose
from ray_shared.report import versions
from rich.console import Console
from rich.table import Table
from torch_ddp_train.config import Config

logger = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
PROJECT = "torch-ddp-train"
VARIANTS = ("project", "tutorial", "same loader")
PEERS = VARIANTS[1:]
SAMPLE_INTERVAL_S = 0.5
TITLES = {
    "samples_per_s": "steady state, samples/s",
    "epoch_s": "epoch with validation, s",
    "first_step_s": "launch to first step, s",
    "wall_s": "whole command, s",
    "peak_mb": "peak memory, MB",
    "val_accuracy": "validation accuracy",
}
FORMATS = {"samples_per_s": ",.0f", "peak_mb": ",.0f", "val_accuracy": ".3f"}
TARGETS = [
    ("samples_per_s", "tutorial", ">=", 1.5),
    ("samples_per_s", "same loader", ">=", 0.97),
    ("wall_s", "tutorial", "<=", 2.0),
    ("wall_s", "same loader", "<=", 2.0),
]
WALL_AIM = 1.3


class PeakMemory(threading.Thread):
    """Samples the memory of a process and all below it: with Ray its GCS, raylet and workers.

    Counts PSS where the system has it (Linux): each shared page once. Else RSS.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.num_processes = 0
        """At the peak."""
        self._root = psutil.Process(pid)
        self._known = {self._root}
        self._done = threading.Event()

    def run(self) -> None:
        """Samples until `finish`."""
        while not self._done.wait(SAMPLE_INTERVAL_S):
            try:
                # Kept from sample to sample: a process whose parent has ended still counts.
                self._known.update(self._root.children(recursive=True))
            except psutil.NoSuchProcess:
                return
            sizes = [size for size in map(memory_bytes, self._known) if size]
            if sum(sizes) > self.peak_bytes:
                self.peak_bytes, self.num_processes = sum(sizes), len(sizes)

    def finish(self) -> None:
        """Stops the thread."""
        self._done.set()
        self.join()


def memory_bytes(process: psutil.Process) -> int:
    """PSS or else RSS; 0 for a process that is gone."""
    try:
        return int(process.memory_full_info().pss if sys.platform == "linux" else process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def run_once(variant: str, config: Config, directory: Path) -> dict[str, Any]:
    """Runs one command in an empty directory.

    Raises:
        RuntimeError: If it fails, with the end of its output.
    """
    events_path = directory / "run" / "metrics.jsonl"
    environment = os.environ.copy()
    if variant == "project":
        overrides = [f"train.epochs={config.train.epochs}", f"hydra.run.dir={directory / 'run'}"]
        command = ["-m", "torch_ddp_train", *overrides]
        # Ray's sessions go with the directory, unless its sockets' paths would get too long.
        if len(str(directory)) < 40:
            environment.setdefault("RAY_TMPDIR", str(directory))
    else:
        events_path.parent.mkdir()
        values = {key: dataclasses.asdict(getattr(config, key)) for key in ("data", "model", "train")}
        (directory / "config.json").write_text(json.dumps(values))
        command = ["-m", "torch.distributed.run", f"--nproc-per-node={config.scaling.num_workers}"]
        command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
        command += [str(HERE / "torchrun_ddp.py"), f"--config={directory / 'config.json'}"]
        loader = "project" if variant == "same loader" else "tutorial"
        command += [f"--loader={loader}", f"--out={events_path}"]
    log = directory / "output.log"
    with log.open("w") as output:
        launched_at, started = time.time(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=directory, env=environment, stdout=output, stderr=output
        )
        memory = PeakMemory(process.pid)
        memory.start()
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C: the command stops its own processes.
            process.terminate()
            process.wait()
            raise
        finally:
            memory.finish()
        wall_s = time.perf_counter() - started
    if code != 0:
        tail = "\n".join(log.read_text().splitlines()[-30:])
        raise RuntimeError(f"{variant}: exit code {code}\n{tail}")
    events = [json.loads(line) for line in events_path.read_text().splitlines()]
    return measure([e for e in events if e["event"] == "epoch"], launched_at) | {
        "wall_s": wall_s,
        "peak_mb": memory.peak_bytes / 2**20,
        "num_processes": memory.num_processes,
    }


def measure(epochs: list[dict[str, Any]], launched_at: float) -> dict[str, Any]:
    """The figures of one command from its epoch events, computed the same way for all.

    The first epoch warms up and is left out: `samples_per_s` is the median over the others of
    images of all workers by seconds of training, and `epoch_s` the mean length of the others from
    end to end, with validation, checkpoint and report.
    """
    first, *rest = epochs
    return {
        "samples_per_s": statistics.median(e["samples_per_s"] for e in rest),
        "epoch_s": (rest[-1]["time"] - first["time"]) / len(rest),
        "first_step_s": first["first_step_at"] - launched_at,
        "val_accuracy": rest[-1]["val_accuracy"],
        "num_steps": rest[-1]["step"],
        "num_images": round(sum(e["samples_per_s"] * e["train_s"] for e in epochs)),
        "train_s": [e["train_s"] for e in epochs],
    }


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def run_rounds(num_rounds: int, config: Config) -> list[dict[str, dict[str, Any]]]:
    """For each round: variant to figures.

    Raises:
        RuntimeError: If a command fails, or if they did not do the same work.
    """
    rounds = []
    for i in range(num_rounds):
        figures = {}
        for variant in VARIANTS[i % 3 :] + VARIANTS[: i % 3]:
            with tempfile.TemporaryDirectory(prefix="cmp-", ignore_cleanup_errors=True) as name:
                figures[variant] = f = run_once(variant, config, Path(name))
            milliseconds = " ".join(f"{1000 * s:.0f}" for s in f["train_s"])
            message = "round %d  %-11s  %3d steps, %.1f s in all; training part of each epoch, ms: %s"
            logger.info(message, i + 1, variant, f["num_steps"], f["wall_s"], milliseconds)
        work = {(f["num_steps"], f["num_images"]) for f in figures.values()}
        if len(work) > 1:
            raise RuntimeError(f"not the same work (steps, images): {work}")
        rounds.append(figures)
    return rounds


def summarize(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians, ratios of the project to each peer, and the targets."""
    medians = {
        key: {v: statistics.median(r[v][key] for r in rounds) for v in VARIANTS} for key in TITLES
    }
    ratios: dict[str, dict[str, dict[str, float]]] = {key: {} for key in TITLES}
    for key in TITLES:
        for peer in PEERS:
            each = [r["project"][key] / r[peer][key] for r in rounds]
            ratios[key][peer] = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    targets = []
    for key, peer, sign, bound in TARGETS:
        ratio = ratios[key][peer]["median"]
        met = ratio >= bound if sign == ">=" else ratio <= bound
        target = {"metric": key, "against": peer, "sign": sign, "bound": bound, "met": met}
        targets.append(target | ({"aim": WALL_AIM} if key == "wall_s" else {}))
    return {"medians": medians, "ratios": ratios, "targets": targets}


def show(summary: dict[str, Any], machine: dict[str, Any], num_rounds: int) -> None:
    """Prints the table."""
    title = f"{PROJECT}, median of {num_rounds} round(s) on {machine['cpu']}, {machine['cores']} cores"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for variant in VARIANTS:
        table.add_column(variant, justify="right")
    for peer in PEERS:
        table.add_column(f"project / {peer}", justify="right")
    for key, name in TITLES.items():
        cells = [format(summary["medians"][key][v], FORMATS.get(key, ".2f")) for v in VARIANTS]
        for peer in PEERS:
            ratio = summary["ratios"][key][peer]
            cell = f"{ratio['median']:.2f}"
            if num_rounds > 1:
                cell += f" ({ratio['min']:.2f} to {ratio['max']:.2f})"
            for t in summary["targets"]:
                if (t["metric"], t["against"]) == (key, peer):
                    aim = f", aim {t['aim']}" if "aim" in t else ""
                    met = "met" if t["met"] else "missed"
                    cell += f"\ntarget {t['sign']} {t['bound']:g}{aim}: {met}"
            cells.append(cell)
        table.add_row(name, *cells)
    Console().print(table)


def describe_machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), cpu)
    elif sys.platform == "darwin":
        cpu = subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    return {
        "cpu": cpu,
        "cores": available_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(PROJECT),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
    }


def main() -> None:
    """Runs the rounds, prints the table and saves everything measured."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="at least 2; default: the project's")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "compare.json")
    args = parser.parse_args()
    if args.rounds < 1 or (args.epochs is not None and args.epochs < 2):
        parser.error("--rounds must be >= 1 and --epochs >= 2: the first epoch is left out")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    overrides = [] if args.epochs is None else [f"train.epochs={args.epochs}"]
    config = compose(Config, "torch_ddp_train.conf", overrides)
    machine = describe_machine()
    rounds = run_rounds(args.rounds, config)
    summary = summarize(rounds)
    result = {"project": PROJECT, "machine": machine, "memory": "PSS" if sys.platform == "linux" else "RSS"}
    result |= {"config": dataclasses.asdict(config), **summary, "rounds": rounds}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    show(summary, machine, args.rounds)
    logger.info("everything measured: %s", args.out)


if __name__ == "__main__":
    main()
