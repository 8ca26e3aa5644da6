"""The pods that KubeRay's operator 1.7 would make of a cluster: command, environment, labels.

Source: ray-project/kuberay, ray-operator/controllers/ray/common/pod.go
"""

import json
import secrets
import string
from dataclasses import dataclass, field
from typing import Any

from ray_shared.errors import UserError

from rehearsal import references
from rehearsal.manifest import Document, Plan, memory_of
from rehearsal.namespaces import GATEWAY
from rehearsal.quantities import naming, whole

HEAD_GROUP = "headgroup"
GCS_PORT = 6379
DASHBOARD_PORT = 8265
AGENT_PORT = 52365
SERVE_PORT = 8000
# Options of `ray start` that want a value, also where it is true or false.
VALUED = ("log-color", "include-dashboard", "include-log-monitor")
ACCELERATORS = {"aws.amazon.com/neuroncore": "neuron_cores", "google.com/tpu": "TPU"}
ALPHABET = string.ascii_lowercase + string.digits
DEFAULT_GRACE_S = 30.0


@dataclass(frozen=True)
class Probe:
    """When a pod is ready, or alive."""

    urls: tuple[tuple[int, str], ...]
    """Port and path, all of which have to answer."""
    command: tuple[str, ...] = ()
    """Instead: what has to succeed in the pod."""
    delay_s: float = 10.0
    period_s: float = 5.0
    timeout_s: float = 2.0
    failures: int = 10


