"""This project beside TensorFlow without Ray: the same model, data and steps, in one run.

Four commands take turns: this project; MultiWorkerMirroredStrategy started by hand with `TF_CONFIG`
and the loop of TensorFlow's tutorial (`raw.py`); the same with this project's own step, so that
only what Ray adds is left; and one process with the whole batch. The order changes from round to
round, a ratio is the median of the ratios within the rounds. A missed target is shown as it is.

    nox -s bench -- tf-train
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from ray_shared.cluster import available_cpus
from ray_shared.config import compose
from ray_shared.report import versions
from ray_shared.testing import free_port
from rich.console import Console
from rich.table import Table
from tf_train.config import PROJECT, Config

logger = logging.getLogger(__name__)
TIMEOUT_S = 300.0
HERE = Path(__file__).resolve().parent
VARIANTS = ("project", "raw", "same step", "alone")
TITLES = {
    "steps_per_s": "steady state, steps/s",
    "first_step_s": "launch to end of first epoch, s",
    "wall_s": "whole command, s",
    "val_accuracy": "validation accuracy",
}
TARGETS = [
    ("steps_per_s", "raw", ">=", 0.97),
    ("steps_per_s", "same step", ">=", 0.97),
    ("wall_s", "raw", "<=", 1.8),
]


def run_once(variant: str, config: Config, overrides: list[str], directory: Path) -> dict[str, Any]:
    """Runs one command in an empty directory.

    Raises:
        RuntimeError: If it fails, with the end of its output.
    """
    if variant == "project":
        events = directory / "run" / "metrics.jsonl"
        job = [sys.executable, "-m", "tf_train", f"hydra.run.dir={directory}/run", *overrides]
        commands = [job]
    else:
        events = directory / "events.jsonl"
        parts = ("data", "model", "train")
        values = {part: dataclasses.asdict(getattr(config, part)) for part in parts}
        num_workers = config.scaling.num_workers
        values["threads"] = max(1, int(config.scaling.cpus_per_worker))
        if variant == "alone":
            values["train"]["batch_size"] *= num_workers
            values["threads"], num_workers = available_cpus(), 1
        (directory / "config.json").write_text(json.dumps(values))
        addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(num_workers))
        script = [sys.executable, str(HERE / "raw.py"), f"--config={directory}/config.json"]
        script += [f"--addresses={addresses}", f"--out={events}"]
        script += ["--steps=tutorial" if variant == "raw" else "--steps=project"]
        commands = [[*script, f"--rank={rank}"] for rank in range(num_workers)]
    launched_at, started = time.time(), time.perf_counter()
    with contextlib.ExitStack() as files:
        logs = [
            files.enter_context((directory / f"{i}.log").open("w")) for i in range(len(commands))
        ]
        processes = [
            subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
            for command, log in zip(commands, logs, strict=True)
        ]
        try:
            # If one has failed, the others wait for it without end.
            while None in (codes := [process.poll() for process in processes]):
                if any(codes) or time.perf_counter() - started > TIMEOUT_S:
                    raise RuntimeError(f"{variant}: exit codes {codes}; the logs: {directory}")
                time.sleep(0.02)
        except BaseException:  # Ctrl-C: the commands stop their own processes.
            for process in processes:
                process.terminate()
                process.wait()
            raise
    wall_s = time.perf_counter() - started
    for number, code in enumerate(codes):
        if code:
            tail = "\n".join((directory / f"{number}.log").read_text().splitlines()[-30:])
            raise RuntimeError(f"{variant}: exit code {code}\n{tail}")
    found = [json.loads(line) for line in events.read_text().splitlines()]
    first, *rest = [event for event in found if event["event"] == "epoch"]
    steps_per_epoch = first["step"]
    return {
        # The first epoch traces the functions and is left out.
        "steps_per_s": statistics.median(steps_per_epoch / event["train_s"] for event in rest),
        "first_step_s": first["first_step_at"] - launched_at,
        "wall_s": wall_s,
        "val_accuracy": rest[-1]["val_accuracy"],
        "num_steps": rest[-1]["step"],
    }


def run_round(number: int, config: Config, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Runs each variant once, another one first in each round."""
    shift, figures = number % len(VARIANTS), {}
    for variant in VARIANTS[shift:] + VARIANTS[:shift]:
        with tempfile.TemporaryDirectory(prefix="cmp-", ignore_cleanup_errors=True) as name:
            figures[variant] = run_once(variant, config, overrides, Path(name))
        f = figures[variant]
        message = "round %d  %-9s  %3d steps  %6.1f steps/s  %5.1f s in all"
        logger.info(message, number, variant, f["num_steps"], f["steps_per_s"], f["wall_s"])
    if len({f["num_steps"] for f in figures.values()}) > 1:
        raise RuntimeError("not the same number of steps")
    return figures


