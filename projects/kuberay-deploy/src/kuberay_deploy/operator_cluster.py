"""What KubeRay's operator refuses in the spec of a cluster, whichever kind it stands in.

The API server takes these manifests; the operator then leaves an event and does nothing.

Source: https://github.com/ray-project/kuberay, version 1.7,
ray-operator/controllers/ray/utils/validation.go
"""

from collections.abc import Collection, Iterator
from typing import Any

from kuberay_deploy.cluster_spec import (
    Spec,
    autoscales,
    autoscales_v2,
    env_of,
    feature_gate,
    pod,
    version,
)
from kuberay_deploy.findings import At, Finding
from kuberay_deploy.labels import LABEL_VALUE, is_label_key
from kuberay_deploy.operator_features import FEATURE_RULES, history_server, network_policy, tls

# Name of each rule here, and the function of validation.go that it follows.
CLUSTER_RULES = FEATURE_RULES | {
    "containers": "ValidateRayClusterSpec",
    "group-resources": "validateRayGroupResources",
    "group-labels": "validateRayGroupLabels",
    "label-syntax": "validateRayGroupLabels",
    "negative-replicas": "ValidateRayClusterSpec",
    "replicas": "ValidateRayClusterSpec",
    "group-idle-timeout": "validateWorkerGroupIdleTimeout",
    "group-priority": "validateWorkerGroupPriority",
    "group-suspend": "ValidateRayClusterSpec",
    "autoscaler-env": "ValidateRayClusterSpec",
    "autoscaler-restart-policy": "ValidateRayClusterSpec",
    "autoscaler-idle-timeout": "ValidateRayClusterSpec",
    "autoscaler-command-env": "ValidateRayClusterSpec",
    "gcs-annotation": "ValidateRayClusterSpec",
    "gcs-redis-env": "ValidateRayClusterSpec",
    "gcs-redis-password": "ValidateRayClusterSpec",
    "gcs-redis-username": "ValidateRayClusterSpec",
    "gcs-namespace-annotation": "ValidateRayClusterSpec",
    "gcs-rocksdb": "validateGcsFaultToleranceBackend",
    "gcs-redis-storage": "validateGcsFaultToleranceBackend",
    "auth-ray-version": "ValidateRayClusterSpec",
    "auth-kubernetes": "ValidateRayClusterSpec",
}
V2_ENV = "RAY_enable_autoscaler_v2"
COMMAND_ENV = "KUBERAY_GEN_AUTOSCALER_START_CMD"
FT_ENABLED = "ray.io/ft-enabled"
FT_NAMESPACE = "ray.io/external-storage-namespace"


def check_cluster(
    spec: Spec, annotations: dict[str, str], at: At, gates: Collection[str]
) -> Iterator[Finding]:
    """Applies every rule to the spec of one cluster.

    Args:
        spec: A RayClusterSpec with its defaults applied.
        annotations: Those of the object that it stands in.
        at: The place of the spec.
        gates: The operator's feature gates that are on.
    """
    groups = [(spec["headGroupSpec"], at("headGroupSpec"))]
    workers = spec.get("workerGroupSpecs", [])
    groups += [(group, at("workerGroupSpecs", i)) for i, group in enumerate(workers)]
    empty = [place for group, place in groups if not pod(group).get("containers")]
    for place in empty:
        yield place("template", "spec", "containers").finding(
            "no container", "at least one", "containers"
        )
    if empty:
        return
    for group, place in groups:
        yield from _group(group, place)
    for group, place in groups[1:]:
        yield from _worker_group(group, spec, place)
    yield from _autoscaler(spec, groups, at)
    yield from _gcs(spec, annotations, at, gates)
    yield from _auth(spec, at)
    yield from history_server(spec, at, gates)
    yield from network_policy(spec, at, gates)
    yield from tls(spec, groups, at, gates)


