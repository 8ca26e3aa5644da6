"""The pods: what every one of them has, whatever kind of resource it belongs to.

Source: https://docs.ray.io/en/releases-2.60.0/cluster/kubernetes/user-guides/config.html and
https://kubernetes.io/docs/concepts/security/pod-security-standards/ (restricted)
"""

from dataclasses import dataclass

from ray_shared.report import RESULT_TO_LOG

from kuberay_deploy.catalog import (
    NodeConfig,
    PoolConfig,
    ProfileConfig,
    VariantConfig,
    WorkloadConfig,
)
from kuberay_deploy.config import MOUNT, Config
from kuberay_deploy.manifests import Document
from kuberay_deploy.nodes import placement

# Of the user `ray` in the images.
USER = 1000
# On SIGTERM Ray drains for up to 30 s, which is all that Kubernetes gives by default. A worker of a
# service first waits until no Service sends requests to it any more.
GRACE_S = 60
LEAVE_S = 15
# Ray's logs, and objects that do not fit into memory. Asked of the node, too: what nobody asks for
# fills the node's disk, and then its pods are evicted.
TMP_SIZE = "20Gi"
TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
AGENT_PORT = 52365
# What `ray_shared` sets for a cluster of its own; here the processes are older than the driver. And
# what prints its result, since the log is all that can be read of a job from outside.
ENVIRONMENT = {
    RESULT_TO_LOG: "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
CONTAINER_SECURITY: Document = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True)
class Plan:
    """One workload in one profile: what a manifest is made from."""

    config: Config
    workload: str
    profile: str
    kind: str
    """`cluster`, `job`, `service` or `cron`."""
    env: dict[str, str]
    """Variables of every Ray pod besides `ENVIRONMENT`."""

    @property
    def name(self) -> str:
        """Of all resources in the manifest."""
        return f"{self.workload}-{self.profile}"

    @property
    def chosen(self) -> ProfileConfig:
        """The profile."""
        found: ProfileConfig = getattr(self.config.profiles, self.profile)
        return found

    @property
    def described(self) -> WorkloadConfig:
        """The workload."""
        return self.config.describe(self.workload)

    @property
    def variant(self) -> VariantConfig:
        """The workload in the profile."""
        return self.config.variant(self.workload, self.profile)

    @property
    def labels(self) -> dict[str, str]:
        """By which policies find the pods of this manifest; the operator sets none of them."""
        return {"app.kubernetes.io/part-of": "ray-ref", "app.kubernetes.io/instance": self.name}

    @property
    def image(self) -> str:
        """With registry, name and tag."""
        image = self.config.image
        suffix = image.gpu_suffix if self.chosen.gpu else image.cpu_suffix
        return f"{image.repository}/{self.workload}:{image.tag}{suffix}"


def head(plan: Plan) -> Document:
    """The pod with the GCS, the dashboard, the autoscaler and, in a job, the driver."""
    container = ray_container(plan, "ray-head", plan.described.head, gpu=False)
    # The last two: numbers of the autoscaler and of the dashboard.
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    ports |= {"as-metrics": 44217, "dash-metrics": 44227}
    container["ports"] = [*_ports(ports), *container["ports"]]
    container |= probes(ready=("/api/healthz", AGENT_PORT))
    platform, scarce = plan.config.platform, None
    if plan.chosen.gpu:
        # The image says `all`, and not every node with GPUs has a taint: they are the workers'.
        container["env"].append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
        scarce = platform.gpu
    spec = ray_pod(plan, container, placement(platform.on_demand, but_not=scarce))
    account = plan.config.kubernetes.head_service_account
    if account is not None:
        spec = {"serviceAccountName": account} | spec
    spec["volumes"].append(_token_volume())
    return template(plan, spec)


def worker(plan: Plan, pool: PoolConfig) -> Document:
    """A pod that runs tasks and actors, on nodes of the pool."""
    container = ray_container(plan, "ray-worker", plan.described.worker, gpu=plan.chosen.gpu)
    serves = plan.kind == "service"
    # No request comes to a node whose proxy would not answer it. The probe that the operator would
    # put here calls wget, which a small image does not have.
    ready = ("/-/healthz", 8000) if serves else ("/api/healthz", AGENT_PORT)
    container |= probes(ready=ready, failures=1 if serves else 10)
    if serves:
        container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(LEAVE_S)]}}}
    spec = ray_pod(plan, container, placement(pool))
    account = plan.config.kubernetes.worker_service_account
    if account is not None:
        spec = {"serviceAccountName": account} | spec
    spec["topologySpreadConstraints"] = spread(plan)
    return template(plan, spec)


