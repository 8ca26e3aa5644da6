"""One line of the doctor's table."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    hint: str = ""
    """One sentence for whoever has to mend it; empty if nothing has to be done."""


def ok(name: str, found: str) -> Check:
    """A check that found what it should."""
    return Check(name, "ok", found)


def warning(name: str, found: str, hint: str) -> Check:
    """A check that found something that works, though perhaps not as it was meant."""
    return Check(name, "warning", found, hint)


def failed(name: str, found: str, hint: str) -> Check:
    """A check that found something broken."""
    return Check(name, "failed", found, hint)


def not_checked(name: str, why: str) -> Check:
    """A check that was not made, and why."""
    return Check(name, "not checked", why)


def listed(parts: list[str], most: int = 5) -> str:
    """`a; b; c`, shortened where there are many."""
    shown = parts[:most]
    if len(parts) > most:
        shown.append(f"and {len(parts) - most} more")
    return "; ".join(shown)


def size(num_bytes: float) -> str:
    """`1.5 GB`, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB" if num_bytes < 1000 else f"{num_bytes:,.0f} TB"


def first_line(error: Exception) -> str:
    """What went wrong on a node: the first line of the error that was raised there."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
