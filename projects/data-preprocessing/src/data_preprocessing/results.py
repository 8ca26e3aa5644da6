"""What a person sees of a run: progress lines, the final table; and what a program reads."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import psutil
from ray.data.exceptions import RayDataUserCodeException, SystemException
from ray.exceptions import RayError
from ray_shared.errors import JobError, UserError
from ray_shared.report import Report
from ray_shared.storage import Storage

from data_preprocessing.contract import REASONS
from data_preprocessing.output import SPLITS, is_full
from data_preprocessing.reading import InputFile, Unit

if TYPE_CHECKING:
    from ray_shared.tracking import Tracker

logger = logging.getLogger(__name__)
SHOW_EVERY_S = 2.0
SAMPLE_EVERY_S = 0.25
FULL = "storage.path: {}; what was there before is still whole"
STAGES = {"scan": "checked", "done": "written", "scored": "scored"}
"""What has happened to the rows of a stage."""


@dataclass(frozen=True)
class Counts:
    """Where the rows of the input went."""

    reasons: dict[str, int]
    """Rows in quarantine, by reason."""
    splits: dict[str, int]
    """Rows that keep the contract, by split."""
    unreadable: list[tuple[InputFile, str]]
    """Files in quarantine as a whole, with the reason; nobody knows how many rows they had."""
    rows_in: int
    """Rows of all files that could be read."""

    @classmethod
    def of(cls, statistics: pl.DataFrame, unreadable: list[tuple[InputFile, str]]) -> "Counts":
        """Picks the counts out of a run's statistics."""

        def counted(kind: str, names: tuple[str, ...]) -> dict[str, int]:
            rows = statistics.filter(pl.col("kind") == kind)
            found = dict(rows.select("key", "n").iter_rows())
            return {name: found.get(number, 0) for number, name in enumerate(names)}

        reasons = {r: n for r, n in counted("reason", REASONS).items() if n}
        (rows_in,) = counted("read", ("rows",)).values()
        return cls(reasons, counted("split", SPLITS), unreadable, rows_in)

    @property
    def rows_quarantined(self) -> int:
        """Rows that break the contract."""
        return sum(self.reasons.values())

    @property
    def rows_out(self) -> int:
        """Rows that keep it."""
        return sum(self.splits.values())

    @property
    def bad_fraction(self) -> float:
        """Share of the rows that break the contract."""
        return self.rows_quarantined / max(self.rows_in, 1)

    def shown_reasons(self) -> str:
        """The reasons, most frequent first."""
        ranked = sorted(self.reasons.items(), key=lambda found: -found[1])
        return ", ".join(f"{reason} {n:,}" for reason, n in ranked) or "none"

    def metrics(self) -> dict[str, Any]:
        """The counts for `result.json`."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "rows_quarantined": self.rows_quarantined,
            "quarantine_by_reason": self.reasons,
            "rows_by_split": self.splits,
            "files_quarantined": len(self.unreadable),
        }


class Progress:
    """A line now and then while units are being done."""

    def __init__(self, stage: str, num_units: int, num_done: int):
        self.verb, self.num_units, self.num_done = STAGES[stage], num_units, num_done
        self.rows = self.bad = 0
        self.started = self.shown = time.perf_counter()
        if num_done:
            logger.info("%s before: %d of %d units", self.verb, num_done, num_units)

    def add(self, done: dict[str, Any]) -> None:
        """Counts a unit; shows a line if the last one was a while ago, or this is the end."""
        self.num_done += 1
        self.rows += done["rows"]
        self.bad += done["bad"]
        now = time.perf_counter()
        if now - self.shown >= SHOW_EVERY_S or self.num_done == self.num_units:
            self.shown = now
            rate = self.rows / (now - self.started)
            bad = f"  {self.bad:,} in quarantine" if self.bad else ""
            logger.info(
                "%s %3d of %d units  %s rows  %s rows/s%s",
                self.verb,
                self.num_done,
                self.num_units,
                f"{self.rows:,}",
                f"{rate:,.0f}",
                bad,
            )


def check_balance(
    counts: Counts, written: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> None:
    """Checks that the rows that were read are the rows of the files that were written.

    Args:
        counts: What the first pass counted.
        written: The files of rows that keep the contract, with `rows`.
        rejected: The files of quarantine, with `rows`.

    Raises:
        JobError: If a row was lost or doubled.
    """
    rows_out, rows_quarantined = (sum(f["rows"] for f in files) for files in (written, rejected))
    if counts.rows_in != rows_out + rows_quarantined:
        raise JobError(
            f"{counts.rows_in:,} rows were read, but {rows_out:,} written and {rows_quarantined:,} "
            "quarantined: the input changed while it was read, or this is a bug"
        )


def named(unreadable: list[tuple[InputFile, str]]) -> list[dict[str, str]]:
    """Files that cannot be read, as a manifest lists them."""
    return [{"uri": file.uri, "reason": why} for file, why in unreadable]


@contextmanager
def task_errors() -> Iterator[None]:
    """Says in a sentence what ended a task for good.

    Raises:
        JobError: If Ray gave a task up.
    """
    try:
        yield
    except (RayError, RayDataUserCodeException, SystemException) as error:
        cause = error.__cause__ or error
        raise JobError(f"a task failed: {str(cause).strip().splitlines()[-1]}") from error


def raise_if_failed(row: dict[str, Any]) -> None:
    """Ends the job if a task found the disk full.

    Raises:
        UserError: With the file's name.
    """
    if row["failed"] is not None:
        raise UserError(FULL.format(row["failed"]))


@contextmanager
def recorded(tracker: "Tracker", report: Report, run_dir: Storage) -> Iterator[None]:
    """Fills the report however the block ends, and closes the tracker."""
    status, started = "failed", time.perf_counter()
    report.artifacts = {"run": run_dir.uri, "events": str(tracker.events_path)}
    with PeakMemory() as memory:
        try:
            yield
            status = "ok"
        except OSError as error:
            if is_full(error):
                raise UserError(FULL.format(error)) from None
            raise
        finally:
            seconds = time.perf_counter() - started
            report.metrics["peak_rss_mb"] = round(memory.peak_bytes / 2**20)
            if "rows_in" in report.metrics:
                report.metrics["rows_per_s"] = report.metrics["rows_in"] / seconds
            tracker.finish(status, report.metrics)


class PeakMemory:
    """The most memory that this process and all below it had at one time.

    The processes of a cluster that was joined are not below it, and not counted.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        me = psutil.Process()
        while True:
            last = self._stop.wait(SAMPLE_EVERY_S)
            family = [me, *me.children(recursive=True)]
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident_bytes, family)))
            if last:
                return


