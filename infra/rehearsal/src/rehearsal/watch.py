"""Reads what the job and the autoscaler write, and puts it on the timeline."""

import fnmatch
import json
import os
import re
import threading
from pathlib import Path

from rehearsal.context import Context

POLL_S = 0.2
DECISION = re.compile(rb"event_logger\.py:\d+ -- (?P<words>.*)")
"""A line of the autoscaler's log that tells what it has decided."""
IDLE = "(idle)"


class Watch:
    """Follows files that grow."""

    def __init__(self, context: Context):
        self._context = context
        self._read: dict[Path, int] = {}
        self._lock = threading.Lock()
        self.furthest = 0
        """The last step that the job has come to."""

    def run(self) -> None:
        """Returns when every thread should."""
        while not self._context.stopped.is_set():
            self.look()
            self._context.pause(POLL_S)
        self.look()

    def look(self) -> None:
        """Reads what is new."""
        volumes = Path(self._context.options.output) / "volumes"
        with self._lock:
            for path in matching(volumes, self._context.options.steps):
                for line in self._new_lines(path):
                    self._step(line)
            for path in matching(self._context.logs, "*-autoscaler.log"):
                for line in self._new_lines(path):
                    self._decision(line)

    def _new_lines(self, path: Path) -> list[bytes]:
        seen = self._read.get(path, 0)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < seen:  # Begun anew.
                    seen = 0
                file.seek(seen)
                *lines, _ = file.read().split(b"\n")
        except OSError:  # It has gone in the meantime.
            return []
        self._read[path] = seen + sum(len(line) + 1 for line in lines)
        return lines

    def _step(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            step = int(event["step"])
        except (ValueError, KeyError, TypeError):
            return
        self.furthest = max(self.furthest, step)
        kind = str(event.get("event", "step"))
        self._context.timeline.add("step", kind, f"step {step}", step=step, event=kind)

    def _decision(self, line: bytes) -> None:
        found = DECISION.search(line)
        if found is not None:
            words = found["words"].decode(errors="replace")
            kind = "idle" if IDLE in words else "demand"
            self._context.timeline.add(kind, "autoscaler", words)


def matching(directory: Path, pattern: str) -> list[Path]:
    """Files below a directory, in which others delete files and directories at the same time.

    Args:
        directory: Where to look; it need not be there.
        pattern: As in `**/metrics.jsonl`, for the path below it; `*` matches `/`, too.
    """
    # `Path.glob` raises FileNotFoundError where a directory goes while it looks (Python 3.11).
    found = []
    for place, _, names in os.walk(directory):
        paths = [Path(place, name) for name in names]
        found += [p for p in paths if fnmatch.fnmatchcase(str(p.relative_to(directory)), pattern)]
    return sorted(found)
