"""What goes wrong on request."""

import signal

from rehearsal.operator import Pod
from rehearsal.options import Fault
from rehearsal.stage import Stage
from rehearsal.watch import LOOK_S, Watch


def inject(stage: Stage, watch: Watch, fault: Fault) -> None:
    """Waits for the moment of a fault, and does it."""
    while not stage.stopped.is_set() and not stage.running.wait(LOOK_S):
        continue
    if fault.step is None:
        stage.pause(fault.seconds or 0.0)
    else:
        step = fault.step
        while not stage.stopped.is_set() and watch.furthest < step:
            stage.pause(LOOK_S)
    while not stage.stopped.is_set():
        pod = _target(stage, fault)
        if pod is not None:
            _do(stage, fault, pod)
            return
        stage.pause(LOOK_S)


def _target(stage: Stage, fault: Fault) -> Pod | None:
    """A pod that is ready, in the newest cluster."""
    operator = stage.operators[-1]
    found = [operator.head] if fault.target == "head" else operator.workers()
    return next((pod for pod in found if pod is not None and pod.ready), None)


def _do(stage: Stage, fault: Fault, pod: Pod) -> None:
    stage.timeline.add("fault", pod.name, str(fault), role=pod.spec.kind, step=None)
    if fault.kind == "kill":
        pod.sandbox.signal(signal.SIGKILL)
    elif fault.kind == "drain":
        notice_s = stage.options.notice_s
        stage.operators[-1].delete(pod, f"its node goes in {notice_s:g} s", notice_s)
    else:
        pod.sandbox.cut()