def _resident_bytes(process: psutil.Process) -> int:
    """Resident memory; what several processes share counts in part for each, where known."""
    try:
        info = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(info, "pss", info.rss))


def save_statistics(dataset: Any, stage: str, report: Report) -> None:
    """Keeps what Ray Data measured: seconds, rows and memory by operator, bytes spilled."""
    path = report.output_dir / f"statistics-{stage}.txt"
    path.write_text(dataset.stats())
    report.artifacts[f"statistics_{stage}"] = str(path)


def show_plan(run_dir: Storage, files: list[InputFile], units: list[Unit], resumed: bool) -> None:
    """One line before anything happens."""
    size_mb = sum(file.size for file in files) / 1e6
    logger.info(
        "%s %s: %d files, %.0f MB, %d units",
        "resuming" if resumed else "run",
        run_dir.uri,
        len(files),
        size_mb,
        len(units),
    )


def show_result(report: Report, counts: Counts) -> None:
    """The final table, and where everything was written."""
    splits = ", ".join(f"{name} {rows:,}" for name, rows in counts.splits.items())
    rows: dict[str, object] = {
        "rows in": f"{counts.rows_in:,}",
        "rows out": f"{counts.rows_out:,} ({splits})",
        "in quarantine": f"{counts.rows_quarantined:,} ({counts.bad_fraction:.2%})",
    }
    rows |= {f"  {reason}": f"{number:,}" for reason, number in counts.reasons.items()}
    if counts.unreadable:
        names = ", ".join(file.uri.rpartition("/")[2] for file, _ in counts.unreadable)
        rows["unreadable files"] = f"{len(counts.unreadable)} ({names})"
    report.show(rows)


def show_round(event: dict[str, Any]) -> None:
    """One line for each event of a training run that a person wants to know about."""
    # Here, because the tasks import this module, too, and Ray Train takes seconds.
    from ray_shared.training import failures

    if event["event"] == "round":
        logger.info(
            "round %4d  train_rmse %.4f  val_rmse %.4f",
            event["step"],
            event["train_rmse"],
            event["val_rmse"],
        )
    elif event["event"] == "start" and event["step"]:
        logger.info("%d worker(s) resume after round %d", len(event["workers"]), event["step"])
    elif event["event"] == "failure":
        for line in failures(event):
            logger.warning("%s", line)


def show_model(report: Report) -> None:
    """The final table of a training run, and where everything was written."""
    m = report.metrics
    rows: dict[str, object] = {
        "test RMSE, minutes": f"{m['rmse']:.3f} (the median alone: {m['rmse_of_median']:.3f})",
        "test rows": f"{m['test_rows']:,}",
        "rounds": m["rounds"],
        "restarts": m["restarts"],
        "seconds": f"{m['read_s']:.1f} reading, {m['train_s']:.1f} boosting",
    }
    report.show(rows)
