"""What the projects on Ray Train share: its environment, and what a person sees of a run by epochs.

That is progress lines, the counts and the learning curve. The loops of the two training projects
report the events `start`, `step`, `epoch` and `checkpoint`; `tracking` adds `failure`.
"""

import logging
import math
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.train import Result, TrainingFailedError

from ray_shared.errors import JobError
from ray_shared.groups import ScalingConfig
from ray_shared.report import Report
from ray_shared.storage import Storage
from ray_shared.tracking import Event, Tracker, in_a_line

logger = logging.getLogger(__name__)
WRITTEN = ("bundle", "saved_model")
"""What a worker may return the place of."""
DEFAULTS = {
    # How often the controller looks after its workers. Reports, checkpoints and the end of the run
    # wait for that look: with Ray's default of 2 s, a fit of 9 s takes 17 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # Ray Train would print what workers print a second time.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


def set_environment(
    local: bool, start_timeout_s: float, preemption_check_s: float | None = None
) -> None:
    """Sets what Ray Train takes from the environment, and hands on to its workers.

    Call it before `fit`, in the process that calls `fit`. Variables of `DEFAULTS` that a user has
    set stay as they are.

    Args:
        local: Whether the cluster is this machine and ends with the job.
        start_timeout_s: Seconds to wait for a worker group to start before trying again.
        preemption_check_s: Seconds between two looks at whether a node is about to be taken away;
            None: nobody asks.
    """
    # Nobody takes the only machine of a local cluster away, and the watcher is one process.
    watch = not local and preemption_check_s is not None
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1" if watch else "0"
    if watch:
        os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = str(preemption_check_s)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_timeout_s)
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)


def show_run(name: str, run_dir: Storage, scaling: ScalingConfig) -> None:
    """One line before anything happens."""
    workers = f"{scaling.num_workers} worker(s)"
    if scaling.min_workers is not None:
        workers = f"{scaling.min_workers} to {workers}"
    device = "GPU" if scaling.use_gpu else "CPU"
    logger.info("run %s: %s on %s, checkpoints in %s", name, workers, device, run_dir.uri)
    logger.info("starting the workers, which takes ten seconds or more")


def show_progress(event: Event) -> None:
    """One line for each event that a person wants to know about."""
    kind = event["event"]
    if kind == "epoch":
        logger.info(
            "epoch %3d  step %5d  loss %.4f  val_loss %.4f  val_accuracy %.4f  %6.0f samples/s",
            event["epoch"],
            event["step"],
            event.get("train_loss", math.nan),
            event["val_loss"],
            event["val_accuracy"],
            event.get("samples_per_s", math.nan),
        )
    elif kind == "start":
        for line in event["damaged"]:
            logger.warning("damaged checkpoint passed over: %s", line)
        if event["epoch"] >= event["epochs"]:
            logger.warning("the run is complete: nothing to train; raise train.epochs to go on")
        elif event["step"]:
            logger.info("%d worker(s) resume after step %d", event["num_workers"], event["step"])
    elif kind == "failure":
        for line in failures(event):
            logger.warning("%s", line)
    elif kind == "checkpoint" and event["preempted"]:
        logger.warning("a node is about to go: checkpoint at step %d", event["step"])


def failures(event: Event) -> list[str]:
    """A line for each error of a failure, with the workers that had it, and what comes next."""
    ranks: dict[str, list[str]] = {}
    for rank, error in event["errors"].items():
        ranks.setdefault(error, []).append(str(rank))
    lines = [
        f"{'workers' if len(each) > 1 else 'worker'} {', '.join(each)} failed: {error}"
        for error, each in ranks.items()
    ]
    if event.get("preempted"):
        lines.append("a node was taken away: all start again from the newest checkpoint")
    if "retry" in event:
        setting = f"failure.max_failures={event['max_failures']}"
        lines.append(
            f"all start again from the newest checkpoint: retry {event['retry']} ({setting})"
        )
    return lines


