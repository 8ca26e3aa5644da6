"""Ray's autoscaler: the second container of a head's pod, in the same network and with its logs."""

import time
from pathlib import Path

from ray_shared.errors import JobError

from rehearsal.api import PORT, Server
from rehearsal.manifest import Plan
from rehearsal.namespaces import GATEWAY
from rehearsal.pod import Pod, last_line

CREDENTIALS = "/rehearsal-api"
"""Where it finds its certificates, in the head's pod only."""
KEPT = ("PATH", "HOME", "LANG", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
GRACE_S = 5.0
"""From its end to an error, unless its pod ends as well."""


def start(
    pod: Pod, plan: Plan, cluster: str, image: dict[str, str], server: Server, log: Path
) -> None:
    """Starts `ray kuberay-autoscaler`, as the operator has it started.

    Args:
        pod: The head's, which has started.
        plan: Of the rehearsal.
        cluster: The name of the RayCluster.
        image: The variables of the head's container.
        server: The API that it talks to.
        log: Gets what it prints.
    """
    env = {name: image[name] for name in KEPT if name in image} | {
        "RAY_CLUSTER_NAME": cluster,
        "RAY_CLUSTER_NAMESPACE": plan.namespace,
        "RAY_HEAD_POD_NAME": pod.name,
        "KUBERAY_CRD_VER": "v1",
        "KUBERNETES_SERVICE_HOST": GATEWAY,
        "KUBERNETES_SERVICE_PORT_HTTPS": str(PORT),
    }
    env |= {name: f"{CREDENTIALS}/{path.name}" for name, path in server.files.items()}
    options = plan.cluster.get("autoscalerOptions") or {}
    env |= {e["name"]: str(e["value"]) for e in options.get("env") or [] if "value" in e}
    command = ["ray", "kuberay-autoscaler", "--cluster-name", cluster]
    command += ["--cluster-namespace", plan.namespace]
    with log.open("wb") as file:
        pod.autoscaler = pod.sandbox.execute(command, env, file)


def check(pod: Pod, log: Path) -> None:
    """Does nothing while it runs, or where there is none.

    Raises:
        JobError: If it has ended and its pod has not.
    """
    if pod.autoscaler is None or pod.autoscaler.poll() is None or pod.leaving:
        return
    now = time.monotonic()
    pod.autoscaler_ended_s = pod.autoscaler_ended_s or now
    # It may only be the first to go of a pod that ends.
    if pod.exit_code is None and now - pod.autoscaler_ended_s > GRACE_S:
        raise JobError(f"the autoscaler ended with {pod.autoscaler.returncode}: {last_line(log)}")