def submitter(plan: Plan) -> Document:
    """The pod that hands the job to the cluster, follows its log and ends as it does.

    The one that the operator makes by itself says nothing about root, and is refused where the
    namespace enforces the restricted standard.
    """
    container = {
        "name": "ray-job-submitter",
        "image": plan.image,
        "imagePullPolicy": plan.config.image.pull_policy,
        "resources": resources("500m", "1Gi"),
        "securityContext": CONTAINER_SECURITY,
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        **_pull_secrets(plan),
        "containers": [container],
    }
    return template(plan, spec)


def template(plan: Plan, spec: Document) -> Document:
    """A pod template with the manifest's labels."""
    return {"metadata": {"labels": plan.labels}, "spec": spec}


def ray_pod(plan: Plan, container: Document, nodes: Document) -> Document:
    """The spec of a pod with one Ray container, on nodes as `placement` says them."""
    # The name is the operator's: it mounts the same volume into the autoscaler's container.
    volumes: list[Document] = [{"name": "ray-logs", "emptyDir": {"sizeLimit": TMP_SIZE}}]
    if plan.config.on_volume:
        claim = {"claimName": plan.config.kubernetes.claim}
        volumes.append({"name": "runs", "persistentVolumeClaim": claim})
    return {
        # The one that autoscaler v2 takes: it replaces pods, and does not wait for them to return.
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_S + (LEAVE_S if plan.kind == "service" else 0),
        "securityContext": pod_security(),
        **_pull_secrets(plan),
        **nodes,
        "containers": [container],
        "volumes": volumes,
    }


def ray_container(plan: Plan, name: str, node: NodeConfig, gpu: bool) -> Document:
    """The container in which the operator starts Ray; its probes come later."""
    mounts = [{"name": "ray-logs", "mountPath": "/tmp/ray"}]
    if plan.config.on_volume:
        mounts.append({"name": "runs", "mountPath": MOUNT})
    ports = {"metrics": 8080}
    if plan.kind == "service":
        ports |= {"serve": 8000, "haproxy": 9101}
    requested = resources(str(node.cpus), node.memory)
    requested["requests"]["ephemeral-storage"] = TMP_SIZE
    if gpu:
        for part in requested.values():
            part[plan.config.platform.gpu_resource] = "1"
    return {
        "name": name,
        "image": plan.image,
        "imagePullPolicy": plan.config.image.pull_policy,
        "env": environment(plan),
        "ports": _ports(ports),
        "resources": requested,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": mounts,
    }


def environment(plan: Plan) -> list[Document]:
    """Variables of a Ray container, by name; the operator adds the token and the addresses."""
    plain = ENVIRONMENT | plan.env | plan.described.env
    env: list[Document] = [{"name": name, "value": plain[name]} for name in sorted(plain)]
    for name, source in sorted(plan.described.secrets.items()):
        secret, _, key = source.partition("/")
        env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return env


def resources(cpus: str, memory: str) -> Document:
    """As much asked for as allowed: Ray counts on all of it, and such a pod is evicted last."""
    return {
        "requests": {"cpu": cpus, "memory": memory},
        "limits": {"cpu": cpus, "memory": memory},
    }


def pod_security() -> Document:
    """What the restricted standard asks of a pod. The group may write to volumes."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        # Otherwise every file of a volume would be looked at before a pod starts.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def probes(ready: tuple[str, int], failures: int = 10) -> Document:
    """When a pod gets requests, and when it is given up: the raylet and, on the head, the GCS.

    These pages ask for no token.
    """
    path, port = ready
    return {
        "readinessProbe": {
            "httpGet": {"path": path, "port": port},
            "initialDelaySeconds": 10,
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        },
        "livenessProbe": {
            "httpGet": {"path": "/api/healthz", "port": AGENT_PORT},
            "initialDelaySeconds": 60,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 12,
        },
    }


def spread(plan: Plan) -> list[Document]:
    """A lost node, and of a service a lost zone, takes as few workers as possible."""
    # Workers that train together talk all the time: better in one zone.
    keys = ["topology.kubernetes.io/zone"] if plan.kind == "service" else []
    selector = {"matchLabels": plan.labels | {"ray.io/node-type": "worker"}}
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": selector,
        }
        for key in [*keys, "kubernetes.io/hostname"]
    ]


def token_mount() -> Document:
    """For the autoscaler's container alone: Ray's own, which runs users' code, gets no token."""
    return {"name": "api-token", "mountPath": TOKEN_MOUNT, "readOnly": True}


def _token_volume() -> Document:
    """What Kubernetes would mount into every container of the pod."""
    field = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources: list[Document] = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", **field}]}},
    ]
    return {"name": "api-token", "projected": {"sources": sources}}


def _ports(ports: dict[str, int]) -> list[Document]:
    return [{"name": name, "containerPort": port} for name, port in ports.items()]


def _pull_secrets(plan: Plan) -> Document:
    secret = plan.config.image.pull_secret
    return {} if secret is None else {"imagePullSecrets": [{"name": secret}]}