@contextmanager
def recorded(tracker: Tracker, report: Report, run_dir: Storage) -> Iterator[None]:
    """Fills the report from the events however the block ends, and closes the tracker."""
    status = "failed"
    report.artifacts = {"run": run_dir.uri, "events": str(tracker.events_path)}
    try:
        yield
        status = "ok"
    except TrainingFailedError as error:
        raise JobError(why(error)) from error
    finally:
        report.metrics = summarize(tracker.events()) | report.metrics
        tracker.finish(status, report.metrics)


def finish(outcome: Result, tracker: Tracker, report: Report) -> None:
    """Turns what the workers returned into metrics, the table and the plot.

    Args:
        outcome: Its `return_value` holds `accuracy`, `loss`, `best_epoch` and where the trained
            model was written; or `stopped`, `step` and `damaged`.
        tracker: Has the events of the run.
        report: Is filled.

    Raises:
        JobError: If training stopped by itself.
    """
    returned: dict[str, Any] = outcome.return_value or {}
    newest = outcome.checkpoint.path if outcome.checkpoint else "none"
    if returned.get("stopped") == "diverged":
        raise JobError(
            f"the loss is not finite after step {returned['step']}; the last good checkpoint is "
            f"{newest}; a smaller train.lr may help"
        )
    if returned.get("stopped") == "damaged":
        raise JobError(f"no checkpoint of the run is intact: {'; '.join(returned['damaged'])}")
    artifacts = {name: returned.pop(name) for name in WRITTEN if name in returned}
    report.artifacts |= artifacts | {"checkpoint": newest}
    if any(e["event"] == "epoch" for e in tracker.events()):
        report.artifacts["learning_curve"] = str(plot(tracker.events(), report.output_dir))
    report.metrics = summarize(tracker.events()) | returned
    m = report.metrics
    report.show(
        {
            "test accuracy": f"{m['accuracy']:.4f}",
            "test loss": f"{m['loss']:.4f}",
            "epochs, best": f"{m['epochs']}, {m['best_epoch']}",
            "samples/s": f"{m['samples_per_s']:,.0f}",
            "restarts": m["restarts"],
        },
    )


def summarize(events: list[Event]) -> dict[str, Any]:
    """Counts and rates of a run, from its events."""
    starts = [e for e in events if e["event"] == "start"]
    epochs = [e for e in events if e["event"] == "epoch"]
    rates = [e["samples_per_s"] for e in epochs if "samples_per_s" in e]
    warm = rates[1:] or rates  # The first epoch warms up: caches, buckets, threads.
    return {
        "epochs": max((e["epoch"] for e in starts + epochs), default=0),
        "steps": max((e["step"] for e in events if "step" in e), default=0),
        "samples_per_s": statistics.median(warm) if warm else 0.0,
        "restarts": max(len(starts) - 1, 0),
        "failures": sum(e["event"] == "failure" for e in events),
    }


def plot(events: list[Event], directory: Path) -> Path:
    """Draws loss and accuracy by epoch into `learning_curve.png`."""
    # Without pyplot: no display, no global state, half the time to import.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib.figure import Figure

    # An epoch that was redone after a failure counts with its last values.
    epochs = sorted({e["epoch"]: e for e in events if e["event"] == "epoch"}.items())
    x = [epoch for epoch, _ in epochs]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for ax, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split in ("train", "val"):
            ax.plot(
                x,
                [e.get(f"{split}_{metric}", math.nan) for _, e in epochs],
                marker=".",
                label=split,
            )
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylabel(metric)
        ax.grid(alpha=0.3)
        ax.legend()
    path = directory / "learning_curve.png"
    figure.savefig(path, dpi=120)
    return path


def why(error: TrainingFailedError) -> str:
    """The first worker's exception, in a line."""
    of_workers = getattr(error, "worker_failures", None)
    cause = next(iter(of_workers.values())) if of_workers else error
    return f"training failed: {in_a_line(cause)}"