def show(rounds: list[dict[str, dict[str, Any]]], title: str) -> list[dict[str, Any]]:
    """Prints medians, ratios and targets; returns the targets."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (*VARIANTS, *(f"vs {peer}" for peer in VARIANTS[1:])):
        table.add_column(heading, justify="right")
    for key, name in TITLES.items():
        medians = [statistics.median(r[v][key] for r in rounds) for v in VARIANTS]
        cells = [f"{median:.3g}" for median in medians]
        table.add_row(name, *cells, *(f"{ratio(rounds, key, peer):.2f}" for peer in VARIANTS[1:]))
    Console(width=max(100, Console().width)).print(table)
    targets = []
    for key, peer, sign, bound in TARGETS:
        value = ratio(rounds, key, peer)
        met = value >= bound if sign == ">=" else value <= bound
        print(
            f"{'met   ' if met else 'missed'}  {TITLES[key]} vs {peer}: {value:.2f}, {sign} {bound}"
        )
        targets.append({"metric": key, "against": peer, "ratio": value, "bound": bound, "met": met})
    return targets


def plot(rounds: list[dict[str, dict[str, Any]]], path: Path) -> None:
    """This project's figures by each peer's; 1 is the same."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    ax = figure.subplots()
    for number, peer in enumerate(VARIANTS[1:]):
        places = [row + 0.25 * (number - 1) for row in range(len(TITLES))]
        bars = ax.barh(places, [ratio(rounds, key, peer) for key in TITLES], 0.25, label=peer)
        ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.margins(x=0.1)
    ax.axvline(1, color="black", linewidth=1)
    ax.set_yticks(range(len(TITLES)), TITLES.values())
    ax.invert_yaxis()
    ax.set_xlabel("this project / peer")
    ax.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def ratio(rounds: list[dict[str, dict[str, Any]]], key: str, peer: str) -> float:
    """The project's figure by the peer's: the median over the rounds."""
    return statistics.median(r["project"][key] / r[peer][key] for r in rounds)


def main() -> None:
    """Runs the rounds, prints the table and saves everything measured."""
    parser = argparse.ArgumentParser(description="Compares this project with TensorFlow alone.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of the job, for all: train.batch_size=64")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = compose(Config, "tf_train.conf", args.overrides)
    machine = {"cpu": platform.processor(), "cores": available_cpus(), "load": os.getloadavg()[0]}
    run_round(0, config, args.overrides)  # Warms the file cache.
    rounds = [run_round(number + 1, config, args.overrides) for number in range(args.rounds)]
    targets = show(
        rounds, f"{PROJECT}: medians of {args.rounds} round(s), {machine['cores']} cores"
    )
    result = {"machine": machine | {"versions": versions(PROJECT)}, "targets": targets}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result | {"rounds": rounds}, indent=2)
    (args.out / "compare.json").write_text(text + "\n")
    plot(rounds, args.out / "compare.png")
    print(f"everything measured: {args.out}")


if __name__ == "__main__":
    main()
