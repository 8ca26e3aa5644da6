"""`action=compare`: several ways to search, with the same epochs to spend, over several seeds."""

import logging
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.tune import Stopper
from ray_shared.errors import JobError
from ray_shared.report import Report
from ray_shared.runs import record_run, run_name
from ray_shared.storage import open_storage

from asha_pbt_tune import plots, results, tune
from asha_pbt_tune.config import PROJECT, Config
from asha_pbt_tune.earlier import variant_of
from asha_pbt_tune.record import PRUNED, Event, Record

logger = logging.getLogger(__name__)


class EpochBudget(Stopper):
    """Ends a study when all its trials together have trained so many epochs."""

    record: Record
    """Of the study that runs. Of the class, because Tune takes a stopper out of the state of a
    study that is resumed: with a record in it, that would be a copy that counts no more."""

    def __init__(self, budget: int):
        self.budget = budget

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial is to be stopped; none is, alone."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """Whether all are."""
        return self.record.epochs_spent >= self.budget


def run(config: Config, report: Report) -> None:
    """Runs every variant with every seed on the connected cluster and fills `report`."""
    name = run_name(config.run, PROJECT)
    run_dir = open_storage(config.storage.path).child(name)
    record_run(run_dir, config.locked())
    report.artifacts["run"] = run_dir.uri
    budget = config.tune.num_trials * config.train.epochs
    studies: list[dict[str, Any]] = []
    with report.timed("job_s"):
        for seed in range(config.tune.seed, config.tune.seed + config.compare.num_seeds):
            for variant in config.compare.variants:
                directory = report.output_dir / f"{variant}-{seed}"
                directory.mkdir(parents=True, exist_ok=True)
                study = variant_of(config, variant, seed)
                EpochBudget.record = record = Record(study, directory)
                where = run_dir.child(f"{variant}-{seed}")
                trials = tune.search(study, record, where, EpochBudget(budget))
                results.tidy(study, trials, None)
                found = curve(study, record.events)
                check_failed(config, f"{variant}, seed {seed}", found)
                studies.append({"variant": variant, "seed": seed} | found)
        report.metrics = summarize(config, studies)
        path = report.output_dir / "compare.parquet"
        pq.write_table(pa.Table.from_pylist(studies), path)
        report.artifacts |= {"studies": str(path), "plot": str(draw(config, studies, path.parent))}
    show(config, report)


def check_failed(config: Config, study: str, found: dict[str, Any]) -> None:
    """Ends a comparison that would compare with a failed study.

    Raises:
        JobError: If it has no score, or more failed trials than are allowed.
    """
    failed, trials = found["num_failed"], found["num_trials"]
    if not found["best"] or not np.isfinite(found["best"][-1]):
        raise JobError(f"{study}: no trial has a score; {failed} of {trials} failed")
    allowed = config.failure.max_failed_fraction
    if failed > allowed * trials:
        key = "failure.max_failed_fraction"
        raise JobError(f"{study}: {failed} of {trials} trials failed, more than {key}={allowed:g}")


def curve(config: Config, events: list[Event]) -> dict[str, Any]:
    """The best score so far after each epoch, and the counts."""
    _, seconds, best = plots.best_so_far(config, events)
    # Tune draws at random far ahead: where the budget ends, these trials have not begun.
    ended = [e for e in events if e["event"] == "end"]
    idle = {e["trial"] for e in ended if e["fate"] == PRUNED and not e["epoch"]}
    counts = results.summarize(config, [e for e in events if e.get("trial") not in idle])
    names = ("num_trials", "num_pruned", "num_failed", "num_exploits", "epochs_spent")
    return {name: counts[name] for name in names} | {"seconds": seconds, "best": best}


def reached(config: Config, study: dict[str, Any], score: float) -> tuple[float, float]:
    """Epochs and seconds that a study needed for this score; infinite if it did not reach it."""
    better = np.less_equal if config.mode == "min" else np.greater_equal
    hits = np.flatnonzero(better(study["best"], score))
    if len(hits) == 0:
        return math.inf, math.inf
    return float(hits[0] + 1), float(study["seconds"][hits[0]])


def summarize(config: Config, studies: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds, and what each variant needs for the best of the first one."""
    budget = config.tune.num_trials * config.train.epochs
    first = config.compare.variants[0]
    targets = {s["seed"]: s["best"][-1] for s in studies if s["variant"] == first}
    found: dict[str, Any] = {"epochs": budget, "target": first}
    for variant in config.compare.variants:
        mine = [s for s in studies if s["variant"] == variant]
        needed = [reached(config, s, targets[s["seed"]]) for s in mine]
        found[variant] = {
            "best_score": statistics.median(s["best"][-1] for s in mine),
            "num_trials": statistics.median(s["num_trials"] for s in mine),
            "num_pruned": statistics.median(s["num_pruned"] for s in mine),
            "num_exploits": statistics.median(s["num_exploits"] for s in mine),
            "num_failed": sum(s["num_failed"] for s in mine),
            "epochs_spent": statistics.median(s["epochs_spent"] for s in mine),
            "seconds": statistics.median(s["seconds"][-1] for s in mine),
            # None, if most of the studies did not reach it.
            "share_of_epochs": _finite(statistics.median(e / budget for e, _ in needed)),
            "seconds_to_target": _finite(statistics.median(seconds for _, seconds in needed)),
        }
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show(config: Config, report: Report) -> None:
    """The table that a person reads."""
    first = report.metrics["target"]
    rows = {}
    for variant in config.compare.variants:
        m = report.metrics[variant]
        share = m["share_of_epochs"]
        reached = f"after {share:.2f} of its epochs" if share is not None else "not reached"
        rows[variant] = (
            f"best {m['best_score']:.4f}, {m['num_trials']:g} trials, "
            f"{m['seconds']:.0f} s; {first}'s best {reached}"
        )
    report.show(rows, f"{PROJECT}: medians of {config.compare.num_seeds} seed(s)")


def draw(config: Config, studies: list[dict[str, Any]], directory: Path) -> Path:
    """Draws the best score against epochs and against seconds: a thin line each seed, a median."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    figure = plots.new_figure(10, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    for index, variant in enumerate(config.compare.variants):
        mine = [s for s in studies if s["variant"] == variant]
        color = f"C{index}"
        length = min(len(s["best"]) for s in mine)
        for s in mine:
            left.step(range(1, len(s["best"]) + 1), s["best"], color=color, alpha=0.25, lw=0.8)
            right.step(s["seconds"], s["best"], color=color, alpha=0.25, lw=0.8)
        median = np.median([s["best"][:length] for s in mine], axis=0)
        left.step(range(1, length + 1), median, color=color, label=variant, where="post")
        seconds = np.median([s["seconds"][:length] for s in mine], axis=0)
        right.step(seconds, median, color=color, where="post")
    left.set_ylabel(f"best {config.metric}")
    left.set_xlabel("epochs spent")
    right.set_xlabel("seconds")
    for ax in (left, right):
        plots.log_if_loss(config, ax)
        ax.grid(alpha=0.3)
    left.legend()
    path = directory / "compare.png"
    figure.savefig(path, dpi=120)
    return path
