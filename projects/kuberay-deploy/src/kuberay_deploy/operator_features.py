"""What the operator refuses in those parts of a cluster that are behind its feature gates.

Source: https://github.com/ray-project/kuberay, version 1.7,
ray-operator/controllers/ray/utils/validation.go
"""

from collections.abc import Collection, Iterator

from kuberay_deploy.cluster_spec import Spec, env_of, feature_gate, pod
from kuberay_deploy.findings import At, Finding
from kuberay_deploy.labels import DNS_1123

FEATURE_RULES = {
    "feature-gate": "ValidateRayClusterSpec",
    "history-server": "validateCollectorOptions",
    "network-policy-mode": "validateNetworkPolicy",
    "network-policy-group": "validateNetworkPolicy",
    "tls-env": "validateTLSOptions",
}
DEFAULT_GATES = frozenset(
    {
        "RayClusterStatusConditions",
        "RayJobDeletionPolicy",
        "RayMultiHostIndexing",
        "RayServiceIncrementalUpgrade",
    }
)
"""The operator's own defaults; `features.go` of 1.7."""
ALL_GATES = (
    *sorted(DEFAULT_GATES),
    "GCSFaultToleranceEmbeddedStorage",
    "RayClusterHistoryServer",
    "RayClusterMTLS",
    "RayClusterNetworkPolicy",
    "RayCronJob",
)
TLS_ENV = ("RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


def history_server(spec: Spec, at: At, gates: Collection[str]) -> Iterator[Finding]:
    """The sidecar that collects events for the history server needs an image and a store."""
    if "historyServerOptions" not in spec:
        return
    place = at("historyServerOptions")
    yield from feature_gate(place, "options", "RayClusterHistoryServer", gates)
    options = spec["historyServerOptions"].get("collectorOptions", {})
    if not options.get("image"):
        field = place("collectorOptions", "image")
        yield field.finding("no image", "the collector's image", "history-server")
    if not env_of(options).get("STORAGE_BACKEND"):
        field = place("collectorOptions", "env")("STORAGE_BACKEND")
        yield field.finding("no value", "S3, GCS, AzureBlob or AliyunOSS", "history-server")


def network_policy(spec: Spec, at: At, gates: Collection[str]) -> Iterator[Finding]:
    """The operator's own network policy: rules that fit its mode, for groups that are there."""
    policy, place = spec.get("networkPolicy"), at("networkPolicy")
    if policy is None:
        return
    yield from feature_gate(place, "a policy", "RayClusterNetworkPolicy", gates)
    mode = policy.get("mode", "DenyAll")
    unused = {"DenyAllEgress": "ingressRules", "DenyAllIngress": "egressRules"}.get(mode, "")
    parts = [(policy.get(key, {}), place(key)) for key in ("head", "worker")]
    listed = list(enumerate(policy.get("workerGroups", [])))
    parts += [(group, place("workerGroups", i)) for i, group in listed]
    for part, where in parts:
        if part.get(unused):
            allowed = f"nothing with mode={mode}"
            yield where(unused).finding("rules", allowed, "network-policy-mode")
    names = [group["groupName"] for group in spec.get("workerGroupSpecs", [])]
    for i, name in enumerate(names):
        if not DNS_1123.fullmatch(name):
            field = at("workerGroupSpecs", i, "groupName")
            allowed = "lower-case letters, digits and '-', because of networkPolicy"
            yield field.finding(name, allowed, "network-policy-group")
    for i, group in listed:
        if group["groupName"] not in names:
            field = place("workerGroups", i, "groupName")
            allowed = f"a worker group: {', '.join(names) or 'there is none'}"
            yield field.finding(group["groupName"], allowed, "network-policy-group")


def tls(
    spec: Spec, groups: list[tuple[Spec, At]], at: At, gates: Collection[str]
) -> Iterator[Finding]:
    """With mutual TLS by the operator, nobody else sets its variables."""
    options = spec.get("tlsOptions")
    if options is None:
        return
    yield from feature_gate(at("tlsOptions"), "options", "RayClusterMTLS", gates)
    if options.get("enabled") is False:
        return
    places = [(pod(g)["containers"][0], p("template", "spec", "containers", 0)) for g, p in groups]
    for holder, place in [*places, (spec.get("autoscalerOptions", {}), at("autoscalerOptions"))]:
        for name in TLS_ENV:
            if name in env_of(holder):
                allowed = "nothing: with tlsOptions KubeRay sets it"
                yield place("env", name).finding("a value", allowed, "tls-env")