@dataclass(frozen=True)
class PodSpec:
    """All that is needed to start a pod."""

    name: str
    kind: str
    """`head` or `worker`."""
    group: str
    labels: dict[str, str]
    env: dict[str, str]
    command: str
    """For `bash -c`."""
    wait_for: str | None
    """Head to wait for, in an init container."""
    volumes: dict[str, str]
    """Path in the pod to the volume; see `references.volumes`."""
    shm_bytes: int
    grace_s: float
    ready: Probe
    alive: Probe
    pre_stop: tuple[str, ...] = ()
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Volume to the path and content of each file that it begins with."""
    container: Document = field(default_factory=dict)
    """As the API shows it."""


def random_suffix() -> str:
    """Five characters, as Kubernetes appends them to a name."""
    return "".join(secrets.choice(ALPHABET) for _ in range(5))


def head_service(cluster: str, namespace: str) -> str:
    """The name under which workers find the head."""
    return f"{cluster[:50]}-head-svc.{namespace}.svc.cluster.local"


def start_command(group: Document, kind: str, address: str | None, autoscaled: bool) -> str:
    """The `ray start` line.

    Args:
        group: Head or worker group.
        kind: `head` or `worker`.
        address: Of the head's GCS, for workers.
        autoscaled: Whether an autoscaler runs beside the head.
    """
    params = {key: str(value) for key, value in group["rayStartParams"].items()}
    params = {k: v.lower() if v in ("True", "False") else v for k, v in params.items()}
    _add_group_resources(params, group.get("resources") or {})
    labels = group.get("labels") or {}
    if labels:
        params["labels"] = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
    if kind == "worker":
        params.setdefault("address", str(address))
    else:
        params.setdefault("dashboard-host", "0.0.0.0")
        if autoscaled:
            params["no-monitor"] = "true"
    params.setdefault("metrics-export-port", "8080")
    params["block"] = "true"
    params.setdefault("dashboard-agent-listen-port", str(AGENT_PORT))
    _add_container_resources(params, group["template"]["spec"]["containers"][0])
    words = ["ray start --head" if kind == "head" else "ray start"]
    for key in sorted(params):
        if params[key].lower() in ("true", "false") and key not in VALUED:
            words += [f"--{key}"] if params[key].lower() == "true" else []
        else:
            words.append(f"--{key}={params[key]}")
    return " ".join(words)


def _add_group_resources(params: dict[str, str], resources: dict[str, Any]) -> None:
    others = {}
    for name, value in resources.items():
        low = name.lower()
        with naming(f"resources.{name}"):
            if low in ("cpu", "memory"):
                params["num-cpus" if low == "cpu" else "memory"] = str(whole(value))
            elif low.endswith("gpu"):
                params["num-gpus"] = str(whole(value))
            else:
                others[name] = float(value)
    if others:
        params["resources"] = f"'{json.dumps(others)}'"


def _add_container_resources(params: dict[str, str], container: Document) -> None:
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    cpus = limits.get("cpu", requests.get("cpu"))
    if "num-cpus" not in params and cpus is not None:
        params["num-cpus"] = str(whole(cpus))
    if "memory" not in params and "memory" in limits:
        params["memory"] = str(whole(limits["memory"]))
    for name in sorted(limits):
        if name.endswith("gpu") and whole(limits[name]):
            params.setdefault("num-gpus", str(whole(limits[name])))
        if name in ACCELERATORS and "resources" not in params:
            params["resources"] = f"'{json.dumps({ACCELERATORS[name]: whole(limits[name])})}'"


def build(
    plan: Plan,
    cluster: str,
    kind: str,
    group: Document,
    token: str | None,
    secret: dict[str, str],
    ip: str,
) -> PodSpec:
    """The pod that the operator would make.

    Args:
        plan: Of the rehearsal.
        cluster: Name of the RayCluster.
        kind: `head` or `worker`.
        group: Its group.
        token: Of the cluster; None: it asks for none.
        secret: `name/key` to value, of the secrets that it refers to.
        ip: Its address.

    Raises:
        UserError: If it refers to what is not there.
    """
    template = group["template"]
    spec, container = template["spec"], template["spec"]["containers"][0]
    group_name = HEAD_GROUP if kind == "head" else group["groupName"]
    middle = "head" if kind == "head" else f"{group_name}-worker"
    name = f"{cluster[:40]}-{middle[:14]}-{random_suffix()}"
    service = head_service(cluster, plan.namespace)
    head_params = plan.cluster["headGroupSpec"]["rayStartParams"]
    port = str(head_params.get("port", GCS_PORT))
    command = start_command(group, kind, f"{service}:{port}", plan.autoscaled)
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/identifier": f"{cluster}-{kind}",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        **(template.get("metadata", {}).get("labels") or {}),
        **(group.get("labels") or {}),
        "ray.io/cluster": cluster,
        "ray.io/node-type": kind,
        "ray.io/group": group_name,
    }
    fields = {"metadata.name": name, "metadata.namespace": plan.namespace}
    fields |= {"status.podIP": ip, "status.hostIP": GATEWAY}
    fields |= {f"metadata.labels['{key}']": value for key, value in labels.items()}
    known = references.Known(plan.objects, secret, fields)
    env = references.environment(container, known)
    operators = {
        "RAY_CLUSTER_NAME": cluster,
        "RAY_CLOUD_INSTANCE_ID": name,
        "RAY_NODE_TYPE_NAME": group_name,
        "KUBERAY_GEN_RAY_START_CMD": command,
    }
    defaults = {
        "RAY_PORT": port,
        "RAY_ADDRESS": f"{service if kind == 'worker' else '127.0.0.1'}:{port}",
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
        # Ray takes 30 % of the memory that it sees for objects. Without a cgroup it sees all of
        # the machine's, so it is told what it would be of the limit.
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(int(0.3 * memory_of(group))),
    }
    if kind == "worker":
        operators |= {"FQ_RAY_IP": service, "RAY_IP": service.split(".")[0]}
    elif _version(plan) == "v2":
        operators["RAY_enable_autoscaler_v2"] = "true"
    if plan.kind == "RayService":
        defaults["RAY_timeout_ms_task_wait_for_death_info"] = "0"
        defaults["RAY_gcs_server_request_timeout_seconds"] = "5"
        defaults["RAY_SERVE_KV_TIMEOUT_S"] = "5"
    if token is not None:
        defaults |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    own = " ".join([*container.get("command", []), *container.get("args", [])])
    if "ray start" not in own:
        own = f"{own} && " if own else ""
        own += f"ulimit -n 65536 2>/dev/null; {command}"
    stop = ((container.get("lifecycle") or {}).get("preStop") or {}).get("exec") or {}
    return PodSpec(
        name=name,
        kind=kind,
        group=group_name,
        labels=labels,
        env=defaults | env | operators,
        command=own,
        wait_for=f"{service}:{port}" if kind == "worker" else None,
        volumes=references.volumes(spec, container),
        files=references.files(spec, container, known),
        shm_bytes=memory_of(group),
        grace_s=float(spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)),
        ready=probe(container, plan.kind, kind, ready=True),
        alive=probe(container, plan.kind, kind, ready=False),
        pre_stop=tuple(stop.get("command", [])),
        container=container,
    )


def _version(plan: Plan) -> str:
    return str((plan.cluster.get("autoscalerOptions") or {}).get("version", "v1"))


def probe(container: Document, owner: str, kind: str, ready: bool) -> Probe:
    """The probe of a container, or the one that the operator injects where it has none.

    Raises:
        UserError: If it is of a kind that is not rehearsed.
    """
    field = "readinessProbe" if ready else "livenessProbe"
    given = container.get(field)
    if given is None:
        urls = [(AGENT_PORT, "/api/local_raylet_healthz")]
        if kind == "head":
            urls.append((DASHBOARD_PORT, "/api/gcs_healthz"))
        serves = ready and owner == "RayService" and kind == "worker"
        if serves:
            urls.append((SERVE_PORT, "/-/healthz"))
        delay, failures = (10.0, 1 if serves else 10) if ready else (30.0, 120)
        return Probe(tuple(urls), (), delay, 5.0, 2.0, failures)
    with naming(field):
        http, command = given.get("httpGet"), (given.get("exec") or {}).get("command")
        if not http and not command:
            shown = ", ".join(given) or "nothing"
            raise UserError(f"found {shown}: must be httpGet or exec for a rehearsal")
        return Probe(
            urls=((_port(http["port"], container), http.get("path", "/")),) if http else (),
            command=tuple(command or ()),
            delay_s=float(given.get("initialDelaySeconds", 0)),
            period_s=float(given.get("periodSeconds", 10)),
            timeout_s=float(given.get("timeoutSeconds", 1)),
            failures=int(given.get("failureThreshold", 3)),
        )


def _port(port: int | str, container: Document) -> int:
    """The number of a port that may be given by its name."""
    named = {each.get("name"): each["containerPort"] for each in container.get("ports") or []}
    return int(named.get(port, port))
