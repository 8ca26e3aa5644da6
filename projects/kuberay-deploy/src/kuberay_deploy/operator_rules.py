"""What KubeRay's operator refuses in each of its kinds; `operator_cluster` has the clusters' part.

Source: https://github.com/ray-project/kuberay, version 1.7,
ray-operator/controllers/ray/utils/validation.go
"""

import itertools
import re
import zoneinfo
from collections.abc import Collection, Iterator
from typing import Any

import yaml

from kuberay_deploy import cron
from kuberay_deploy.cluster_spec import autoscales, pod
from kuberay_deploy.findings import At, Finding
from kuberay_deploy.labels import DNS_1035
from kuberay_deploy.operator_cluster import CLUSTER_RULES, check_cluster
from kuberay_deploy.operator_features import DEFAULT_GATES

# Name of each rule, and the function of validation.go that it follows.
RULES = CLUSTER_RULES | {
    "name-length": "ValidateRay…Metadata",
    "name-syntax": "ValidateRay…Metadata",
    "upgrade-type": "ValidateRayClusterUpgradeOptions, ValidateRayServiceSpec",
    "job-suspend": "ValidateRayJobSpec",
    "job-ttl": "validateDeletionConfiguration",
    "job-cluster": "ValidateRayJobSpec",
    "job-selector": "ValidateRayJobSpec",
    "job-backoff": "ValidateRayJobSpec",
    "job-sidecar": "ValidateRayJobSpec",
    "job-deadline": "ValidateRayJobSpec",
    "job-runtime-env": "ValidateRayJobSpec",
    "job-kubernetes-auth": "ValidateRayJobSpec",
    "deletion-exclusive": "validateDeletionConfiguration",
    "deletion-empty": "validateDeletionConfiguration",
    "deletion-condition": "validateDeletionCondition",
    "deletion-policy": "validateDeletionRules, validateLegacyDeletionPolicies",
    "deletion-twice": "validateDeletionRules",
    "deletion-order": "validateTTLConsistency",
    "service-head-name": "ValidateRayServiceSpec",
    "service-delay": "ValidateRayServiceSpec",
    "service-timeout": "validateInitializingTimeout",
    "service-kubernetes-auth": "ValidateRayServiceSpec",
    "incremental-upgrade": "ValidateClusterUpgradeOptions",
    "cron-schedule": "ValidateRayCronJobSpec",
    "cron-time-zone": "ValidateRayCronJobSpec",
}
# The longest name of a service that the operator makes from that of a cluster must be <= 63; jobs
# and services append 6 characters to make the cluster's, a cron job 11 more to make the job's.
NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
GO_DURATION = re.compile(r"\+?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+")
INITIALIZING_TIMEOUT = "ray.io/initializing-timeout"
INCREMENTAL = "NewClusterWithIncrementalUpgrade"
UPGRADES = {
    "RayCluster": ("Recreate", "None"),
    "RayService": (INCREMENTAL, "NewCluster", "None"),
}
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def check(
    document: dict[str, Any], at: At, gates: Collection[str] = DEFAULT_GATES
) -> Iterator[Finding]:
    """Applies the operator's rules to one RayCluster, RayJob, RayService or RayCronJob.

    Args:
        document: The object with its defaults applied.
        at: The top of the document.
        gates: The operator's feature gates that are on.
    """
    kind, spec, place = document["kind"], document["spec"], at("spec")
    annotations = document["metadata"].get("annotations", {})
    yield from _name(document, at)
    if kind == "RayCluster":
        yield from check_cluster(spec, annotations, place, gates)
        yield from _upgrade_type(spec, kind, place)
    elif kind == "RayJob":
        yield from _job(spec, annotations, place, gates)
    elif kind == "RayService":
        yield from _service(spec, annotations, place, gates)
    elif kind == "RayCronJob":
        yield from _cron_job(spec, place, gates)


def _name(document: dict[str, Any], at: At) -> Iterator[Finding]:
    metadata = document["metadata"]
    field = "name" if "name" in metadata else "generateName"
    if not metadata.get(field):
        yield at("metadata", "name").finding("no name", "a name", "name-syntax")
        return
    # The API server appends five characters to a generateName.
    name = metadata[field] if field == "name" else metadata[field] + "xxxxx"
    most = NAME_LENGTHS.get(document["kind"], 63)
    place = at("metadata", field)
    if len(name) > most:
        found = f"{metadata[field]} with {len(name)} characters"
        yield place.finding(found, f"at most {most} characters", "name-length")
    elif not DNS_1035.fullmatch(name):
        allowed = "a letter, then letters, digits and '-', all in lower case"
        yield place.finding(metadata[field], allowed, "name-syntax")


def _upgrade_type(spec: dict[str, Any], kind: str, at: At) -> Iterator[Finding]:
    found = spec.get("upgradeStrategy", {}).get("type")
    if found is not None and found not in UPGRADES[kind]:
        allowed = f"one of {', '.join(UPGRADES[kind])}"
        yield at("upgradeStrategy", "type").finding(found, allowed, "upgrade-type")


