"""What the tests count in a study's events."""

from typing import Any

from asha_pbt_tune.config import Config
from ray_shared.config import compose

CONF = "asha_pbt_tune.conf"
Event = dict[str, Any]


def configuration(*overrides: str) -> Config:
    """The configuration with these overrides."""
    return compose(Config, CONF, overrides)


def epochs_of(events: list[Event]) -> dict[str, list[int]]:
    """Trial to the epochs it has reported, in order."""
    found: dict[str, list[int]] = {}
    for event in events:
        if event["event"] == "epoch":
            found.setdefault(event["trial"], []).append(event["epoch"])
    return found


def ends_of(events: list[Event]) -> dict[str, Event]:
    """Trial to how it ended."""
    return {event["trial"]: event for event in events if event["event"] == "end"}
