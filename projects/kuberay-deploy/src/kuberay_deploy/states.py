"""What the `.status` of KubeRay's resources means: still on its way, ready, done or failed.

Source: https://docs.ray.io/en/releases-2.60.0/cluster/kubernetes/user-guides/observability.html and
`ray-operator/apis/ray/v1` of KubeRay 1.7.
"""

from dataclasses import dataclass

from ray_shared.errors import JobError

from kuberay_deploy.manifests import Document

JOB_ENDS = ("Complete", "Failed", "ValidationFailed")
"""Values of a RayJob's `jobDeploymentStatus` after which nothing happens any more."""
BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
"""Of an application of Ray Serve."""


@dataclass(frozen=True)
class State:
    """What the operator says about a resource."""

    name: str
    """`RayJob/name`."""
    phase: str
    """The operator's word for it."""
    ended: bool
    """Whether there is nothing to wait for: a job has ended, a service or cluster is ready."""
    ok: bool
    """If it has ended: whether well."""
    message: str
    """The operator's reason, if it gives one."""
    cluster: str | None
    """Name of its RayCluster, once there is one."""

    def check(self) -> None:
        """Does nothing unless it has failed.

        Raises:
            JobError: With the operator's reason.
        """
        if self.ended and not self.ok:
            raise JobError(
                f"{self.name}: {self.phase}" + (f": {self.message}" if self.message else "")
            )


def state_of(document: Document) -> State:
    """Reads the status of a RayJob, RayService, RayCluster or RayCronJob from the API server."""
    kind, metadata = document["kind"], document["metadata"]
    status = document.get("status") or {}
    read = {"RayJob": _job, "RayService": _service, "RayCluster": _cluster}.get(kind, _cron)
    phase, ended, ok, message, cluster = read(status)
    if kind in ("RayService", "RayCluster"):
        cluster = cluster if kind == "RayService" else metadata["name"]
        # The status of the version before this one means nothing.
        if status.get("observedGeneration", 0) < metadata.get("generation", 0):
            phase, ended, message = "new", False, ""
    if metadata.get("deletionTimestamp"):
        phase, ended, ok = "being deleted", True, False
    message = message.strip().splitlines()[0] if message.strip() else ""
    return State(f"{kind}/{metadata['name']}", phase, ended, ok, message, cluster)


Reading = tuple[str, bool, bool, str, str | None]
"""phase, ended, ok, message, cluster."""


def _job(status: Document) -> Reading:
    """One that will be tried again has not ended."""
    deployment, job = status.get("jobDeploymentStatus") or "new", status.get("jobStatus") or ""
    message = ": ".join(filter(None, [status.get("reason"), status.get("message")]))
    ended = deployment in JOB_ENDS
    ok = deployment == "Complete" and job == "SUCCEEDED"
    phase = f"{deployment}, {job}" if job else deployment
    return phase, ended, ok, message, status.get("rayClusterName")


def _service(status: Document) -> Reading:
    """Ready means that requests are answered, perhaps still by the version before."""
    active = status.get("activeServiceStatus") or {}
    pending = status.get("pendingServiceStatus") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    ready = conditions.get("Ready", {})
    upgrading = conditions.get("UpgradeInProgress", {}).get("status") == "True"
    cluster = (pending if pending.get("rayClusterName") else active).get("rayClusterName")
    for part in (pending, active):
        for name, app in (part.get("applicationStatuses") or {}).items():
            if app.get("status") in BROKEN:
                message = f"{name}: {app.get('message', '')}"
                return str(app["status"]), True, False, message, cluster
    if ready.get("reason") == "InitializingTimeout":
        return "InitializingTimeout", True, False, ready.get("message", ""), cluster
    ended = ready.get("status") == "True" and not upgrading
    phase = "UpgradeInProgress" if upgrading else "Ready" if ended else ready.get("reason", "new")
    return phase, ended, ended, ready.get("message", ""), cluster


def _cluster(status: Document) -> Reading:
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    provisioned = conditions.get("RayClusterProvisioned", {})
    failure = conditions.get("ReplicaFailure", {})
    ended = provisioned.get("status") == "True"
    message = failure.get("message", "") if failure.get("status") == "True" else ""
    phase = "ready" if ended else status.get("state") or provisioned.get("reason") or "new"
    return phase, ended, ended, message or status.get("reason") or "", None


def _cron(status: Document) -> Reading:
    """There is nothing to wait for: the jobs that it starts are resources of their own."""
    last = status.get("lastScheduleTime")
    return f"last started {last}" if last else "scheduled", True, True, "", None
