"""This project beside Optuna alone and beside Ray Tune as its guides write it, in one run.

Parts: `short` (trials of a fraction of a second), `long` and `pruned` (trials of five seconds and
more, all their epochs or with ASHA), `nested` (a Ray Train run in each trial) and `search` (random,
ASHA, ASHA with TPE and PBT with the same epochs to spend: `action=compare`). The commands take
turns, a ratio is the median of the ratios within the rounds. A missed target is shown as it is.

    nox -s bench -- asha-pbt-tune --part short
"""

import argparse
import itertools
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

from asha_pbt_tune.config import PROJECT, Config
from ray_shared.cluster import available_cpus
from ray_shared.config import compose
from ray_shared.report import versions
from rich.console import Console
from rich.table import Table

logger = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
# A batch of 4 images makes an epoch take a fifth of a second.
LONG = ["objective.hyperparameters.batch_size=4", "~space.batch_size", "train.epochs=30"]
PARTS = {
    "short": ["objective=torch", "tune.num_trials=24", "scheduler=none"],
    "long": ["objective=torch", "tune.num_trials=8", "scheduler=none", *LONG],
    "pruned": ["objective=torch", "tune.num_trials=24", *LONG],
    "nested": ["experiment=distributed", "tune.num_trials=3", "scheduler=none", "train.epochs=5"],
}
PEERS = {
    "short": ("optuna", "obvious"),
    "long": ("optuna", "obvious"),
    "pruned": ("optuna", "obvious"),
    "nested": ("obvious",),
}
TARGETS = {
    "short": [("trials_per_min", "obvious", ">=", 4.0)],
    "long": [("wall_s", "optuna", "<=", 1.3)],
    "pruned": [("wall_s", "optuna", "<=", 1.3)],
    "nested": [("start_s", "obvious", "<=", 0.5)],
}
TITLES = {
    "wall_s": "whole command, s",
    "trials_per_min": "trials a minute, start-up excluded",
    "trial_s": "seconds of a trial",
    "start_s": "from a trial's end to the next one's first epoch, s",
    "target_s": "launch to target score, s",
    "epochs_spent": "epochs spent",
    "best_score": "best score",
}


def run_once(variant: str, part: str, overrides: list[str], directory: Path) -> dict[str, Any]:
    """Runs one command in an empty directory.

    Raises:
        RuntimeError: If it fails, with the end of its output.
    """
    out = directory / "result.json"
    if variant == "project":
        out = directory / "run" / "result.json"
        command = ["-m", "asha_pbt_tune", f"hydra.run.dir={directory}/run", *overrides]
    else:
        script = {"optuna": "plain_optuna.py", "obvious": "obvious_tune.py"}[variant]
        workers = available_cpus() if variant == "optuna" else 2 if part == "nested" else 1
        command = [str(HERE / script), f"--workers={workers}", f"--out={out}", *overrides]
    launched, started = time.time(), time.perf_counter()
    with (directory / "log").open("w") as log:
        code = subprocess.run(
            [sys.executable, *command], cwd=directory, stdout=log, stderr=log, check=False
        ).returncode
    wall_s = time.perf_counter() - started
    if code:
        tail = (directory / "log").read_text()[-3000:]
        raise RuntimeError(f"{variant}: exit code {code}\n{tail}")
    found = json.loads(out.read_text())
    if variant == "project":
        metrics = found["metrics"]
        lines = (directory / "run" / "metrics.jsonl").read_text().splitlines()
        metric = found["config"]["tune"]["metric"] or "val_logloss"
        epochs = [json.loads(line) for line in lines]
        epochs = [
            {"time": e["time"], "score": e[metric], "trial": e["trial"]}
            for e in epochs
            if e["event"] == "epoch"
        ]
        found = {
            "study_s": found["timings"]["job_s"],
            "epochs": epochs,
            "num_trials": metrics["num_trials"],
        }
    return {
        "wall_s": wall_s,
        "trials_per_min": 60 * found["num_trials"] / found["study_s"],
        "trial_s": found["study_s"] / found["num_trials"],
        "start_s": start_s(found["epochs"]),
        "epochs_spent": len(found["epochs"]),
        "best_score": min(e["score"] for e in found["epochs"]),
        "curve": sorted((e["time"] - launched, e["score"]) for e in found["epochs"]),
    }


