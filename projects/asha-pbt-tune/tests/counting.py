"""What the tests count in a study's events."""

import json
from collections.abc import Callable
from typing import Any

from asha_pbt_tune.config import Config
from ray_shared.config import compose
from ray_shared.storage import open_storage

CONF = "asha_pbt_tune.conf"
Event = dict[str, Any]


def configuration(*overrides: str) -> Config:
    """The configuration with these overrides."""
    return compose(Config, CONF, overrides)


def epochs_of(events: list[Event]) -> dict[str, list[int]]:
    """Trial to the epochs it has reported, in order; but for what an earlier start left behind."""
    found: dict[str, list[int]] = {}
    for event in events:
        if event["event"] == "epoch" and "earlier" not in event:
            found.setdefault(event["trial"], []).append(event["epoch"])
    return found


def ends_of(events: list[Event]) -> dict[str, Event]:
    """Trial to how it ended."""
    return {event["trial"]: event for event in events if event["event"] == "end"}


def saved_epochs(study: str) -> dict[str, tuple[str, int]]:
    """What Tune would find if it started again: trial to its status and its last epoch.

    Args:
        study: Directory or URI of the study. What is not there yet, or half written, counts as
            nothing.
    """
    directory = open_storage(study)
    states = [name for name in directory.names() if name.startswith("experiment_state-")]
    try:
        content = json.loads(directory.child(states[-1]).read_bytes())
    except (IndexError, ValueError):
        return {}
    found = {}
    for state, metadata in content["trial_data"]:
        trial, last = json.loads(state), json.loads(metadata)["last_result"]
        found[trial["trial_id"]] = (trial["status"], last.get("epoch", 0))
    return found


def trained(trial_epoch: int) -> Callable[[Event], bool]:
    """Whether an event is an epoch at least so late."""
    return lambda e: e["event"] == "epoch" and e["epoch"] >= trial_epoch
