"""What stands around the pods: who may talk to them, and how many of them must stay.

Plain NetworkPolicies, because the one of a RayCluster (`spec.networkPolicy`) needs an alpha feature
gate of the operator.

Source: https://kubernetes.io/docs/concepts/services-networking/network-policies/ and
https://kubernetes.io/docs/tasks/run-application/configure-pdb/
"""

from kuberay_deploy.manifests import Document
from kuberay_deploy.pods import Plan

ANYWHERE = "0.0.0.0/0"
# The addresses at which clouds hand out credentials: all of them, GKE's, EKS's.
METADATA = {"169.254.169.254/32": 80, "169.254.169.252/32": 988, "169.254.170.23/32": 80}


def network_policies(plan: Plan) -> list[Document]:
    """Who may talk to whom: all pods of the manifest first, then what only the head may."""
    own = [{"podSelector": {"matchLabels": plan.labels}}]
    ingress: list[Document] = [
        {"from": own},
        # Numbers: of Ray, the autoscaler, the dashboard and HAProxy.
        {
            "from": [_namespace(plan.config.kubernetes.monitoring_namespace)],
            "ports": _tcp(8080, 44217, 44227, *([9101] if plan.kind == "service" else [])),
        },
    ]
    if plan.kind == "service":  # Clients need an API key; the gateway is one of them.
        ingress.append({"from": [{"namespaceSelector": {}}], "ports": _tcp(8000)})
    # Workers find the head by its name: without DNS no cluster starts. To any address: who answers
    # is pods of kube-system, a cache or resolver of the node (NodeLocal DNSCache, EKS Auto Mode)
    # or the cloud (GKE's Cloud DNS at 169.254.169.254), and only the first could be selected.
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    egress: list[Document] = [{"to": own}, {"ports": dns}]
    if not plan.config.on_volume:
        egress.append({"to": [_block(ANYWHERE)], "ports": _tcp(443)})
        egress += [{"to": [_block(c)], "ports": _tcp(port)} for c, port in METADATA.items()]
    # The operator asks for the state of jobs and of Serve, and whether the head's proxy is well.
    operator = _namespace(plan.config.kubernetes.operator_namespace)
    head_ingress = [{"from": [operator], "ports": _tcp(8265, 8000)}]
    # The API server is no pod: only an address can be named, before or after its translation.
    api = _block(plan.config.platform.api_server_cidr)
    head_egress: list[Document] = [{"to": [api], "ports": _tcp(443, 6443)}]
    redis: list[Document] = []
    if uses_redis(
        plan
    ):  # Wherever it is. A pod of the operator's deletes there what the head left.
        port = int(plan.config.kubernetes.redis_address.rpartition(":")[2])
        rules = [{"ports": _tcp(port)}]
        head_egress += rules
        cleanup = {"ray.io/node-type": "redis-cleanup"}
        redis.append(_policy(plan, f"{plan.name}-redis", cleanup, [], rules))
    return [
        _policy(plan, plan.name, {}, ingress, egress),
        # Not `-head`: the operator would give that name to a policy of its own.
        _policy(plan, f"{plan.name}-api", {"ray.io/node-type": "head"}, head_ingress, head_egress),
        *redis,
    ]


def disruption_budgets(plan: Plan) -> list[Document]:
    """How many pods the drain of a node must leave running.

    Whole numbers of `minAvailable`: anything else Kubernetes can compute only for pods whose owner
    has a `scale` subresource, and allows no eviction at all where it cannot.
    """
    found: list[Document] = []
    # One at a time. A service or cluster with a single worker cannot keep it and let the node go.
    fewest = plan.variant.workers - 1
    if plan.kind in ("job", "cron"):  # The head takes its job with it; and the job has a deadline.
        found.append(_budget(plan, "head", 1))
        fewest = max(1, fewest)
    if fewest:
        found.append(_budget(plan, "worker", fewest))
    return found


def uses_redis(plan: Plan) -> bool:
    """Whether the head's state outlives it. A job's driver is on the head, and would not."""
    return plan.chosen.redis and plan.kind in ("service", "cluster")


def metadata(plan: Plan, name: str) -> Document:
    """Name, namespace and labels of a resource."""
    return {"name": name, "namespace": plan.config.namespace, "labels": plan.labels}


def _budget(plan: Plan, node_type: str, fewest: int) -> Document:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(plan, f"{plan.name}-{node_type}"),
        "spec": {
            "minAvailable": fewest,
            # A pod that never gets ready does not hold a node for ever.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": plan.labels | {"ray.io/node-type": node_type}},
        },
    }


def _policy(
    plan: Plan, name: str, more: dict[str, str], ingress: list[Document], egress: list[Document]
) -> Document:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(plan, name),
        "spec": {
            "podSelector": {"matchLabels": plan.labels | more},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _namespace(name: str) -> Document:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _block(cidr: str) -> Document:
    return {"ipBlock": {"cidr": cidr}}


def _tcp(*ports: int) -> list[Document]:
    return [{"protocol": "TCP", "port": port} for port in ports]
