"""What goes wrong on request."""

import signal
from collections.abc import Callable

from ray_shared.errors import JobError

from rehearsal.context import Context
from rehearsal.operator import Operator, Pod
from rehearsal.options import Fault
from rehearsal.watch import POLL_S, Watch


class Injection:
    """One fault: waits for its moment, and does it once."""

    def __init__(self, context: Context, watch: Watch, fault: Fault):
        self.fault = fault
        self._context, self._watch = context, watch
        self._hit: tuple[Operator, Pod] | None = None

    def run(self) -> None:
        """Returns once it has happened, or when it is too late for it."""
        context, fault = self._context, self.fault
        self._wait(context.running.is_set)
        if fault.step is None:
            self._wait(lambda: self._target() is not None)
            context.finished.wait(fault.seconds)
        else:
            step = fault.step
            self._wait(lambda: self._watch.furthest >= step)
        self._wait(lambda: self._target() is not None)
        found = None if self._too_late() else self._target()
        if found is not None:
            self._do(*found)
            self._hit = found

    def replaced(self) -> bool:
        """Whether it has happened, its pod is gone, and its cluster has all its pods again."""
        if self._hit is None:
            return False
        operator, pod = self._hit
        return pod not in operator.all_pods() and operator.complete()

    def check(self) -> None:
        """Does nothing if the fault has happened.

        Raises:
            JobError: If it has not.
        """
        if self._hit is None:
            raise JobError(f"rehearse.{self.fault} did not happen: the run was over before")

    def _too_late(self) -> bool:
        return self._context.stopped.is_set() or self._context.finished.is_set()

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not self._too_late() and not condition():
            self._context.finished.wait(POLL_S)

    def _target(self) -> tuple[Operator, Pod] | None:
        """A pod that is ready, in the newest cluster."""
        operator = self._context.operators[-1]
        found = [operator.head] if self.fault.target == "head" else operator.workers()
        return next(((operator, pod) for pod in found if pod is not None and pod.ready), None)

    def _do(self, operator: Operator, pod: Pod) -> None:
        context, fault = self._context, self.fault
        context.timeline.add("fault", pod.name, str(fault), role=pod.spec.kind)
        if fault.kind == "kill":
            pod.sandbox.signal(signal.SIGKILL)
        elif fault.kind == "reclaim":
            notice_s = context.options.notice_s
            operator.delete(pod, f"its node goes in {notice_s:g} s", notice_s)
        else:
            pod.sandbox.cut()