def start_s(epochs: list[dict[str, Any]]) -> float:
    """Seconds from the last epoch of a trial to the first of the next, where one runs at a time.

    The median over the trials, the first one excepted.
    """
    times: dict[Any, list[float]] = {}
    for epoch in epochs:
        times.setdefault(epoch["trial"], []).append(epoch["time"])
    trials = sorted((min(found), max(found)) for found in times.values())
    return statistics.median(b - a for (_, a), (b, _) in itertools.pairwise(trials))


def run_round(part: str, number: int, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Runs each variant once, another one first in each round."""
    variants = ("project", *PEERS[part])
    shift, figures = number % len(variants), {}
    for variant in variants[shift:] + variants[:shift]:
        seeded = [*PARTS[part], f"tune.seed={number}", *overrides]
        with tempfile.TemporaryDirectory(prefix="cmp-", ignore_cleanup_errors=True) as name:
            figures[variant] = run_once(variant, part, seeded, Path(name))
        f = figures[variant]
        message = "round %d  %-8s  %6.1f s  %6.1f trials/min  %5d epochs  best %.4f"
        rate, spent = f["trials_per_min"], f["epochs_spent"]
        logger.info(message, number, variant, f["wall_s"], rate, spent, f["best_score"])
    # What all of them reach: the worst of their bests.
    target = max(f["best_score"] for f in figures.values())
    for f in figures.values():
        f["target_s"] = next(seconds for seconds, score in f.pop("curve") if score <= target)
    return figures


def show(part: str, rounds: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Prints medians, ratios and targets; returns the targets."""
    variants = ("project", *PEERS[part])
    title = f"{PROJECT}, {part}: medians of {len(rounds)} round(s), {available_cpus()} cores"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (*variants, *(f"vs {peer}" for peer in PEERS[part])):
        table.add_column(heading, justify="right")
    for key, name in TITLES.items():
        if key == "start_s" and part != "nested":  # Trials overlap.
            continue
        cells = [f"{statistics.median(r[v][key] for r in rounds):.3g}" for v in variants]
        table.add_row(name, *cells, *(f"{ratio(rounds, key, peer):.2f}" for peer in PEERS[part]))
    Console(width=max(100, Console().width)).print(table)
    targets = []
    for key, peer, sign, bound in TARGETS[part]:
        value = ratio(rounds, key, peer)
        met = value >= bound if sign == ">=" else value <= bound
        word = "met   " if met else "missed"
        print(f"{word}  {TITLES[key]} vs {peer}: {value:.2f}, {sign} {bound}")
        targets.append({"metric": key, "against": peer, "ratio": value, "bound": bound, "met": met})
    return targets


def ratio(rounds: list[dict[str, dict[str, Any]]], key: str, peer: str) -> float:
    """The project's figure by the peer's: the median over the rounds."""
    return statistics.median(r["project"][key] / r[peer][key] for r in rounds)


def search(overrides: list[str]) -> None:
    """`action=compare` over five seeds; prints its own table."""
    config = compose(Config, "asha_pbt_tune.conf", overrides)
    results = HERE / "results" / f"search-{config.objective.name}"
    command = [sys.executable, "-m", "asha_pbt_tune", "action=compare", "compare.num_seeds=5"]
    with tempfile.TemporaryDirectory(prefix="cmp-", ignore_cleanup_errors=True) as runs:
        command += [f"storage.path={runs}", f"hydra.run.dir={results}", *overrides]
        subprocess.run(command, check=True)
    share = json.loads((results / "result.json").read_text())["metrics"]["asha_tpe"]
    value = share["share_of_epochs"]
    word = "met   " if value is not None and value <= 0.25 else "missed"
    print(f"{word}  ASHA with TPE: random's best after {value} of its epochs, <= 0.25")


def main() -> None:
    """Runs the rounds, prints the table and saves everything measured."""
    parser = argparse.ArgumentParser(description="Compares this project with its peers.")
    parser.add_argument("--part", choices=[*PARTS, "search"], action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of the study, for all: train.epochs=9")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (HERE / "results").mkdir(exist_ok=True)
    for part in args.part or [*PARTS, "search"]:
        if part == "search":
            search(args.overrides)
            continue
        machine = {"cpu": platform.processor(), "cores": available_cpus()}
        machine["load"] = os.getloadavg()[0]
        rounds = [run_round(part, number, args.overrides) for number in range(args.rounds)]
        result = {"machine": machine | {"versions": versions(PROJECT)}}
        result |= {"targets": show(part, rounds), "rounds": rounds}
        out = HERE / "results" / f"{part}.json"
        out.write_text(json.dumps(result, indent=2) + "\n")
        print(f"everything measured: {out}")


if __name__ == "__main__":
    main()
