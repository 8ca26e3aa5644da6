"""What the threads of a rehearsal share."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_shared.errors import JobError

from rehearsal.manifest import Plan
from rehearsal.operator import Operator, Pod
from rehearsal.options import Options
from rehearsal.timeline import Timeline

HEAD_S = 300.0
"""For a head to become ready."""


class Stage:
    """The plan, its clusters, and how far it is."""

    def __init__(self, plan: Plan, options: Options, timeline: Timeline):
        self.plan, self.options, self.timeline = plan, options, timeline
        self.operators: list[Operator] = []
        """One for each RayCluster; a service that is being updated has two."""
        self.stopped = threading.Event()
        """Set when everybody should stop what they do."""
        self.running = threading.Event()
        """Set when the job or service runs: faults count from here."""
        self.new_operator: Callable[[Plan], Operator]
        """Makes another cluster, and adds it to `operators`."""
        self.metrics: dict[str, Any] = {}
        self.logs = Path(options.output) / "logs"

    def pause(self, seconds: float) -> None:
        """Sleeps, but not when everybody should stop."""
        self.stopped.wait(seconds)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it became true in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self.stopped.is_set():
            if condition():
                return True
            self.pause(0.2)
        return condition()

    def ready_head(self, operator: Operator) -> Pod:
        """The head, once it is ready.

        Raises:
            JobError: If it does not become so.
        """
        if not self.wait_for(lambda: bool(operator.head and operator.head.ready), HEAD_S):
            raise JobError(f"no head is ready after {HEAD_S:g} s; its log is in {self.logs}")
        head = operator.head
        if head is None:
            raise JobError("the head is gone")
        return head
