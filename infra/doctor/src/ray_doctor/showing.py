"""The table for a person and the metrics for a program."""

from collections import Counter
from dataclasses import asdict

from ray_shared.report import Report

from ray_doctor.check import Check

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "not checked": "dim"}


def record(checks: list[Check], report: Report) -> None:
    """Fills the report's metrics: `num_checks`, `num_failed`, `num_warnings`, `checks`."""
    report.metrics = {
        "num_checks": sum(check.status != "not checked" for check in checks),
        "num_failed": sum(check.status == "failed" for check in checks),
        "num_warnings": sum(check.status == "warning" for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def show(checks: list[Check]) -> None:
    """Prints one row for each check; what to do stands below what was found."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="doctor", title_justify="left", show_lines=False)
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("found, and what to do", overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.hint:
            found.append(f"\n-> {check.hint}", style="italic")
        table.add_row(check.name, Text(check.status, style=STYLES[check.status]), found)
    Console().print(table)
    Console().print(verdict(checks))


def verdict(checks: list[Check]) -> str:
    """One line for all: `nothing failed: 20 ok, 1 warning, 4 not checked`."""
    counts: Counter[str] = Counter(check.status for check in checks)
    shown = [f"{counts[status]} {status}" for status in STYLES if counts[status]]
    return f"{'something' if counts['failed'] else 'nothing'} failed: {', '.join(shown)}"
