"""What a person sees of a run: progress lines, tables and plots."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_shared.report import Report
from ray_shared.storage import Storage
from ray_shared.tracking import Event, Tracker

from core_parameter_server.config import Config
from core_parameter_server.counts import Counts
from core_parameter_server.training import Training

logger = logging.getLogger(__name__)


def show_run(config: Config, name: str, run_dir: Storage) -> None:
    """One line before anything happens."""
    server = config.server
    what = {
        "sync": "sync" + (f", {server.num_backup} backup worker(s)" if server.num_backup else ""),
        "async": "async",
        "ssp": f"ssp, staleness at most {server.max_staleness}",
    }[server.mode]
    size = f"{config.problem.num_parameters:,}"
    logger.info(
        "run %s: %s parameters on %d shard(s), %d worker(s), %s, checkpoints in %s",
        *(name, size, server.num_shards, config.scaling.num_workers),
        *(what if config.action == "train" else config.action, run_dir.uri),
    )


def show_progress(event: Event) -> None:
    """One line for each event that a person wants to know about."""
    kind = event["event"]
    if kind == "start":
        if event["done"]:
            logger.warning("the run is complete: nothing to train; raise train.epochs to go on")
        elif event["step"]:
            logger.info("resumes after update %d", event["step"])
    elif kind == "eval" and event["split"] == "val" and event["step"]:
        accuracy = f"  val_accuracy {event['val_accuracy']:.4f}" if "val_accuracy" in event else ""
        variant = f"{event['variant']:<15} " if "variant" in event else ""
        logger.info(
            "%supdate %5d  epoch %5.1f  val_loss %.4f%s  %6.0f updates/s",
            *(
                variant,
                event["step"],
                event["epoch"],
                event["val_loss"],
                accuracy,
                event["updates_per_s"],
            ),
        )
    elif kind == "recovery":
        lost = ", ".join(map(str, event["shards"])) or "none"
        logger.warning(
            "lost at update %d (shards in a new process: %s): all shards rolled back to version "
            "%d, %d updates to redo; %.1f s%s",
            *(event["lost_at"], lost, event["step"], event["redone"], event["seconds"]),
            "; what topk had held back is gone" if any(event["held_back"]) else "",
        )
    elif kind == "damaged":
        logger.warning("%s: takes the checkpoint before version %d", event["reason"], event["step"])
    elif kind == "worker_restarted":
        logger.warning(
            "worker %d was lost and started again; its gradient was computed again",
            event["worker_rank"],
        )


@contextmanager
def recorded(tracker: Tracker, report: Report, run_dir: Storage) -> Iterator[None]:
    """Closes the tracker however the block ends."""
    status = "failed"
    report.artifacts |= {"run": run_dir.uri, "events": str(tracker.events_path)}
    try:
        yield
        status = "ok"
    finally:
        tracker.finish(status, {k: v for k, v in report.metrics.items() if not _nested(v)})


def summarize(training: Training, events: Sequence[Event]) -> dict[str, Any]:
    """The metrics of one run."""
    seconds = time.perf_counter() - training.started
    test = next((e for e in reversed(events) if e.get("split") == "test"), {})
    new_updates = training.server.version - (training.first_version or 0)
    metrics = {
        "num_updates": training.server.version,
        "updates_per_s": (new_updates + training.counts.updates_redone) / seconds,
        "train_s": seconds,
    } | training.counts.metrics(seconds)
    if "test_loss" in test:
        metrics["loss"] = test["test_loss"]
    if "test_accuracy" in test:
        metrics["accuracy"] = test["test_accuracy"]
    return metrics


def show_result(report: Report) -> None:
    """The table, and where everything is."""
    m = report.metrics
    rows: dict[str, object] = {}
    if "accuracy" in m:
        rows["test accuracy"] = f"{m['accuracy']:.4f}"
    rows |= {
        "test loss": f"{m['loss']:.4g}",
        "updates": f"{m['num_updates']:,} ({m['updates_per_s']:,.0f}/s)",
        "staleness": _shown(m["staleness"]),
        "updates between read and write": _shown(m["delay"]),
        "sent, read": f"{m['bytes_sent'] / 1e6:,.1f} MB, {m['bytes_read'] / 1e6:,.1f} MB",
        "queued, by shard": ", ".join(f"{each:.2f} ms" for each in m["queued_ms"]),
        "recoveries, updates redone": f"{m['recoveries']}, {m['updates_redone']}",
        "worker restarts": m["worker_restarts"],
    }
    if m["num_dropped"]:
        rows["dropped gradients"] = m["num_dropped"]
    report.show(rows)


def plot_run(events: Sequence[Event], counts: Counts, path: Path) -> Path:
    """Draws validation loss by update, and how stale the gradients were."""
    figure = _figure(9, 3.5)
    left, right = figure.subplots(1, 2)
    evals = [e for e in events if e["event"] == "eval" and e["split"] == "val"]
    left.plot([e["step"] for e in evals], [e["val_loss"] for e in evals], marker=".")
    left.set(xlabel="update", ylabel="validation loss", yscale="log")
    values = sorted(counts.staleness.keys() | counts.delay.keys())
    for offset, name, found in (
        (-0.2, "gradients ahead of the slowest worker", counts.staleness),
        (0.2, "updates between read and write", counts.delay),
    ):
        right.bar([v + offset for v in values], [found[v] for v in values], width=0.4, label=name)
    right.set(xlabel="staleness", ylabel="gradients")
    right.set_xlim(-1, max(values, default=0) + 1)
    right.margins(y=0.3)  # Room for the legend above the bars.
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend()
    for ax in (left, right):
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def plot_convergence(runs: Mapping[str, Sequence[Event]], target: float, path: Path) -> Path:
    """Draws the validation loss of several runs, by seconds, by updates, and by epochs."""
    figure = _figure(13, 4)
    labels = {"seconds": "seconds", "step": "updates", "epoch": "epochs of gradients"}
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (key, label) in zip(axes, labels.items(), strict=True):
        for name, evals in runs.items():
            x, losses = [e[key] for e in evals], [e["val_loss"] for e in evals]
            ax.plot(x, losses, marker=".", label=name)
        ax.axhline(target, color="grey", linestyle=":", label="target")
        ax.set(xlabel=label, yscale="log")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("validation loss")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    return path


def _figure(width: float, height: float) -> Any:
    # Without pyplot: no display, no global state, half the time to import.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _shown(counts: Mapping[str, int]) -> str:
    return "  ".join(f"{value}: {count:,}" for value, count in counts.items())


def _nested(value: object) -> bool:
    return isinstance(value, dict | list)
