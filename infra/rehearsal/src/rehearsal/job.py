"""Runs a RayJob's entry point, as the submitter's pod and the operator do together.

Source: ray-project/kuberay, ray-operator/controllers/ray/{rayjob_controller,common/job}.go
"""

import shlex
from pathlib import Path
from typing import Any

import yaml
from ray_shared.errors import JobError

from rehearsal.context import Context, StoppedError
from rehearsal.head import Head, LostError
from rehearsal.operator import Operator, Pod
from rehearsal.pods import random_suffix

POLL_S = 0.5
DONE = ("SUCCEEDED", "FAILED", "STOPPED")
SHELL_TIMEOUT_S = 60.0
"""For a shell to read an entry point."""
SETTLE_S = 60.0
"""Beyond the idle time, for the autoscaler to remove the workers."""
JOINED = "import shlex, sys; print(shlex.join(sys.argv[1:]))"


def run(context: Context) -> None:
    """Runs the job to its end, and waits until its workers are gone.

    Fills `job_id`, `job_status`, `job_tries` (submissions) and `job_clusters`.

    Raises:
        JobError: If it fails, and no try is left.
    """
    clusters = 1 + int(context.plan.spec.get("backoffLimit") or 0)
    status, message = "", ""
    context.metrics["job_tries"] = 0
    for number in range(1, clusters + 1):
        if number > 1:  # As the operator does: a new cluster, and the old one goes.
            context.operators[-1].close()
            context.new_operator(context.plan)
        status, message = _run_on(context, context.operators[-1])
        context.metrics |= {"job_status": status or "LOST", "job_clusters": number}
        if status in ("SUCCEEDED", "STOPPED"):
            break
    context.finished.set()
    context.timeline.add("job", context.plan.name, "over", ended=True)
    if status != "SUCCEEDED":
        reason = (message.strip().splitlines() or ["no reason given"])[-1]
        raise JobError(f"job {context.plan.name}: {status or 'lost'}: {reason}")
    _settle(context, context.operators[-1])


def _run_on(context: Context, operator: Operator) -> tuple[str, str]:
    """Runs the job on one cluster: status, or nothing if it was lost with its head; message."""
    spec = context.plan.spec
    job = {"runtime_env": yaml.safe_load(spec.get("runtimeEnvYAML") or "{}")} | spec
    allowed = 1 + int((spec.get("submitterConfig") or {}).get("backoffLimit", 2))
    job_id = f"{context.plan.name}-{random_suffix()}"
    context.metrics["job_id"] = job_id
    status, message = "", ""
    for _ in range(allowed):
        head = context.ready_head(operator)
        command = entrypoint(operator, head, spec)
        client = Head(head.sandbox.ip, operator.token)
        status, message = "", "its head was gone before it was submitted"
        if _submit(context, operator, head, client, job_id, command, job):
            number = context.metrics["job_tries"] = context.metrics["job_tries"] + 1
            context.timeline.add("job", job_id, "submitted again" if number > 1 else "submitted")
            log = context.logs / f"job-{number}.log"
            status, message = _follow(context, operator, head, client, job_id, log)
        if status:
            break
    context.timeline.add("job", job_id, status or "given up")
    return status, message


def entrypoint(operator: Operator, head: Pod, spec: dict[str, Any]) -> str:
    """The command as it arrives at the head's shell: in K8sJobMode it has passed another one."""
    line = str(spec["entrypoint"])
    if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        return line
    submit = shlex.join([f"{operator.options.python}/python", "-c", JOINED])
    command = ["bash", "-c", f"{submit} {line}"]
    done = head.sandbox.run(command, operator.environment(head.spec), SHELL_TIMEOUT_S)
    code, printed = done or (1, f"not done after {SHELL_TIMEOUT_S:g} s")
    if code != 0:
        raise JobError(f"the submitter's shell cannot read the entry point: {printed}")
    return printed


def _submit(
    context: Context,
    operator: Operator,
    head: Pod,
    client: Head,
    job_id: str,
    command: str,
    job: dict[str, Any],
) -> bool:
    """Whether the head has taken the job before it was gone."""
    while operator.head is head:
        try:
            if client.job(job_id) is None:
                client.submit(job_id, command, job)
            return True
        except LostError:  # The dashboard comes a little later than the GCS.
            context.pause(POLL_S)
        if context.stopped.is_set():
            raise StoppedError
    return False


def _follow(
    context: Context, operator: Operator, head: Pod, client: Head, job_id: str, log: Path
) -> tuple[str, str]:
    """Waits for the end of the job, or of its head: status and message."""
    before = ""
    while not context.stopped.is_set():
        context.pause(POLL_S)
        if operator.head is not head:
            context.timeline.add("job", job_id, "lost with its head")
            return "", "its head is gone"
        try:
            info = client.job(job_id)
            log.write_text(client.job_log(job_id))
        except LostError:
            continue
        if info is None:
            return "", "the head does not know it any more"
        status = str(info["status"])
        if status != before and status not in DONE:
            context.timeline.add("job", job_id, status.lower())
        if status == "RUNNING":
            context.running.set()
        if status in DONE:
            return status, str(info.get("message") or "")
        before = status
    raise StoppedError


def _settle(context: Context, operator: Operator) -> None:
    """Waits until each group has its minimum of workers again."""
    if not context.plan.autoscaled:
        return
    scaler = context.plan.cluster.get("autoscalerOptions") or {}
    groups = context.plan.cluster["workerGroupSpecs"]
    least = sum(group["minReplicas"] * group["numOfHosts"] for group in groups)
    idle_s = float(scaler.get("idleTimeoutSeconds", 60)) + SETTLE_S
    idle_s += max((w.spec.grace_s for w in operator.workers()), default=0.0)
    settled = context.wait_for(
        lambda: sum(pod.spec.kind == "worker" for pod in operator.all_pods()) <= least, idle_s
    )
    if not settled:
        left = ", ".join(pod.name for pod in operator.workers())
        raise JobError(f"workers that nobody needs are still there after {idle_s:g} s: {left}")