def _job(
    spec: dict[str, Any], annotations: dict[str, str], at: At, gates: Collection[str]
) -> Iterator[Finding]:
    cluster, selector = spec.get("rayClusterSpec"), spec.get("clusterSelector")
    mode = spec.get("submissionMode", "K8sJobMode")
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield at("suspend").finding(True, "only with shutdownAfterJobFinishes=true", "job-suspend")
    if spec.get("suspend") and selector:
        yield at("suspend").finding(True, "false with clusterSelector", "job-suspend")
    yield from _deletion(spec, at)
    if cluster is None and not selector:
        yield at("rayClusterSpec").finding("none", "this or clusterSelector", "job-cluster")
    if selector:
        name = selector.get("ray.io/cluster")
        if not name:
            allowed = "the key ray.io/cluster with the name of a RayCluster"
            yield at("clusterSelector").finding(", ".join(selector), allowed, "job-selector")
        if mode == "SidecarMode":
            yield at("submissionMode").finding(mode, "another with clusterSelector", "job-selector")
    backoff = spec.get("backoffLimit", 0)
    if backoff < 0:
        yield at("backoffLimit").finding(backoff, ">= 0", "job-backoff")
    for refused, reason in ((selector, "clusterSelector"), (mode == "InteractiveMode", mode)):
        if backoff > 0 and refused:
            yield at("backoffLimit").finding(backoff, f"0 with {reason}", "job-backoff")
    if mode == "SidecarMode":
        for key in ("submitterPodTemplate", "submitterConfig"):
            if key in spec:
                yield at(key).finding("a value", "nothing with SidecarMode", "job-sidecar")
        policy = pod((cluster or {}).get("headGroupSpec", {})).get("restartPolicy", "Never")
        if policy != "Never":
            field = at("rayClusterSpec", "headGroupSpec", "template", "spec", "restartPolicy")
            yield field.finding(policy, "Never with SidecarMode", "job-sidecar")
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield at(key).finding(spec[key], ">= 1", "job-deadline")
    try:
        runtime_env = yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {}
        problem = None if isinstance(runtime_env, dict) else f"a {type(runtime_env).__name__}"
    except yaml.YAMLError as error:
        problem = str(error)
    if problem:
        yield at("runtimeEnvYAML").finding(problem, "a YAML mapping", "job-runtime-env")
    if cluster is not None:
        place = at("rayClusterSpec")
        yield from _no_kubernetes_auth(cluster, place, "job-kubernetes-auth")
        yield from check_cluster(cluster, annotations, place, gates)


def _no_kubernetes_auth(cluster: dict[str, Any], at: At, rule: str) -> Iterator[Finding]:
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        field = at("authOptions", "enableK8sTokenAuth")
        yield field.finding(True, "false, except in a RayCluster", rule)


def _deletion(spec: dict[str, Any], at: At) -> Iterator[Finding]:
    """When a finished job's pods, cluster and record go away."""
    shutdown, ttl = spec.get("shutdownAfterJobFinishes"), spec.get("ttlSecondsAfterFinished", 0)
    if ttl < 0:
        yield at("ttlSecondsAfterFinished").finding(ttl, ">= 0", "job-ttl")
    if ttl > 0 and not shutdown:
        allowed = "0 without shutdownAfterJobFinishes=true"
        yield at("ttlSecondsAfterFinished").finding(ttl, allowed, "job-ttl")
    strategy, place = spec.get("deletionStrategy"), at("deletionStrategy")
    if strategy is None:
        return
    rules = strategy.get("deletionRules", [])
    old = {key: strategy[key] for key in ("onSuccess", "onFailure") if key in strategy}
    if rules and shutdown:
        allowed = "false, because of deletionStrategy.deletionRules"
        yield at("shutdownAfterJobFinishes").finding(True, allowed, "deletion-exclusive")
    if rules and old:
        yield place("deletionRules").finding(
            "rules", f"nothing, because of {' and '.join(old)}", "deletion-exclusive"
        )
    elif not rules and len(old) < 2:
        found = next(iter(old), "nothing")
        yield place.finding(found, "deletionRules, or onSuccess and onFailure", "deletion-empty")
    not_workers = bool(spec.get("clusterSelector")) or autoscales(spec.get("rayClusterSpec"))
    refused = ["DeleteWorkers"] if not_workers else []
    refused += ["DeleteCluster"] if spec.get("clusterSelector") else []
    for key, part in old.items():
        policy = part.get("policy")
        if policy in (None, *refused) or (shutdown and policy == "DeleteNone"):
            yield _refused_policy(place(key, "policy"), policy)
    for i, rule in enumerate(rules):
        if rule.get("policy") in refused:
            yield _refused_policy(place("deletionRules", i, "policy"), rule["policy"])
    yield from _deletion_conditions(rules, place("deletionRules"))


def _refused_policy(at: At, policy: str | None) -> Finding:
    allowed = (
        "a policy that fits: DeleteWorkers needs a cluster of its own without autoscaler, "
        "DeleteCluster one of its own, DeleteNone no shutdownAfterJobFinishes"
    )
    return at.finding(policy or "no policy", allowed, "deletion-policy")


