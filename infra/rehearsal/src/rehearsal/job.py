"""Runs a RayJob's entry point, as the submitter's pod and the operator do together.

Source: ray-project/kuberay, ray-operator/controllers/ray/{rayjob_controller,common/job}.go
"""

import shlex
import subprocess
from typing import Any

import yaml
from ray_shared.errors import JobError

from rehearsal.head import Head, LostError
from rehearsal.operator import Operator, Pod
from rehearsal.pods import random_suffix
from rehearsal.stage import Stage

POLL_S = 0.5
DONE = ("SUCCEEDED", "FAILED", "STOPPED")
SETTLE_S = 60.0
"""Beyond the idle time, for the autoscaler to remove the workers."""
JOINED = "import shlex, sys; print(shlex.join(sys.argv[1:]))"


def run(stage: Stage) -> None:
    """Runs the job to its end, and waits until its workers are gone.

    Fills `job_id`, `job_status`, `job_tries` (submissions) and `job_clusters`.

    Raises:
        JobError: If it fails, and no try is left.
    """
    clusters = 1 + int(stage.plan.spec.get("backoffLimit") or 0)
    status, message = "", ""
    stage.metrics["job_tries"] = 0
    for number in range(1, clusters + 1):
        if number > 1:  # As the operator does: a new cluster, and the old one goes.
            stage.operators[-1].close()
            stage.new_operator(stage.plan)
        status, message = _run_on(stage, stage.operators[-1])
        stage.metrics |= {"job_status": status or "LOST", "job_clusters": number}
        if status in ("SUCCEEDED", "STOPPED") or stage.stopped.is_set():
            break
    stage.timeline.add("job", stage.plan.name, "over", ended=True)
    if status != "SUCCEEDED":
        reason = (message.strip().splitlines() or ["no reason given"])[-1]
        raise JobError(f"job {stage.plan.name}: {status or 'lost'}: {reason}")
    _settle(stage, stage.operators[-1])


def _run_on(stage: Stage, operator: Operator) -> tuple[str, str]:
    """Runs the job on one cluster: status, or nothing if it was lost with its head; message."""
    spec = stage.plan.spec
    job = {"runtime_env": yaml.safe_load(spec.get("runtimeEnvYAML") or "{}")} | spec
    allowed = 1 + int((spec.get("submitterConfig") or {}).get("backoffLimit", 2))
    job_id = f"{stage.plan.name}-{random_suffix()}"
    stage.metrics["job_id"] = job_id
    status, message = "", ""
    for _ in range(allowed):
        head = stage.ready_head(operator)
        command = entrypoint(operator, head, spec)
        client = Head(head.sandbox.ip, operator.token)
        _submit(stage, client, job_id, command, job)
        stage.metrics["job_tries"] += 1
        again = stage.metrics["job_tries"] > 1
        stage.timeline.add("job", job_id, "submitted again" if again else "submitted")
        status, message = _follow(stage, operator, head, client, job_id)
        if status or stage.stopped.is_set():
            break
    stage.timeline.add("job", job_id, status or "given up")
    return status, message


def entrypoint(operator: Operator, head: Pod, spec: dict[str, Any]) -> str:
    """The command as it arrives at the head's shell: in K8sJobMode it has passed another one."""
    line = str(spec["entrypoint"])
    if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        return line
    submit = shlex.join([f"{operator.options.python}/python", "-c", JOINED])
    command = ["bash", "-c", f"{submit} {line}"]
    words = head.sandbox.execute(command, operator.environment(head.spec))
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise JobError(f"the submitter's shell cannot read the entry point: {done.stderr.strip()}")
    return done.stdout.strip()


def _submit(stage: Stage, client: Head, job_id: str, command: str, job: dict[str, Any]) -> None:
    while not stage.stopped.is_set():
        try:
            if client.job(job_id) is None:
                client.submit(job_id, command, job)
            return
        except LostError:  # The dashboard comes a little later than the GCS.
            stage.pause(POLL_S)


def _follow(
    stage: Stage, operator: Operator, head: Pod, client: Head, job_id: str
) -> tuple[str, str]:
    """Waits for the end of the job, or of its head: status and message."""
    before, log = "", stage.logs / "job.log"
    while not stage.stopped.is_set():
        stage.pause(POLL_S)
        if operator.head is not head:
            stage.timeline.add("job", job_id, "lost with its head")
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
            stage.timeline.add("job", job_id, status.lower())
        if status == "RUNNING":
            stage.running.set()
        if status in DONE:
            return status, str(info.get("message") or "")
        before = status
    return "", "the rehearsal was stopped"


def _settle(stage: Stage, operator: Operator) -> None:
    """Waits until each group has its minimum of workers again."""
    if not stage.plan.autoscaled:
        return
    scaler = stage.plan.cluster.get("autoscalerOptions") or {}
    groups = stage.plan.cluster["workerGroupSpecs"]
    least = sum(group["minReplicas"] * group["numOfHosts"] for group in groups)
    idle_s = float(scaler.get("idleTimeoutSeconds", 60)) + SETTLE_S
    idle_s += max((w.spec.grace_s for w in operator.workers()), default=0.0)
    settled = stage.wait_for(
        lambda: sum(pod.spec.kind == "worker" for pod in operator.pods) <= least, idle_s
    )
    if not settled:
        left = ", ".join(pod.name for pod in operator.workers())
        raise JobError(f"workers that nobody needs are still there after {idle_s:g} s: {left}")
