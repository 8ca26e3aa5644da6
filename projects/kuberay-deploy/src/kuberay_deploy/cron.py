"""Cron schedules as KubeRay's operator reads them.

Source: https://pkg.go.dev/github.com/robfig/cron/v3, `ParseStandard`
"""

import re

MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
WEEKDAYS = "sun mon tue wed thu fri sat".split()
FIELDS: list[tuple[str, int, int, list[str]]] = [
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of month", 1, 31, []),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 6, WEEKDAYS),
]
DESCRIPTORS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
EVERY = re.compile(r"@every \+?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+")


def problem(schedule: str) -> str | None:
    """What is wrong with a schedule of five fields or a descriptor (`@daily`); None if nothing."""
    if "TZ" in schedule:
        return "a time zone belongs to the field timeZone"
    if schedule.startswith("@"):
        known = schedule in DESCRIPTORS or EVERY.fullmatch(schedule)
        return None if known else f"none of {', '.join(DESCRIPTORS)}, @every 1h"
    fields = schedule.split()
    if len(fields) != len(FIELDS):
        return f"{len(fields)} fields instead of {len(FIELDS)}"
    for text, (name, least, most, words) in zip(fields, FIELDS, strict=True):
        for part in text.split(","):
            if not _is_range(part, least, most, words):
                return f"{name} is {part!r}; {least} to {most}, lists, ranges, steps"
    return None


def _is_range(text: str, least: int, most: int, words: list[str]) -> bool:
    """`*`, `?`, `3`, `mon`, `1-5`, and each with a step: `*/15`."""
    bounds, slash, step = text.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        return False
    if bounds in ("*", "?"):
        return True
    first, dash, last = bounds.partition("-")
    start = _number(first, least, words)
    end = _number(last, least, words) if dash else start
    return start is not None and end is not None and least <= start <= end <= most


def _number(text: str, least: int, words: list[str]) -> int | None:
    if text.lower() in words:
        return words.index(text.lower()) + least
    return int(text) if text.isdecimal() else None
