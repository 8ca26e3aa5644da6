"""Reads what the job and the autoscaler write, and puts it on the timeline."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from rehearsal.stage import Stage

LOOK_S = 0.2
SAYS = re.compile(rb"event_logger\.py:\d+ -- (?P<words>.*)")
IDLE = "(idle)"


class Watch:
    """Follows files that grow."""

    def __init__(self, stage: Stage):
        self._stage = stage
        self._read: dict[Path, int] = {}
        self._lock = threading.Lock()
        self.furthest = 0
        """The last step that the job has come to."""

    def run(self) -> None:
        """Returns when everybody should stop."""
        while not self._stage.stopped.is_set():
            self.look()
            self._stage.pause(LOOK_S)
        self.look()

    def look(self) -> None:
        """Reads what is new."""
        output = Path(self._stage.options.output)
        with self._lock:
            for path in sorted((output / "volumes").glob(self._stage.options.steps)):
                for line in self._new_lines(path):
                    self._step(line)
            for path in sorted(self._stage.logs.glob("*-autoscaler.log")):
                for line in self._new_lines(path):
                    self._decision(line)

    def _new_lines(self, path: Path) -> Iterator[bytes]:
        content = path.read_bytes()
        seen = self._read.get(path, 0)
        if len(content) < seen:  # Begun anew.
            seen = 0
        *lines, _ = content[seen:].split(b"\n")
        self._read[path] = seen + sum(len(line) + 1 for line in lines)
        yield from lines

    def _step(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            step = int(event["step"])
        except (ValueError, KeyError, TypeError):
            return
        self.furthest = max(self.furthest, step)
        kind = str(event.get("event", "step"))
        self._stage.timeline.add("step", kind, f"{kind} {step}", step=step, event=kind)

    def _decision(self, line: bytes) -> None:
        found = SAYS.search(line)
        if found is not None:
            words = found["words"].decode(errors="replace")
            kind = "idle" if IDLE in words else "demand"
            self._stage.timeline.add(kind, "autoscaler", words)
