"""What the job does: one run, or several beside each other."""

import copy
import dataclasses
import logging
from typing import Any

from ray_shared.errors import JobError
from ray_shared.report import Report, show_artifacts
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage
from ray_shared.tracking import Event, Tracker
from rich.console import Console
from rich.table import Table

from core_parameter_server import results
from core_parameter_server.config import PROJECT, Config, ServerConfig
from core_parameter_server.placement import Actors
from core_parameter_server.training import Training

logger = logging.getLogger(__name__)


def train(config: Config, report: Report) -> None:
    """`action=train`: one run on the connected cluster; fills `report`.

    Raises:
        UserError: If there is no room for the actors.
        JobError: See `Training.run`.
    """
    actors = Actors(config)  # First: without room for them, nothing is to be left behind.
    run_dir, tracker = open_run(config, report)
    with results.recorded(tracker, report, run_dir), report.timed("job_s"):
        training = Training(config, actors, run_dir, logged(tracker))
        try:
            training.run()
        finally:
            report.metrics = results.summarize(training, tracker.events())
        path = report.output_dir / "training.png"
        results.plot_run(tracker.events(), training.counts, path)
        report.artifacts["plot"] = str(path)
        results.show_result(report)


def compare(config: Config, report: Report) -> None:
    """`action=compare` and `action=straggler`: the modes one after the other, on the same actors.

    Each begins at the same weights and goes through the same batches until its validation loss is
    at `straggler.target_loss`.

    Raises:
        JobError: If none gets there.
    """
    actors = Actors(config)  # First: without room for them, nothing is to be left behind.
    run_dir, tracker = open_run(config, report)
    runs: dict[str, list[Event]] = {}
    rows: dict[str, dict[str, Any]] = {}
    with results.recorded(tracker, report, run_dir), report.timed("job_s"):
        for name, server in variants(config).items():
            # Not `replace`, which checks anew: as an override, a mode is refused here.
            variant = copy.copy(config)
            variant.server = server
            log = logged(tracker, name)
            training = Training(
                variant, actors, run_dir.child(name.replace(", ", "-").replace(" ", "-")), log
            )
            training.run(until=lambda e: e["val_loss"] <= config.straggler.target_loss)
            runs[name] = [e for e in tracker.events() if e.get("variant") == name]
            rows[name] = outcome(training, runs[name], config.straggler.target_loss)
        report.metrics = {"target_loss": config.straggler.target_loss, "variants": rows}
        path = report.output_dir / f"{config.action}.png"
        evals = {
            name: [e for e in events if e.get("split") == "val"] for name, events in runs.items()
        }
        results.plot_convergence(evals, config.straggler.target_loss, path)
        report.artifacts["plot"] = str(path)
        show_variants(config, rows)
        show_artifacts(report)
        if not any(row["time_to_target_s"] is not None for row in rows.values()):
            raise JobError(
                f"no variant reached straggler.target_loss={config.straggler.target_loss:g}: raise "
                "it, or train.epochs"
            )


def variants(config: Config) -> dict[str, ServerConfig]:
    """The modes to compare, by the name that people read."""
    base = config.server
    bound = base.max_staleness
    modes: dict[str, dict[str, Any]] = {
        "sync": {"mode": "sync", "num_backup": 0},
        f"ssp {bound}": {"mode": "ssp", "num_backup": 0},
        "async": {"mode": "async", "num_backup": 0},
    }
    if config.action == "straggler":
        modes["sync, 1 backup"] = {"mode": "sync", "num_backup": 1}
    return {name: dataclasses.replace(base, **changes) for name, changes in modes.items()}


def outcome(training: Training, events: list[Event], target: float) -> dict[str, Any]:
    """The numbers of one variant."""
    reached = [e for e in events if e.get("split") == "val" and e["val_loss"] <= target]
    metrics = results.summarize(training, events)
    first = reached[0] if reached else {}
    return metrics | {
        "time_to_target_s": first.get("seconds"),
        "updates_to_target": first.get("step"),
        "epochs_to_target": first.get("epoch"),
    }


def show_variants(config: Config, rows: dict[str, dict[str, Any]]) -> None:
    """A row for each variant."""
    title = f"{config.action}: to a validation loss of {config.straggler.target_loss:g}"
    if config.action == "straggler":
        title += f", the last worker {config.straggler.factor:g} times slower"
    table = Table(title=title, title_justify="left")
    for column in ("", "seconds", "updates", "epochs", "staleness <=", "dropped", "updates/s"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        reached = row["time_to_target_s"] is not None
        table.add_row(
            name,
            f"{row['time_to_target_s']:.2f}" if reached else "not reached",
            str(row["updates_to_target"]) if reached else "",
            f"{row['epochs_to_target']:.1f}" if reached else "",
            str(row["max_staleness_seen"]),
            str(row["num_dropped"]),
            f"{row['updates_per_s']:,.0f}",
        )
    Console().print(table)


def open_run(config: Config, report: Report) -> tuple[Storage, Tracker]:
    """The run's directory, and its tracker, started."""
    name = run_name(config.run, PROJECT)
    run_dir = open_storage(config.storage.path).child(name)
    record_run(run_dir, config.locked())
    tracker = Tracker(config.tracking, report.output_dir, PROJECT, name)
    tracker.start(report.config)
    results.show_run(config, name, run_dir)
    return run_dir, tracker


def logged(tracker: Tracker, variant: str | None = None) -> Any:
    """A function that records an event, and shows what a person wants to see of it."""

    def log(event: Event) -> None:
        event |= {"variant": variant} if variant else {}
        tracker.log(event)
        results.show_progress(event)

    return log
