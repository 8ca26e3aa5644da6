"""One field of a good manifest is broken, and the message names it."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from .checked import broken, check, dropped, good, renamed

JOB = "spec rayClusterSpec"
HEAD = f"{JOB} headGroupSpec template spec"
RAY = f"{HEAD} containers 0"
GPU = f"{JOB} workerGroupSpecs 1"
LIMITS = f"{GPU} template spec containers 0 resources limits"
CONDITION = "spec deletionStrategy deletionRules 0 condition"
SERVICE = "spec rayClusterConfig"
SERVED = f"{SERVICE} headGroupSpec template spec containers 0"
WORKER = "spec workerGroupSpecs 0 template spec containers 0"

SPREAD = f"{HEAD} topologySpreadConstraints 0"
GREATER = {"key": "app", "operator": "Gt", "values": ["1"]}


def node_affinity(operator: str, *values: str) -> dict[str, Any]:
    expression = {"key": "pool", "operator": operator} | (
        {"values": list(values)} if values else {}
    )
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


# Manifest, field, change, and what the message must name: the rule and a part of it.
MUTATIONS: list[tuple[str, str, Any, str, str]] = [
    # Typos, from the top down to the deepest field.
    ("job", "metadata labels", renamed("lables"), "unknown-field", "metadata.lables"),
    ("job", "metadata", renamed("metdata"), "unknown-field", "metdata"),
    ("job", "spec", renamed("spce"), "unknown-field", "spce"),
    ("job", "spec entrypoint", renamed("entryPoint"), "unknown-field", "'entrypoint'"),
    ("job", JOB, renamed("rayClusterSpecs"), "unknown-field", "'rayClusterSpec'"),
    ("job", f"{JOB} headGroupSpec", renamed("headGroup"), "schema", "headGroupSpec: found no"),
    ("job", f"{JOB} rayVersion", renamed("rayversion"), "unknown-field", "'rayVersion'"),
    (
        "job",
        f"{JOB} enableInTreeAutoscaling",
        renamed("enableAutoscaling"),
        "unknown-field",
        "Auto",
    ),
    ("job", f"{GPU} maxReplicas", renamed("maxReplica"), "unknown-field", "'maxReplicas'"),
    ("job", f"{GPU} groupName", renamed("groupname"), "unknown-field", "'groupName'"),
    ("job", f"{HEAD} volumes", renamed("volume"), "unknown-field", "'volumes'"),
    (
        "job",
        f"{HEAD} securityContext runAsNonRoot",
        renamed("runAsNonroot"),
        "unknown-field",
        "Root",
    ),
    ("job", f"{RAY} resources", renamed("resource"), "unknown-field", "'resources'"),
    ("job", f"{RAY} resources limits", renamed("limit"), "unknown-field", "'limits'"),
    ("job", f"{RAY} readinessProbe periodSeconds", renamed("period"), "unknown-field", "readiness"),
    ("job", f"{RAY} env 1 valueFrom secretKeyRef", renamed("secretRef"), "unknown-field", "env[1]"),
    ("job", f"{HEAD} tolerations 0 effect", renamed("efect"), "unknown-field", "'effect'"),
    ("job", "apiVersion", "ray.io/v1beta1", "kind", "apiVersion"),
    ("job", "kind", "RayJobs", "kind", "'RayJob'"),
    ("service", "spec serveConfigV2", renamed("serveConfig"), "unknown-field", "serveConfigV2"),
    ("cron", "spec jobTemplate", renamed("template"), "unknown-field", "spec.template"),
    # Wrong types and values.
    ("job", "metadata labels", {"a": 1}, "schema", "metadata.labels.a"),
    ("job", "spec backoffLimit", "2", "schema", "spec.backoffLimit"),
    ("job", "spec backoffLimit", 2**40, "schema", "int32"),
    ("job", f"{JOB} rayVersion", 2.6, "schema", "rayVersion"),
    ("job", f"{JOB} headGroupSpec rayStartParams num-cpus", 0, "schema", "num-cpus"),
    ("job", f"{JOB} headGroupSpec rayStartParams block", True, "schema", "block"),
    ("job", f"{JOB} workerGroupSpecs", {}, "schema", "workerGroupSpecs"),
    ("job", f"{GPU} template", dropped, "schema", "workerGroupSpecs[1].template"),
    ("job", f"{JOB} autoscalerOptions version", "v3", "schema", "autoscalerOptions.version"),
    ("job", f"{JOB} autoscalerOptions upscalingMode", "Fast", "schema", "upscalingMode"),
    ("job", f"{JOB} authOptions mode", "tokens", "schema", "authOptions.mode"),
    ("job", f"{RAY} resources limits memory", "4GiB", "schema", "limits.memory"),
    ("job", f"{RAY} ports 0 containerPort", "6379", "schema", "containerPort"),
    ("job", f"{RAY} env 0 value", 1, "schema", "env[0].value"),
    ("job", f"{RAY} name", dropped, "schema", "containers[0].name"),
    ("job", "spec preRunningDeadlineSeconds", 0, "schema", "preRunningDeadlineSeconds"),
    ("service", "spec rayClusterDeletionDelaySeconds", -1, "schema", "DeletionDelaySeconds"),
    ("service", SERVICE, dropped, "schema", "rayClusterConfig"),
    ("cron", "spec schedule", dropped, "schema", "spec.schedule"),
    # Lists whose items must differ, and the rules in CEL.
    ("job", f"{RAY} env 1 name", "OMP_NUM_THREADS", "repeated-key", "env[1]"),
    (
        "job",
        f"{RAY} volumeMounts",
        [{"name": "runs", "mountPath": "/a"}] * 2,
        "repeated-key",
        "[1]",
    ),
    ("cluster", "spec managedBy", "somebody", "cel", "spec.managedBy"),
    ("job", "spec deletionStrategy", {}, "cel", "deletionStrategy requires"),
    ("job", "spec deletionStrategy onSuccess", {"policy": "DeleteSelf"}, "cel", "legacy"),
    ("job", f"{CONDITION} jobStatus", dropped, "cel", "condition: found the fields ttlSeconds"),
    ("job", f"{CONDITION} jobDeploymentStatus", "Failed", "cel", "JobDeploymentStatus"),
    # One field against another.
    ("job", f"{RAY} volumeMounts 0 name", "run", "mount", "'runs'"),
    ("job", f"{HEAD} volumes", dropped, "mount", "the pod has none"),
    (
        "job",
        f"{HEAD} volumes 0 emptyDir",
        {},
        "volume-source",
        "persistentVolumeClaim and emptyDir",
    ),
    ("job", f"{LIMITS} nvidia.com/gpus", 1, "resource-name", "'nvidia.com/gpu'"),
    ("job", f"{LIMITS} gpus", 1, "resource-name", "'nvidia.com/gpu'"),
    ("job", f"{LIMITS} nvidia.com/gpu", 2, "requests", "= the limit"),
    ("job", f"{LIMITS} nvidia.com/gpu", "0.5", "quantity", "whole"),
    ("job", f"{GPU} rayStartParams num-gpus", "2", "ray-gpu", "nvidia.com/gpu"),
    ("job", f"{RAY} resources requests cpu", 3, "requests", "<= the limit of 2"),
    ("job", f"{RAY} resources limits cpus", 3, "resource-name", "cpu"),
    ("job", f"{JOB} headGroupSpec rayStartParams num-cpu", "0", "ray-start-params", "'num-cpus'"),
    ("job", f"{JOB} headGroupSpec rayStartParams num-cpus", "none", "ray-start-params", "whole"),
    (
        "job",
        f"{JOB} headGroupSpec rayStartParams block",
        "yes",
        "ray-start-params",
        "true or false",
    ),
    ("job", f"{GPU} rayStartParams memory", "99999999999", "ray-memory", "16Gi"),
    ("job", f"{GPU} minReplicas", 5, "replicas", "minReplicas: found 5; allowed: <= maxReplicas=2"),
    ("job", f"{GPU} groupName", "cpu", "group-name", "workerGroupSpecs[1].groupName"),
    ("job", f"{GPU} groupName", "headgroup", "group-name", "workerGroupSpecs[1].groupName"),
    ("job", f"{GPU} groupName", "a b", "group-name", "workerGroupSpecs[1].groupName"),
    ("job", f"{GPU} resources", {"cpu": "4"}, "ray-resource", "'CPU'"),
    ("job", f"{GPU} resources", {"GPUs": "4"}, "ray-resource", "'GPU'"),
    ("job", "metadata annotations ray.io/ftenabled", "true", "annotation", "'ray.io/ft-enabled'"),
    (
        "job",
        f"{GPU} template spec containers 0 resources",
        {},
        "ray-parser",
        "resources.limits.cpu",
    ),
    ("job", f"{JOB} rayVersion", "2.59.0", "ray-version", "containers[0].image"),
    ("service", f"{SERVED} image", "rayproject/ray:2.9.3", "ray-version", "2.60.0"),
    (
        "cluster",
        f"{WORKER} image",
        "rayproject/ray:2.60.0-py312",
        "python-version",
        "py311 and py312",
    ),
    ("cluster", "spec headGroupSpec serviceType", "Loadbalancer", "choice", "LoadBalancer"),
    ("job", f"{HEAD} restartPolicy", "Sometimes", "restart-policy", "Never"),
    (
        "job",
        "spec submitterPodTemplate spec restartPolicy",
        "Always",
        "restart-policy",
        "OnFailure",
    ),
    ("job", f"{HEAD} terminationGracePeriodSeconds", -1, "grace-period", ">= 0"),
    ("job", f"{RAY} imagePullPolicy", "Allways", "choice", "Always"),
    ("job", f"{RAY} image", dropped, "image", "containers[0].image"),
    ("job", f"{RAY} ports 0 containerPort", 70000, "port", "65535"),
    ("job", f"{RAY} ports 0 name", "Gcs_Port", "port", "ports[0].name"),
    ("job", f"{RAY} ports 1 name", "gcs", "port", "ports[1].name"),
    ("job", f"{RAY} env 1 value", "x", "environment", "env[1]"),
    ("job", f"{HEAD} securityContext runAsUser", 0, "non-root", "runAsUser"),
    ("job", f"{HEAD} securityContext seccompProfile type", "Default", "choice", "RuntimeDefault"),
    ("job", f"{RAY} readinessProbe exec", dropped, "probe", "readinessProbe"),
    ("job", f"{RAY} readinessProbe periodSeconds", 0, "probe", "periodSeconds"),
    ("job", f"{HEAD} tolerations 0 operator", "Exist", "toleration", "operator"),
    ("job", f"{HEAD} tolerations 0 effect", "NoSchedul", "toleration", "effect"),
    ("job", f"{HEAD} tolerations 0 value", "true", "toleration", "value"),
    (
        "job",
        f"{HEAD} topologySpreadConstraints 0 whenUnsatisfiable",
        "Never",
        "topology-spread",
        "whenUnsatisfiable",
    ),
    ("job", f"{HEAD} topologySpreadConstraints 0 maxSkew", 0, "topology-spread", "maxSkew"),
    ("job", "spec submissionMode", "K8SJobMode", "submission-mode", "K8sJobMode"),
    ("job", "spec entrypoint", dropped, "entrypoint", "spec.entrypoint"),
    ("job", "spec submitterPodTemplate", {}, "submitter", "submitterPodTemplate.spec.containers"),
    ("job", "spec runtimeEnvYAML", "env_var: {A: b}", "runtime-env", "'env_vars'"),
    ("service", "spec serveConfigV2", "aplications: []", "serve-config", "'applications'"),
    ("service", "spec serveConfigV2", "applications: [{name: app}]", "serve-config", "import_path"),
    ("service", "spec serveConfigV2", "applications: {", "serve-config", "serveConfigV2"),
    ("job", "metadata labels app", "a b", "label", "metadata.labels.app"),
    ("job", f"{HEAD} nodeSelector", {"pool": "a b"}, "label", "nodeSelector.pool"),
    ("job", f"{HEAD} affinity", node_affinity("Inn", "a"), "selector", "operator: found Inn"),
    ("job", f"{HEAD} affinity", node_affinity("In"), "selector", "[0].values: found none"),
    ("job", f"{HEAD} affinity", node_affinity("Exists", "a"), "selector", "[0].values"),
    ("job", f"{HEAD} affinity", node_affinity("Gt", "a"), "selector", "whole number"),
    ("job", f"{SPREAD} labelSelector matchExpressions", [GREATER], "selector", "NotIn, Exists"),
    ("job", f"{RAY} env 0 name", "A B=", "environment", "env[0].name"),
    ("job", f"{RAY} readinessProbe", {"httpGet": {"port": "gsc"}}, "probe", "httpGet.port"),
    ("job", f"{RAY} readinessProbe", {"tcpSocket": {"port": 65536}}, "probe", "65535"),
    ("job", f"{RAY} lifecycle", {"preStop": {}}, "lifecycle", "lifecycle.preStop"),
    ("job", f"{HEAD} volumes 0 persistentVolumeClaim claimName", "", "volume-source", "claimName"),
    ("job", f"{GPU} replicas", 3, "replicas", "replicas: found 3; allowed: <= maxReplicas=2"),
    # Kubernetes' own kinds.
    ("core", "spec accessMode", ["ReadWriteMany"], "core-schema", "'accessModes'"),
    ("core", "spec resources", [], "core-schema", "spec.resources"),
    ("core", "metadata name", "Runs", "core-schema", "metadata.name"),
    ("core", "metadata", dropped, "core-schema", "metadata"),
    ("core", "kind", "PersistentVolumeClaims", "kind", "'PersistentVolumeClaim'"),
    ("core", "apiVersion", "v1beta1", "kind", "apiVersion"),
    ("core", "apiVersion", dropped, "kind", "apiVersion"),
]


def ids(mutation: tuple[str, str, Any, str, str]) -> str:
    name, path, _, rule, _ = mutation
    return f"{name}: {path.split()[-1]}: {rule}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=ids)
def test_mutation_is_caught_and_named(mutation: tuple[str, str, Any, str, str]) -> None:
    name, path, how, rule, part = mutation
    found = broken(name, path, how)
    assert rule in {finding.rule for finding in found}, [str(f) for f in found]
    assert any(finding.rule == rule and part in str(finding) for finding in found), found


# Maps whose keys people invent.
INVENTED = {"labels", "annotations", "matchLabels", "nodeSelector", "data"}


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key at every depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(key, str):
            yield (*path, key)
        if isinstance(item, dict | list):
            yield from keys(item, (*path, key))


@pytest.mark.parametrize("name", ["job", "cluster", "service", "cron"])
def test_typo_in_any_key_and_nonsense_in_any_value_is_caught(name: str) -> None:
    (document, *_), missed = good(name), []
    paths = list(keys(document))
    for path in paths:
        for typo in (True, False):
            changed = copy.deepcopy(document)
            place: Any = changed
            for key in path[:-1]:
                place = place[key]
            if typo:
                place[f"{path[-1]}x"] = place.pop(path[-1])
            else:
                place[path[-1]] = [[1]]
            if not check([changed]) and not (typo and INVENTED & set(path[:-1])):
                missed.append((path, typo))
    # The name of a resource of Ray can be anything, too.
    assert [path for path, typo in missed if path[-1] not in ("CPU", "memory")] == []
    assert len(paths) > 20
