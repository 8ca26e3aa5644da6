"""This project beside `torchrun`: the same model, data, steps and processes, in one run.

Three commands take turns: this project with its defaults; `torchrun_ddp.py`, a plain DDP script in
the manner of PyTorch's tutorial; and that script with this project's loader. The order changes from
round to round, and a ratio is the median of the ratios within the rounds, so that a slow minute of
the machine does not decide. A round before them warms the file cache and samples memory; its times
do not count, because sampling fifteen processes takes 5% of a core. A missed target is shown as it
is.

    nox -s bench -- torch-ddp-train
    nox -s bench -- torch-ddp-train --part default train.epochs=40
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
from matplotlib.figure import Figure
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
    "epoch_s": "whole epoch, s",
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
PARTS = {"default": [], "small": ["model.width=8", "train.batch_size=256", "train.epochs=40"]}
"""The default job, and a small model with large batches: overrides of each."""


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
        if self.is_alive():
            self.join()


def memory_bytes(process: psutil.Process) -> int:
    """PSS or else RSS; 0 for a process that is gone."""
    try:
        return int(
            process.memory_full_info().pss if sys.platform == "linux" else process.memory_info().rss
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def run_once(
    variant: str, config: Config, overrides: list[str], directory: Path, sample: bool
) -> dict[str, Any]:
    """Runs one command in an empty directory; with `sample`, its memory is measured, too.

    Raises:
        RuntimeError: If it fails, with the end of its output.
    """
    events_path = directory / "run" / "metrics.jsonl"
    environment = os.environ.copy()
    if variant == "project":
        command = ["-m", "torch_ddp_train", f"hydra.run.dir={directory / 'run'}", *overrides]
        # Ray's sessions go with the directory, unless its sockets' paths would get too long.
        if len(str(directory)) < 40:
            environment.setdefault("RAY_TMPDIR", str(directory))
    else:
        environment["TMPDIR"] = str(directory)  # torchrun leaves directories behind.
        events_path.parent.mkdir()
        values = {
            key: dataclasses.asdict(getattr(config, key))
            for key in ("data", "model", "train", "scaling", "checkpoint")
        }
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
        if sample:
            memory.start()
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C: the command stops its own processes.
            process.terminate()
            process.wait()
            raise
        wall_s = time.perf_counter() - started
        memory.finish()
    if code != 0:
        tail = "\n".join(log.read_text().splitlines()[-30:])
        raise RuntimeError(f"{variant}: exit code {code}\n{tail}")
    events = [json.loads(line) for line in events_path.read_text().splitlines()]
    figures = measure([e for e in events if e["event"] == "epoch"], launched_at)
    figures["wall_s"] = wall_s
    if sample:
        figures |= {"peak_mb": memory.peak_bytes / 2**20, "num_processes": memory.num_processes}
    return figures


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


def run_round(number: int, config: Config, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Runs each variant once; round 0 is the one that samples memory.

    Returns:
        Variant to figures.

    Raises:
        RuntimeError: If a command fails, or if they did not do the same work.
    """
    figures = {}
    shift = number % len(VARIANTS)
    for variant in VARIANTS[shift:] + VARIANTS[:shift]:
        with tempfile.TemporaryDirectory(prefix="cmp-", ignore_cleanup_errors=True) as name:
            f = run_once(variant, config, overrides, Path(name), sample=number == 0)
        figures[variant] = f
        milliseconds = " ".join(f"{1000 * s:.0f}" for s in f["train_s"])
        message = "round %d  %-11s  %3d steps  %5.1f s in all  training of each epoch, ms: %s"
        logger.info(message, number, variant, f["num_steps"], f["wall_s"], milliseconds)
    work = {(f["num_steps"], f["num_images"]) for f in figures.values()}
    if len(work) > 1:
        raise RuntimeError(f"not the same work: (steps, images) are {sorted(work)}")
    return figures


def summarize(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians, ratios of the project to each peer, and the targets; `rounds[0]` is the warm-up."""
    medians: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for key in TITLES:
        counted = rounds[:1] if key == "peak_mb" else rounds[1:]
        medians[key] = {v: statistics.median(r[v][key] for r in counted) for v in VARIANTS}
        ratios[key] = {}
        for peer in PEERS:
            each = [r["project"][key] / r[peer][key] for r in counted]
            middle = statistics.median(each)
            ratios[key][peer] = {"median": middle, "min": min(each), "max": max(each)}
    targets = []
    for key, peer, sign, bound in TARGETS:
        ratio = ratios[key][peer]["median"]
        met = ratio >= bound if sign == ">=" else ratio <= bound
        targets.append({"metric": key, "against": peer, "sign": sign, "bound": bound, "met": met})
    return {"medians": medians, "ratios": ratios, "targets": targets}


def show(part: str, summary: dict[str, Any], machine: dict[str, Any], num_rounds: int) -> None:
    """Prints medians and ratios, and below them the targets."""
    title = f"{part}, medians of {num_rounds} round(s), {machine['cpu']}, {machine['cores']} cores"
    table = Table(title=f"{PROJECT}: {title}", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (*VARIANTS, *(f"vs {peer}" for peer in PEERS)):
        table.add_column(heading, justify="right")
    for key, name in TITLES.items():
        cells = [format(summary["medians"][key][v], FORMATS.get(key, ".2f")) for v in VARIANTS]
        ratios = [format(summary["ratios"][key][peer]["median"], ".2f") for peer in PEERS]
        table.add_row(name, *cells, *ratios)
    Console().print(table)
    for t in summary["targets"]:
        ratio = summary["ratios"][t["metric"]][t["against"]]
        print(
            f"{'met   ' if t['met'] else 'missed'}  {TITLES[t['metric']]} vs {t['against']}: "
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}), "
            f"target {t['sign']} {t['bound']:g}"
        )


def plot(ratios: dict[str, Any], path: Path) -> None:
    """This project's figures by each peer's; 1 is the same."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    ax = figure.subplots()
    for number, peer in enumerate(PEERS):
        places = [row + 0.4 * (number - 0.5) for row in range(len(TITLES))]
        bars = ax.barh(places, [ratios[key][peer]["median"] for key in TITLES], 0.4, label=peer)
        ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.margins(x=0.1)
    ax.axvline(1, color="black", linewidth=1)
    ax.set_yticks(range(len(TITLES)), TITLES.values())
    ax.invert_yaxis()
    ax.set_xlabel("this project / peer")
    ax.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def describe_machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": available_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(PROJECT),
        "memory_kind": "PSS" if sys.platform == "linux" else "RSS",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
    }


def main() -> None:
    """Runs the rounds, prints the table and saves everything measured."""
    parser = argparse.ArgumentParser(description="Compares this project with torchrun.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("overrides", nargs="*", help="of the job, for all: train.batch_size=256")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be >= 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    for part in args.part or PARTS:
        overrides = [*PARTS[part], *args.overrides]
        config = compose(Config, "torch_ddp_train.conf", overrides)
        if config.train.epochs < 2:
            parser.error("train.epochs must be >= 2: the first epoch is left out")
        rounds = [run_round(number, config, overrides) for number in range(args.rounds + 1)]
        summary = summarize(rounds)
        result = {"project": PROJECT, "machine": machine, **summary, "rounds": rounds}
        result |= {"config": dataclasses.asdict(config)}
        (args.out / f"{part}.json").write_text(json.dumps(result, indent=2) + "\n")
        show(part, summary, machine, args.rounds)
        plot(summary["ratios"], args.out / f"{part}.png")
    print(f"everything measured: {args.out}")


if __name__ == "__main__":
    main()