def _group(group: Spec, at: At) -> Iterator[Finding]:
    params = group.get("rayStartParams", {})
    both = [key for key in ("num-cpus", "num-gpus", "memory", "resources") if params.get(key)]
    if group.get("resources"):
        for key in both:
            allowed = "nothing, because the group has 'resources'"
            yield at("rayStartParams", key).finding(params[key], allowed, "group-resources")
    if "labels" in params:
        allowed = "nothing; the group's own field 'labels' holds them"
        yield at("rayStartParams", "labels").finding(params["labels"], allowed, "group-labels")
    for key, value in group.get("labels", {}).items():
        if not is_label_key(key):
            allowed = "a Kubernetes label: 1 to 63 letters, digits, '-', '_' or '.'"
            yield at("labels", key).finding(key, allowed, "label-syntax")
        if not LABEL_VALUE.fullmatch(value):
            allowed = "at most 63 letters, digits, '-', '_' or '.'"
            yield at("labels", key).finding(value, allowed, "label-syntax")


def _worker_group(group: Spec, spec: Spec, at: At) -> Iterator[Finding]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    for key, value in (("minReplicas", least), ("maxReplicas", most)):
        if value is not None and value < 0:
            yield at(key).finding(value, ">= 0", "negative-replicas")
    if least is not None and most is not None and least > most:
        yield at("minReplicas").finding(least, f"<= maxReplicas={most}", "replicas")
    head_env = env_of(pod(spec["headGroupSpec"])["containers"][0])
    v2 = autoscales_v2(spec) or head_env.get(V2_ENV) in ("1", "true")
    idle = group.get("idleTimeoutSeconds")
    if idle is not None and (idle < 0 or not v2):
        allowed = ">= 0" if v2 else "only with autoscalerOptions.version=v2"
        yield at("idleTimeoutSeconds").finding(idle, allowed, "group-idle-timeout")
    priority = group.get("priority")
    if priority:
        if (version(spec.get("rayVersion", "")) or (0,)) < (2, 56, 0):
            allowed = "only with a rayVersion >= 2.56.0"
            yield at("priority").finding(priority, allowed, "group-priority")
        elif not v2:
            allowed = "only with autoscalerOptions.version=v2"
            yield at("priority").finding(priority, allowed, "group-priority")
    if group.get("suspend") and autoscales(spec):
        allowed = "false, because of enableInTreeAutoscaling"
        yield at("suspend").finding(True, allowed, "group-suspend")


def _autoscaler(spec: Spec, groups: list[tuple[Spec, At]], at: At) -> Iterator[Finding]:
    options, head = spec.get("autoscalerOptions", {}), groups[0]
    env = env_of(pod(head[0])["containers"][0])
    env_at = head[1]("template", "spec", "containers", 0, "env", V2_ENV)
    if not autoscales(spec) and env.get(V2_ENV) in ("1", "true"):
        allowed = "only with enableInTreeAutoscaling=true"
        yield env_at.finding(env[V2_ENV], allowed, "autoscaler-env")
    if autoscales(spec) and "version" in options and V2_ENV in env:
        allowed = "nothing, because autoscalerOptions.version says it"
        yield env_at.finding(env[V2_ENV], allowed, "autoscaler-env")
    if autoscales_v2(spec):
        for group, place in groups:
            policy = pod(group).get("restartPolicy", "Never")
            if policy != "Never":
                allowed = "Never, because of autoscalerOptions.version=v2"
                field = place("template", "spec", "restartPolicy")
                yield field.finding(policy, allowed, "autoscaler-restart-policy")
    idle = options.get("idleTimeoutSeconds", 0)
    if idle < 0:
        field = at("autoscalerOptions", "idleTimeoutSeconds")
        yield field.finding(idle, ">= 0", "autoscaler-idle-timeout")
    if COMMAND_ENV in env_of(options):
        field = at("autoscalerOptions", "env", COMMAND_ENV)
        yield field.finding("a value", "nothing: KubeRay sets it", "autoscaler-command-env")