def _deletion_conditions(rules: list[dict[str, Any]], at: At) -> Iterator[Finding]:
    by_status: dict[str, dict[str, int]] = {}
    for i, rule in enumerate(rules):
        condition, place = rule.get("condition", {}), at(i, "condition")
        status = [
            f"{k}={condition[k]}" for k in ("jobStatus", "jobDeploymentStatus") if k in condition
        ]
        ttl = condition.get("ttlSeconds", 0)
        if len(status) != 1:
            found = " and ".join(status) or "neither"
            allowed = "either jobStatus or jobDeploymentStatus"
            yield place.finding(found, allowed, "deletion-condition")
            continue
        if ttl < 0:
            yield place("ttlSeconds").finding(ttl, ">= 0", "deletion-condition")
        times = by_status.setdefault(status[0], {})
        policy = str(rule.get("policy"))
        if policy in times:
            found = f"{policy} for {status[0]}, a second time"
            yield at(i).finding(found, "one rule for each policy and status", "deletion-twice")
        times[policy] = ttl
    for status_text, times in by_status.items():
        order = [(policy, times[policy]) for policy in DELETION_ORDER if policy in times]
        for (before, earlier), (policy, later) in itertools.pairwise(order):
            if later < earlier:
                found = f"{policy} after {later} s for {status_text}"
                allowed = f"{policy} no earlier than {before} ({earlier} s)"
                yield at.finding(found, allowed, "deletion-order")


def _service(
    spec: dict[str, Any], annotations: dict[str, str], at: At, gates: Collection[str]
) -> Iterator[Finding]:
    cluster, place = spec["rayClusterConfig"], at("rayClusterConfig")
    yield from _no_kubernetes_auth(cluster, place, "service-kubernetes-auth")
    yield from check_cluster(cluster, annotations, place, gates)
    name = cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name")
    if name:
        field = place("headGroupSpec", "headService", "metadata", "name")
        yield field.finding(name, "no name: KubeRay gives one", "service-head-name")
    delay = spec.get("rayClusterDeletionDelaySeconds", 0)
    if delay < 0:
        yield at("rayClusterDeletionDelaySeconds").finding(delay, ">= 0", "service-delay")
    timeout = annotations.get(INITIALIZING_TIMEOUT)
    good = not timeout or (
        (GO_DURATION.fullmatch(timeout) or re.fullmatch(r"\+?\d+", timeout))
        and re.search("[1-9]", timeout)
    )
    if not good:
        field = At(at.document)("metadata", "annotations", INITIALIZING_TIMEOUT)
        yield field.finding(timeout, "5m, 1h30m, or seconds >= 1", "service-timeout")
    yield from _upgrade_type(spec, "RayService", at)
    if spec.get("upgradeStrategy", {}).get("type") == INCREMENTAL:
        yield from _incremental(spec, at)


def _incremental(spec: dict[str, Any], at: At) -> Iterator[Finding]:
    """An upgrade that moves the traffic step by step needs room to grow, and a gateway."""
    rule, place = "incremental-upgrade", at("upgradeStrategy", "clusterUpgradeOptions")
    if not autoscales(spec["rayClusterConfig"]):
        field = at("rayClusterConfig", "enableInTreeAutoscaling")
        yield field.finding(False, f"true with upgradeStrategy.type={INCREMENTAL}", rule)
    options = spec["upgradeStrategy"].get("clusterUpgradeOptions")
    if options is None:
        yield place.finding("none", f"options, with type={INCREMENTAL}", rule)
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not 0 <= surge <= 100:
        yield place("maxSurgePercent").finding(surge, "0 to 100", rule)
    if not 0 <= step <= 100:
        yield place("stepSizePercent").finding(step, "0 to 100", rule)
    elif step > surge:
        yield place("stepSizePercent").finding(step, f"<= maxSurgePercent={surge}", rule)
    if options.get("intervalSeconds", 0) <= 0:
        found = options.get("intervalSeconds", "none")
        yield place("intervalSeconds").finding(found, ">= 1", rule)
    if not options.get("gatewayClassName"):
        yield place("gatewayClassName").finding("none", "a GatewayClass of the cluster", rule)


def _cron_job(spec: dict[str, Any], at: At, gates: Collection[str]) -> Iterator[Finding]:
    problem = cron.problem(spec["schedule"])
    if problem:
        found = f"{spec['schedule']} ({problem})"
        allowed = "minute, hour, day, month, weekday: '0 3 * * 1-5'"
        yield at("schedule").finding(found, allowed, "cron-schedule")
    zone, known = spec.get("timeZone"), zoneinfo.available_timezones()
    # Without the tz database on this machine nothing can be said.
    if zone == "" or (zone is not None and known and zone not in known | {"Local"}):
        allowed = "a name such as Europe/Berlin, or no such field"
        yield at("timeZone").finding(zone, allowed, "cron-time-zone")
    yield from _job(spec["jobTemplate"], {}, at("jobTemplate"), gates)
