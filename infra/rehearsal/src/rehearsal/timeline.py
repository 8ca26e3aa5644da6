"""What happened when: printed as it happens, and kept as JSON and as a picture."""

import json
import logging
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

STEPS_SHOWN = 10
"""Of so many steps of the job, one is printed."""
COLORS = {"pending": "#c9c9c9", "starting": "#8fb8de", "ready": "#3a7d44", "leaving": "#e0a030"}
LABEL_ROOM = 0.015
"""Of the width: for a label that stands upright."""
FAULT_COLOR, JOB_COLOR = "#b3261e", "#444444"


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    time_s: float
    """Since the rehearsal began."""
    kind: str
    """`demand`, `patch`, `pod`, `started`, `ready`, `unready`, `job`, `step`, `idle`, `fault`,
    `leaving`, `removed`, `request` or `note`."""
    subject: str
    """The pod, group or job that it is about."""
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


class Timeline:
    """Events of several threads, in the order in which they came."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def now(self) -> float:
        """Seconds since the rehearsal began."""
        return time.monotonic() - self._began

    def add(self, kind: str, subject: str, text: str = "", **data: Any) -> Event:
        """Records an event that happens now."""
        event = Event(round(self.now(), 2), kind, subject, text, data)
        with self._lock:
            self._events.append(event)
        if data.get("event") != "step" or data["step"] % STEPS_SHOWN == 0:
            logger.info("%7.1f s  %-8s %s  %s", event.time_s, kind, subject, text)
        return event

    def patched(self, cluster: str, patch: Any) -> None:
        """Records what the autoscaler asks the API server for, in few words."""
        words = []
        for operation in patch if isinstance(patch, list) else []:
            name, value = str(operation["path"]).rsplit("/", 1)[-1], operation.get("value")
            if isinstance(value, dict):
                value = ", ".join(value.get("workersToDelete", [])) or "none"
                name = "workersToDelete"
            words.append(f"{name}: {value}")
        self.add("patch", cluster, "; ".join(words), patch=patch)

    @property
    def events(self) -> list[Event]:
        """All so far."""
        with self._lock:
            return list(self._events)

    def write(self, path: Path) -> None:
        """Saves it as JSON."""
        path.write_text(json.dumps([asdict(event) for event in self.events], indent=1) + "\n")


def metrics(events: list[Event]) -> dict[str, Any]:
    """The numbers of a rehearsal.

    Returns:
        `scaled_up_to`: the most workers of one cluster that were ready at one time;
        `scaled_down_to`: those that were left at the end; `time_to_scale_up_s`: from the first
        submission until so many were ready; `time_to_scale_down_s`: from the job's end until the
        last worker was gone; `steps_redone`: see there. None where it did not happen.
    """
    ready: dict[str, set[str]] = {}
    left: set[str] = set()
    most, up_at, down_at = 0, None, None
    submitted = next((e.time_s for e in events if e.kind == "job" and e.text == "submitted"), None)
    ended = next((e.time_s for e in reversed(events) if e.data.get("ended")), None)
    for event in events:
        if event.data.get("role") != "worker":
            continue
        here = ready.setdefault(event.data.get("cluster", ""), set())
        if event.kind == "pod":
            left.add(event.subject)
        elif event.kind == "ready":
            here.add(event.subject)
            if len(here) > most:
                most, up_at = len(here), event.time_s
        elif event.kind in ("unready", "leaving", "removed"):
            here.discard(event.subject)
            if event.kind == "removed":
                left.discard(event.subject)
                if ended is not None and event.time_s >= ended:
                    down_at = event.time_s
    if submitted is not None and up_at is not None and up_at < submitted:
        up_at = None  # They were there before.
    return {
        "scaled_up_to": most,
        "scaled_down_to": len(left),
        "time_to_scale_up_s": _between(submitted, up_at),
        "time_to_scale_down_s": _between(ended, down_at),
        "steps_redone": steps_redone(events),
    }


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 2)


def steps_redone(events: list[Event]) -> int | None:
    """How many steps the job did again after a loss, by its own reports; None if it made none.

    A job that goes on from a checkpoint reports `start` with the step after which it goes on.
    """
    redone, furthest, seen = 0, 0, False
    for event in events:
        if event.kind != "step":
            continue
        seen = True
        if event.data.get("event") == "start":
            redone += max(0, furthest - event.data["step"])
            furthest = event.data["step"]
        furthest = max(furthest, event.data["step"])
    return redone if seen else None


def draw(events: list[Event], path: Path, title: str) -> None:
    """Saves a picture: a bar for each pod, the job's steps below, faults as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    pods = [e.subject for e in events if e.kind == "pod"]
    end = max((e.time_s for e in events), default=1.0)
    height = 1.8 + 0.4 * max(1, len(pods))
    figure, (bars, steps) = plt.subplots(
        2, 1, sharex=True, figsize=(11, height + 1.8), height_ratios=[height, 1.8]
    )
    for row, name in enumerate(pods):
        for start, stop, state in phases(events, name, end):
            bars.barh(row, stop - start, left=start, color=COLORS[state], height=0.6)
    bars.set_yticks(range(len(pods)), pods, fontsize=7)
    bars.invert_yaxis()
    bars.set_title(title, fontsize=10, loc="left")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False}
    bars.legend(handles, COLORS, fontsize=7, ncols=4, **above)
    done = [(e.time_s, e.data["step"]) for e in events if e.kind == "step" and "step" in e.data]
    if done:
        steps.plot(*zip(*done, strict=True), color=JOB_COLOR, marker=".", markersize=3)
    steps.set_ylabel("job step", fontsize=8)
    steps.set_xlabel("seconds", fontsize=8)
    labelled = -end
    for event in events:
        color = {"fault": FAULT_COLOR, "job": JOB_COLOR}.get(event.kind)
        if color is None:
            continue
        for axes in (bars, steps):
            axes.axvline(event.time_s, color=color, linewidth=0.8, linestyle="--")
        if event.time_s - labelled > LABEL_ROOM * end:
            place = {"transform": steps.get_xaxis_transform(), "rotation": 90, "va": "top"}
            steps.text(event.time_s, 0.96, event.text, ha="right", fontsize=6, color=color, **place)
            labelled = event.time_s
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def phases(events: list[Event], pod: str, end: float) -> list[tuple[float, float, str]]:
    """Start, end and state of each phase of a pod's life."""
    states = {"pod": "pending", "started": "starting", "unready": "starting"}
    states |= {"ready": "ready", "leaving": "leaving"}
    changes = [(e.time_s, e.kind) for e in events if e.subject == pod]
    found: list[tuple[float, float, str]] = []
    since, state = 0.0, ""
    for moment, kind in changes:
        if kind in states or kind == "removed":
            if state:
                found.append((since, moment, state))
            since, state = moment, states.get(kind, "")
    if state:
        found.append((since, end, state))
    return found
