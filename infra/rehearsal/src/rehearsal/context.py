"""What the threads of a rehearsal share."""

import logging
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

logger = logging.getLogger(__name__)
HEAD_TIMEOUT_S = 300.0
"""For a head to become ready."""


class StoppedError(JobError):
    """The rehearsal was told to stop."""

    def __init__(self) -> None:
        super().__init__("interrupted")


class Context:
    """The plan, its clusters, and how far it is."""

    def __init__(self, plan: Plan, options: Options, timeline: Timeline):
        self.plan, self.options, self.timeline = plan, options, timeline
        self.operators: list[Operator] = []
        """One for each RayCluster; a service that is being updated has two."""
        self.stopped = threading.Event()
        """Set when every thread should return."""
        self.running = threading.Event()
        """Set when the job or service runs: faults wait for it."""
        self.finished = threading.Event()
        """Set when the job or service is over: a fault would come too late."""
        self.faults_done: Callable[[], bool] = lambda: True
        """Whether every fault has happened, and the clusters have all pods again."""
        self.new_operator: Callable[[Plan], Operator]
        """Makes another cluster, and adds it to `operators`."""
        self.metrics: dict[str, Any] = {}
        self.logs = Path(options.output) / "logs"

    def note_change(self, change: str) -> None:
        """Tells of something that is not as in the manifest."""
        self.plan.changes.append(change)
        logger.info("not as in the manifest: %s", change)

    def pause(self, seconds: float) -> None:
        """Sleeps, but not when every thread should return."""
        self.stopped.wait(seconds)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it became true in time.

        Raises:
            StoppedError: If the rehearsal ends first.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.stopped.is_set():
                raise StoppedError
            self.pause(0.2)
        return condition()

    def ready_head(self, operator: Operator) -> Pod:
        """The head, once it is ready.

        Raises:
            JobError: If it does not become so.
        """
        if not self.wait_for(lambda: bool(operator.head and operator.head.ready), HEAD_TIMEOUT_S):
            raise JobError(f"no head is ready after {HEAD_TIMEOUT_S:g} s; its log: {self.logs}")
        head = operator.head
        if head is None:
            raise JobError("the head is gone")
        return head
