"""What a job leaves behind: `result.json` for programs and a table for people."""

import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

RESULT_TO_LOG = "RAY_REF_RESULT_TO_LOG"
"""Environment variable; if set, `result.json` is printed, too: for whoever sees only the log."""
RESULT_LINE = "ray-ref result: "
"""Begins the line that then holds it."""
SWEEP_COLUMNS = 3
"""How many rows of the jobs' own tables become columns of the sweep's."""
VALUE_WIDTH = 16
"""Characters of an override that stay in one line of it."""


@dataclass
class Report:
    """Collects what a job did; `write` saves it as `result.json` in Hydra's run directory."""

    project: str
    output_dir: Path
    config: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    """Name to path or URI of what was written."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: `startup_s` until Ray answers, `job_s`, `shutdown_s`."""
    resources: dict[str, float] = field(default_factory=dict)
    """The cluster's logical resources."""
    shown: dict[str, object] = field(default_factory=dict)
    """The table that a person has seen; not part of `result.json`."""
    status: str = "running"
    """Then `ok` or `failed`, once it is written."""

    def show(self, rows: Mapping[str, object], title: str | None = None) -> None:
        """Prints the job's table, and below it a line for each thing that was written."""
        self.shown = dict(rows)
        show_table(title or self.project, rows)
        show_artifacts(self)

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        """Records under `timings[key]` how many seconds the block took, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[key] = round(time.perf_counter() - start, 3)

    def write(self, status: str, error: str | None = None) -> Path:
        """Writes `result.json` in one step: a reader sees all of it or nothing.

        Args:
            status: `ok` or `failed`.
            error: The reason in a sentence, if it failed.

        Returns:
            The path of the file.
        """
        self.status = status
        result = {
            "project": self.project,
            "status": status,
            "error": error,
            "metrics": self.metrics,
            "artifacts": self.artifacts,
            "timings": self.timings,
            "resources": self.resources,
            "versions": versions(self.project),
            "config": self.config,
        }
        path = self.output_dir / "result.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=2, default=str) + "\n")
        part.replace(path)
        if os.environ.get(RESULT_TO_LOG):
            # In one write: others may print at the same time.
            sys.stdout.write(f"\n{RESULT_LINE}{json.dumps(result, default=str)}\n")
            sys.stdout.flush()
        return path


def versions(project: str) -> dict[str, str]:
    """Versions of Python and of what the project's distribution names as its dependencies."""
    found = {"python": platform.python_version()}
    try:
        required = metadata.requires(f"ray-ref-{project}") or []
    except metadata.PackageNotFoundError:  # A test or a script that is no installed project.
        required = ["ray"]
    for requirement in required:
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0]
        if "extra ==" in requirement:
            continue
        # A requirement for another platform is not installed.
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1}}` -> `{"train.lr": 1}`."""
    keys: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            keys |= flat(value, f"{prefix}{name}.")
        else:
            keys[prefix + name] = value
    return keys


def show_table(title: str, rows: Mapping[str, object]) -> None:
    """Prints one two-column table to the console."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)


def show_sweep(jobs: Sequence[tuple[list[str], Report]]) -> None:
    """Prints one line for each job of a sweep: its folder, what was swept, how it ended.

    Args:
        jobs: The overrides of each job, and its report.
    """
    from rich.console import Console
    from rich.table import Table

    common = set.intersection(*(set(overrides) for overrides, _ in jobs))
    names = list(dict.fromkeys(name for _, report in jobs for name in report.shown))[:SWEEP_COLUMNS]
    first = jobs[0][1]
    table = Table(title=f"{first.project}: {len(jobs)} jobs", title_justify="left")
    for name in ("job", "values", "status", *names):
        table.add_column(name, overflow="fold", min_width=VALUE_WIDTH if name == "values" else None)
    for overrides, report in jobs:
        swept = "\n".join(each for each in overrides if each not in common)
        shown = (str(report.shown.get(name, "")) for name in names)
        table.add_row(report.output_dir.name, swept, report.status, *shown)
    console = Console()
    console.print(table)
    console.out(f"sweep: {first.output_dir.parent}", highlight=False)  # In one line, to be copied.


def show_artifacts(report: Report) -> None:
    """Prints one line for each thing that was written: below a table, where it can be copied."""
    for name, path in report.artifacts.items():
        logger.info("%s: %s", name.replace("_", " "), path)
