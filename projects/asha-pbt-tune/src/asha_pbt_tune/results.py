"""What a study leaves behind: counts, the table of trials, the best configuration and model."""

import dataclasses
import logging
import tempfile
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyarrow.fs import FileType
from ray.tune.experiment import Trial
from ray_shared.bundle import write_bundle
from ray_shared.errors import JobError
from ray_shared.report import Report
from ray_shared.storage import Storage

from asha_pbt_tune import objectives, plots
from asha_pbt_tune.config import Config
from asha_pbt_tune.record import FAILED, FINISHED, PRUNED, Event, number
from asha_pbt_tune.schedulers import rungs

logger = logging.getLogger(__name__)


def table_of(events: list[Event]) -> list[dict[str, Any]]:
    """One row for each trial, in the order of their start.

    `fate` is None for a trial that has not ended; `score` is the last one.
    """
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        trial = event["trial"]
        if event["event"] == "trial":
            rows[trial] = {"trial": trial, "fate": None, "epochs": 0, "score": None, "error": None}
            rows[trial] |= event["hyperparameters"]
        elif event["event"] == "exploit":
            rows[trial] |= event["hyperparameters"]
        elif event["event"] == "end":
            rows.setdefault(trial, {"trial": trial})
            names = ("fate", "score", "error")
            rows[trial] |= {name: event[name] for name in names} | {"epochs": event["epoch"]}
    return list(rows.values())