def _gcs(
    spec: Spec, annotations: dict[str, str], at: At, gates: Collection[str]
) -> Iterator[Finding]:
    """Fault tolerance of the head's store, by options or, as it used to be, by annotations."""
    options, top = spec.get("gcsFaultToleranceOptions"), At(at.document)("metadata", "annotations")
    params = spec["headGroupSpec"].get("rayStartParams", {})
    env = env_of(pod(spec["headGroupSpec"])["containers"][0])
    params_at = at("headGroupSpec", "rayStartParams")
    env_at = at("headGroupSpec", "template", "spec", "containers", 0, "env")
    instead = "nothing; use gcsFaultToleranceOptions."
    if options is None:
        if annotations.get(FT_ENABLED, "").lower() != "true" and "RAY_REDIS_ADDRESS" in env:
            allowed = f"{instead}redisAddress"
            found = env_at("RAY_REDIS_ADDRESS")
            yield found.finding(env["RAY_REDIS_ADDRESS"], allowed, "gcs-redis-env")
    else:
        if annotations.get(FT_ENABLED):
            allowed = "nothing, because gcsFaultToleranceOptions says it"
            yield top(FT_ENABLED).finding(annotations[FT_ENABLED], allowed, "gcs-annotation")
        if annotations.get(FT_NAMESPACE):
            value, allowed = annotations[FT_NAMESPACE], f"{instead}externalStorageNamespace"
            yield top(FT_NAMESPACE).finding(value, allowed, "gcs-namespace-annotation")
        if "RAY_REDIS_ADDRESS" in env:
            allowed = f"{instead}redisAddress"
            yield env_at("RAY_REDIS_ADDRESS").finding("a value", allowed, "gcs-redis-env")
        for place, there in (
            (params_at("redis-password"), params.get("redis-password")),
            (env_at("REDIS_PASSWORD"), "REDIS_PASSWORD" in env),
        ):
            if there:
                yield place.finding("a value", f"{instead}redisPassword", "gcs-redis-password")
        yield from _gcs_backend(options, env, at, gates)
    for place, there in (
        (params_at("redis-username"), params.get("redis-username")),
        (env_at("REDIS_USERNAME"), "REDIS_USERNAME" in env),
    ):
        if there:
            yield place.finding("a value", f"{instead}redisUsername", "gcs-redis-username")


def _gcs_backend(
    options: Spec, env: dict[str, Any], at: At, gates: Collection[str]
) -> Iterator[Finding]:
    place, storage = at("gcsFaultToleranceOptions"), options.get("storage", {})
    if options.get("backend", "redis") != "rocksdb":
        if "storage" in options:
            allowed = "nothing, unless backend=rocksdb"
            yield place("storage").finding("a value", allowed, "gcs-redis-storage")
        return
    yield from feature_gate(place("backend"), "rocksdb", "GCSFaultToleranceEmbeddedStorage", gates)
    for key in ("redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"):
        if options.get(key):
            yield place(key).finding("a value", "nothing with backend=rocksdb", "gcs-rocksdb")
    if storage.get("claimName"):
        for key in ("size", "storageClassName", "accessModes"):
            if storage.get(key):
                allowed = "nothing, because claimName names a claim that is there"
                yield place("storage", key).finding(storage[key], allowed, "gcs-rocksdb")
    for name in ("RAY_GCS_STORAGE", "RAY_GCS_STORAGE_PATH"):
        if name in env:
            field = at("headGroupSpec", "template", "spec", "containers", 0, "env", name)
            yield field.finding("a value", "nothing: KubeRay sets it", "gcs-rocksdb")


def _auth(spec: Spec, at: At) -> Iterator[Finding]:
    options = spec.get("authOptions", {})
    kubernetes = options.get("enableK8sTokenAuth")
    field = at("authOptions", "enableK8sTokenAuth")
    if options.get("mode") != "token":
        if kubernetes:
            yield field.finding(True, "only with authOptions.mode=token", "auth-kubernetes")
        return
    ray_version = version(spec.get("rayVersion", "")) or (0,)
    if ray_version < (2, 52, 0):
        found = spec.get("rayVersion") or "no version"
        allowed = ">= 2.52.0, because of authOptions.mode=token"
        yield at("rayVersion").finding(found, allowed, "auth-ray-version")
    if kubernetes and ray_version < (2, 55, 0):
        yield field.finding(True, "only with a rayVersion >= 2.55.0", "auth-kubernetes")
    if kubernetes and options.get("secretName"):
        found, allowed = options["secretName"], "nothing with enableK8sTokenAuth=true"
        yield at("authOptions", "secretName").finding(found, allowed, "auth-kubernetes")