def best_of(config: Config, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished trial with the best score."""
    finished = [row for row in rows if row["fate"] == FINISHED and row["score"] == row["score"]]
    choose = min if config.mode == "min" else max
    return choose(finished, key=lambda row: row["score"], default=None)


def summarize(config: Config, events: list[Event]) -> dict[str, Any]:
    """The counts of a study."""
    rows = table_of(events)
    best = best_of(config, rows)
    fates = [row["fate"] for row in rows]
    exploits = [e for e in events if e["event"] == "exploit"]
    found: dict[str, Any] = {
        "best_score": best["score"] if best else None,
        "best_trial": best["trial"] if best else None,
        "num_trials": len(rows),
        "num_finished": fates.count(FINISHED),
        "num_pruned": fates.count(PRUNED),
        "num_failed": fates.count(FAILED),
        "num_retries": sum(e["event"] == "failure" for e in events),
        "num_exploits": len(exploits),
        "num_perturbations": _perturbations(events),
        "epochs_spent": sum(e["event"] == "epoch" for e in events),
    }
    if config.scheduler.name == "asha" and config.action != "train":
        found["rungs"] = [
            {
                "epoch": rung,
                "reached": sum(row["epochs"] >= rung for row in rows),
                "pruned": sum(row["fate"] == PRUNED and row["epochs"] == rung for row in rows),
            }
            for rung in rungs(config)
        ]
    return found


def _perturbations(events: list[Event]) -> int:
    """How many hyperparameters PBT has changed, over all take-overs."""
    current: dict[str, dict[str, Any]] = {}
    changed = 0
    for event in events:
        if event["event"] == "trial":
            current[event["trial"]] = event["hyperparameters"]
        elif event["event"] == "exploit":
            before, after = current[event["donor"]], event["hyperparameters"]
            changed += sum(before[name] != value for name, value in after.items())
            current[event["trial"]] = after
    return changed


def schedule_of(events: list[Event], trial: str) -> list[tuple[int, dict[str, Any]]]:
    """What a member of a population has been trained with: after which epoch, and what.

    A member that takes over from a donor inherits its past up to the epoch of the checkpoint.
    """
    pasts: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for event in events:
        if event["event"] == "trial":
            pasts[event["trial"]] = [(0, event["hyperparameters"])]
        elif event["event"] == "exploit":
            epoch = event["epoch"]
            before = [change for change in pasts[event["donor"]] if change[0] < epoch]
            pasts[event["trial"]] = [*before, (epoch, event["hyperparameters"])]
    return pasts[trial]


def finish(
    config: Config, trials: list[Trial], events: list[Event], run_dir: Storage, report: Report
) -> None:
    """Writes everything, and shows the table.

    Raises:
        JobError: If no trial finished, or more of them failed than is allowed.
    """
    rows = table_of(events)
    best = best_of(config, rows)
    out = report.output_dir
    write_table(config, rows, out / "trials.parquet")
    report.artifacts["trials"] = str(out / "trials.parquet")
    if best is not None:
        schedule = schedule_of(events, best["trial"])
        report.artifacts["best_config"] = str(write_best(config, schedule, out))
        test = write_best_bundle(config, trials, best["trial"], schedule, run_dir.child("bundle"))
        report.metrics |= test
        report.artifacts["bundle"] = run_dir.child("bundle").uri
        report.artifacts |= plots.draw(config, rows, events, out)
    tidy(config, trials, best["trial"] if best else None)
    show(config, report)
    failed, allowed = report.metrics["num_failed"], config.failure.max_failed_fraction
    for row in rows:
        if row["fate"] == FAILED:
            logger.warning("failed: trial %s: %s", number(row["trial"]), row["error"])
    if best is None:
        raise JobError(f"none of {len(rows)} trials finished; {failed} failed")
    if failed > allowed * len(rows):
        raise JobError(
            f"{failed} of {len(rows)} trials failed, more than "
            f"failure.max_failed_fraction={allowed:g} allows"
        )


def show(config: Config, report: Report) -> None:
    """The table that a person reads."""
    m = report.metrics
    shown = {
        f"best {config.metric}": f"{m['best_score']:.4f}" if m["best_trial"] else "none",
        **{n.replace("_", " "): f"{m[n]:.4f}" for n in m if n.startswith("test_")},
        "trials": f"{m['num_trials']}: {m['num_finished']} finished, {m['num_pruned']} pruned, "
        f"{m['num_failed']} failed",
        "epochs spent": str(m["epochs_spent"]),
    }
    if m.get("rungs"):
        reached = ", ".join(f"{r['epoch']}: {r['pruned']} of {r['reached']}" for r in m["rungs"])
        shown["epochs spent"] += f" of {m['num_trials'] * config.train.epochs}"
        shown["pruned at epoch"] = reached
    if config.scheduler.name == "pbt" and config.action == "tune":
        shown["exploits"] = f"{m['num_exploits']}, {m['num_perturbations']} values changed"
    report.show(shown)


def write_table(config: Config, rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the trials as Parquet; what their score is stands in the file's metadata."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    metadata = {"metric": config.metric, "mode": config.mode}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def write_best(config: Config, schedule: list[tuple[int, dict[str, Any]]], out: Path) -> Path:
    """Writes the best hyperparameters as a preset of Hydra's, and how to train with them again.

    Returns:
        `best/experiment/best.yaml`.
    """
    (_, first), *_ = schedule
    objective = asdict(config.objective)
    objective["hyperparameters"] |= first
    objective["schedule"] += [
        {"after_epoch": epoch} | {name: v for name, v in values.items() if v != before[name]}
        for (_, before), (epoch, values) in pairwise(schedule)
    ]
    preset = {
        "objective": objective,
        "train": asdict(config.train),
        "tune": {"metric": config.tune.metric},
        "trial": {"num_workers": config.trial.num_workers},
        # As in the study, so that XGBoost's random numbers begin anew at the same epochs.
        "checkpoint": {"every_epochs": objectives.checkpoint_interval(config)},
    }
    path = out / "best" / "experiment" / "best.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    where = out.absolute() / "best"
    overrides = f"objective={config.objective.name}"
    path.write_text(
        "# @package _global_\n"
        f"# asha-pbt-tune --config-dir '{where}' {overrides} experiment=best action=train\n"
        f"{yaml.safe_dump(preset, sort_keys=False)}"
    )
    return path


def write_best_bundle(
    config: Config,
    trials: list[Trial],
    trial_id: str,
    schedule: list[tuple[int, dict[str, Any]]],
    target: Storage,
) -> dict[str, float]:
    """Tests the best trial's newest model and writes it where another project finds it.

    Returns:
        Metrics on the test rows, which nobody has looked at before.
    """
    trial = next(trial for trial in trials if trial.trial_id == trial_id)
    # Where the driver is there may be no GPU.
    here = dataclasses.replace(config, trial=dataclasses.replace(config.trial, use_gpu=False))
    objective = objectives.build(here, schedule[-1][1], num_threads=1)
    with checkpoint_of(trial).as_directory() as directory:
        objective.load(Path(directory))
    metrics = objective.test()
    with tempfile.TemporaryDirectory() as directory:
        bundle = objective.bundle(Path(directory))
        bundle.metrics = metrics
        write_bundle(Path(directory), bundle)
        target.upload(Path(directory))
    return metrics


def checkpoint_of(trial: Trial) -> Any:
    """The newest checkpoint of a trial; a distributed one has reported only its path."""
    if trial.checkpoint is not None:
        return trial.checkpoint
    from ray.train import Checkpoint

    path = trial.last_result["checkpoint_path"]
    assert trial.storage is not None
    return Checkpoint(path, filesystem=trial.storage.storage_filesystem)


def tidy(config: Config, trials: list[Trial], best: str | None) -> None:
    """Removes the checkpoints of a population, but for the best member's newest."""
    if config.scheduler.name != "pbt" or config.action != "tune":
        return
    saved: dict[str, Any] = {}
    kept = set()
    for trial in trials:
        manager = trial.run_metadata.checkpoint_manager
        assert manager is not None
        saved |= {
            r.checkpoint.path: r.checkpoint.filesystem for r in manager.best_checkpoint_results
        }
        if trial.trial_id == best and trial.checkpoint is not None:
            kept.add(trial.checkpoint.path)
    for path, filesystem in saved.items():
        # Those that a member took over from another one stand in the books of both.
        if path not in kept and filesystem.get_file_info(path).type != FileType.NotFound:
            filesystem.delete_dir(path)
