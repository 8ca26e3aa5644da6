"""Each rule of the operator is broken once, with a message that names the field."""

from typing import Any

import pytest
from kuberay_deploy import cron, validate
from kuberay_deploy.operator_rules import DEFAULT_GATES, RULES

from .checked import change, dropped, good

JOB = "spec rayClusterSpec"
RAY = "headGroupSpec template spec containers 0"
ENV = f"spec {RAY} env"
SERVICE = "spec rayClusterConfig"
UPGRADE = "spec upgradeStrategy clusterUpgradeOptions"
FT = "spec gcsFaultToleranceOptions"
RULES_OF = "spec deletionStrategy deletionRules"

Changes = dict[str, Any]


def env(name: str, value: str = "x") -> list[dict[str, str]]:
    return [{"name": name, "value": value}]


# Rule, good manifest, changes, and what the message must hold.
NEGATIVE: list[tuple[str, str, Changes, str]] = [
    ("name-length", "cluster", {"metadata name": "a" * 54}, "53 characters"),
    ("name-length", "job", {"metadata name": "a" * 48}, "47 characters"),
    ("name-length", "service", {"metadata name": "a" * 48}, "47 characters"),
    ("name-length", "cron", {"metadata name": "a" * 37}, "36 characters"),
    ("name-syntax", "job", {"metadata name": "1st"}, "metadata.name: found 1st"),
    ("name-syntax", "job", {"metadata name": dropped}, "metadata.name"),
    ("containers", "cluster", {"spec headGroupSpec template spec": {}}, "headGroupSpec.template"),
    ("group-resources", "cluster", {"spec headGroupSpec rayStartParams num-cpus": "1"}, "num-cpus"),
    ("group-labels", "cluster", {"spec headGroupSpec rayStartParams labels": "a=b"}, "labels"),
    ("label-syntax", "cluster", {"spec headGroupSpec labels a/b/c": "d"}, "labels['a/b/c']"),
    ("label-syntax", "cluster", {"spec headGroupSpec labels a": "b c"}, "labels.a: found b c"),
    ("negative-replicas", "cluster", {"spec workerGroupSpecs 0 minReplicas": -1}, "minReplicas"),
    ("replicas", "cluster", {"spec workerGroupSpecs 0 minReplicas": 3}, "<= maxReplicas=2"),
    ("group-idle-timeout", "cluster", {"spec workerGroupSpecs 0 idleTimeoutSeconds": 9}, "v2"),
    ("group-idle-timeout", "job", {f"{JOB} workerGroupSpecs 0 idleTimeoutSeconds": -1}, ">= 0"),
    ("group-priority", "cluster", {"spec workerGroupSpecs 0 priority": 1}, "version=v2"),
    ("group-priority", "job", {f"{JOB} rayVersion": "2.55.1"}, "2.56.0"),
    ("group-suspend", "job", {f"{JOB} workerGroupSpecs 0 suspend": True}, "[0].suspend"),
    ("autoscaler-env", "cluster", {ENV: env("RAY_enable_autoscaler_v2", "1")}, "enableInTree"),
    ("autoscaler-env", "job", {f"{JOB} {RAY} env": env("RAY_enable_autoscaler_v2")}, "version"),
    ("autoscaler-restart-policy", "job", {f"{JOB} {RAY[:-13]} restartPolicy": "Always"}, "Never"),
    ("autoscaler-idle-timeout", "job", {f"{JOB} autoscalerOptions idleTimeoutSeconds": -1}, ">= 0"),
    (
        "autoscaler-command-env",
        "job",
        {f"{JOB} autoscalerOptions env": env("KUBERAY_GEN_AUTOSCALER_START_CMD")},
        "autoscalerOptions.env.KUBERAY_GEN_AUTOSCALER_START_CMD",
    ),
    ("gcs-annotation", "cluster", {"metadata annotations ray.io/ft-enabled": "true"}, "ft-enabled"),
    ("gcs-redis-env", "cluster", {FT: dropped, ENV: env("RAY_REDIS_ADDRESS")}, "redisAddress"),
    ("gcs-redis-env", "cluster", {ENV: env("RAY_REDIS_ADDRESS")}, "env.RAY_REDIS_ADDRESS"),
    ("gcs-redis-password", "cluster", {ENV: env("REDIS_PASSWORD")}, "redisPassword"),
    (
        "gcs-redis-password",
        "cluster",
        {"spec headGroupSpec rayStartParams redis-password": "x"},
        "rayStartParams.redis-password",
    ),
    ("gcs-redis-username", "cluster", {ENV: env("REDIS_USERNAME")}, "redisUsername"),
    (
        "gcs-namespace-annotation",
        "cluster",
        {"metadata annotations ray.io/external-storage-namespace": "a"},
        "externalStorageNamespace",
    ),
    ("gcs-rocksdb", "cluster", {f"{FT} backend": "rocksdb"}, "redisAddress: found a value"),
    (
        "gcs-rocksdb",
        "cluster",
        {FT: {"backend": "rocksdb"}, ENV: env("RAY_GCS_STORAGE")},
        "KubeRay",
    ),
    (
        "gcs-rocksdb",
        "cluster",
        {FT: {"backend": "rocksdb", "storage": {"claimName": "a", "size": "1Gi"}}},
        "storage.size",
    ),
    ("gcs-redis-storage", "cluster", {f"{FT} storage": {"claimName": "a"}}, "backend=rocksdb"),
    ("auth-ray-version", "job", {f"{JOB} rayVersion": "2.51.0"}, ">= 2.52.0"),
    ("auth-ray-version", "job", {f"{JOB} rayVersion": dropped}, "rayVersion: found no version"),
    ("auth-kubernetes", "cluster", {"spec authOptions enableK8sTokenAuth": True}, "mode=token"),
    (
        "auth-kubernetes",
        "cluster",
        {"spec authOptions": {"mode": "token", "enableK8sTokenAuth": True, "secretName": "a"}},
        "authOptions.secretName",
    ),
    (
        "auth-kubernetes",
        "cluster",
        {
            "spec authOptions": {"mode": "token", "enableK8sTokenAuth": True},
            "spec rayVersion": "2.54.0",
        },
        ">= 2.55.0",
    ),
    ("feature-gate", "cluster", {"spec networkPolicy": {}}, "RayClusterNetworkPolicy"),
    ("feature-gate", "cluster", {"spec tlsOptions": {}}, "RayClusterMTLS"),
    ("feature-gate", "cluster", {FT: {"backend": "rocksdb"}}, "GCSFaultToleranceEmbeddedStorage"),
    ("feature-gate", "cluster", {"spec historyServerOptions": {}}, "RayClusterHistoryServer"),
    ("history-server", "cluster", {"spec historyServerOptions": {}}, "collectorOptions.image"),
    (
        "network-policy-mode",
        "cluster",
        {"spec networkPolicy": {"mode": "DenyAllEgress", "head": {"ingressRules": [{}]}}},
        "networkPolicy.head.ingressRules",
    ),
    (
        "network-policy-group",
        "cluster",
        {"spec networkPolicy": {"workerGroups": [{"groupName": "large"}]}},
        "workerGroups[0].groupName: found large",
    ),
    ("network-policy-group", "cluster", {"spec networkPolicy": {}}, "found Small"),
    ("tls-env", "cluster", {"spec tlsOptions": {}, ENV: env("RAY_USE_TLS")}, "env.RAY_USE_TLS"),
    ("upgrade-type", "cluster", {"spec upgradeStrategy type": "NewCluster"}, "Recreate"),
    ("upgrade-type", "service", {"spec upgradeStrategy type": "Recreate"}, "NewCluster"),
    ("job-suspend", "job", {"spec suspend": True}, "shutdownAfterJobFinishes"),
    ("job-ttl", "job", {"spec ttlSecondsAfterFinished": 5}, "shutdownAfterJobFinishes"),
    ("job-ttl", "cron", {"spec jobTemplate ttlSecondsAfterFinished": -5}, ">= 0"),
    ("job-cluster", "job", {JOB: dropped}, "clusterSelector"),
    ("job-selector", "job", {"spec clusterSelector": {"cluster": "a"}}, "ray.io/cluster"),
    (
        "job-selector",
        "job",
        {"spec clusterSelector ray.io/cluster": "a", "spec submissionMode": "SidecarMode"},
        "submissionMode",
    ),
    ("job-backoff", "job", {"spec backoffLimit": -1}, ">= 0"),
    ("job-backoff", "job", {"spec submissionMode": "InteractiveMode"}, "InteractiveMode"),
    ("job-backoff", "job", {"spec clusterSelector ray.io/cluster": "a"}, "clusterSelector"),
    ("job-sidecar", "job", {"spec submissionMode": "SidecarMode"}, "submitterPodTemplate"),
    ("job-deadline", "job", {"spec activeDeadlineSeconds": 0}, "activeDeadlineSeconds"),
    ("job-runtime-env", "job", {"spec runtimeEnvYAML": "a: ["}, "runtimeEnvYAML"),
    ("job-runtime-env", "job", {"spec runtimeEnvYAML": "[a]"}, "a list"),
    ("job-kubernetes-auth", "job", {f"{JOB} authOptions enableK8sTokenAuth": True}, "RayCluster"),
    ("deletion-exclusive", "job", {"spec shutdownAfterJobFinishes": True}, "shutdownAfter"),
    (
        "deletion-exclusive",
        "job",
        {"spec deletionStrategy onSuccess policy": "DeleteSelf"},
        "onSucc",
    ),
    ("deletion-empty", "job", {RULES_OF: []}, "onSuccess and onFailure"),
    ("deletion-condition", "job", {f"{RULES_OF} 0 condition": {}}, "[0].condition: found neither"),
    ("deletion-condition", "job", {f"{RULES_OF} 0 condition ttlSeconds": -1}, ">= 0"),
    (
        "deletion-policy",
        "job",
        {f"{RULES_OF} 0 policy": "DeleteWorkers"},
        "deletionRules[0].policy",
    ),
    (
        "deletion-policy",
        "cron",
        {
            "spec jobTemplate deletionStrategy onSuccess policy": "DeleteNone",
            "spec jobTemplate deletionStrategy onFailure policy": "DeleteSelf",
        },
        "onSuccess.policy",
    ),
    ("deletion-twice", "job", {f"{RULES_OF} 1 policy": "DeleteCluster"}, "deletionRules[1]"),
    (
        "deletion-order",
        "job",
        {f"{RULES_OF} 0 condition ttlSeconds": 9999},
        "DeleteSelf after 3600",
    ),
    (
        "service-head-name",
        "service",
        {f"{SERVICE} headGroupSpec headService metadata name": "a"},
        "headService.metadata.name",
    ),
    ("service-delay", "service", {"spec rayClusterDeletionDelaySeconds": -1}, "DelaySeconds"),
    (
        "service-timeout",
        "service",
        {"metadata annotations ray.io/initializing-timeout": "5d"},
        "5d",
    ),
    (
        "service-timeout",
        "service",
        {"metadata annotations ray.io/initializing-timeout": "0m"},
        "5m",
    ),
    (
        "service-kubernetes-auth",
        "service",
        {f"{SERVICE} authOptions enableK8sTokenAuth": True},
        "enableK8sTokenAuth",
    ),
    (
        "incremental-upgrade",
        "service",
        {f"{SERVICE} enableInTreeAutoscaling": False},
        "Autoscaling",
    ),
    ("incremental-upgrade", "service", {UPGRADE: dropped}, "clusterUpgradeOptions: found none"),
    ("incremental-upgrade", "service", {f"{UPGRADE} stepSizePercent": 60}, "<= maxSurgePercent=50"),
    ("incremental-upgrade", "service", {f"{UPGRADE} stepSizePercent": 101}, "0 to 100"),
    ("incremental-upgrade", "service", {f"{UPGRADE} maxSurgePercent": 101}, "maxSurgePercent"),
    ("incremental-upgrade", "service", {f"{UPGRADE} intervalSeconds": 0}, "intervalSeconds"),
    ("incremental-upgrade", "service", {f"{UPGRADE} gatewayClassName": ""}, "gatewayClassName"),
    ("cron-schedule", "cron", {"spec schedule": "0 3 * *"}, "4 fields"),
    ("cron-schedule", "cron", {"spec schedule": "TZ=UTC 0 3 * * *"}, "timeZone"),
    ("cron-time-zone", "cron", {"spec timeZone": "Europe/Berlni"}, "timeZone"),
]


@pytest.mark.parametrize(
    ("rule", "name", "changes", "part"),
    NEGATIVE,
    ids=[f"{rule}-{number}" for number, (rule, *_) in enumerate(NEGATIVE)],
)
def test_broken_rule_is_named(rule: str, name: str, changes: Changes, part: str) -> None:
    documents = good(name)
    for path, how in changes.items():
        change(documents, path, how)
    # Without CRDs, whose limits and CEL rules forbid some of this already.
    found = [each for each in validate.check(documents, None) if each.rule == rule]
    assert found
    assert any(part in str(each) for each in found), [str(each) for each in found]


def test_every_rule_is_broken_once() -> None:
    assert {rule for rule, *_ in NEGATIVE} == set(RULES)


def test_gate_that_is_on_allows_its_field() -> None:
    documents = change(good("cluster"), "spec networkPolicy mode", "DenyAll")
    change(documents, "spec workerGroupSpecs 0 groupName", "small")
    rules = [each.rule for each in validate.check(documents, None)]
    assert rules == ["feature-gate"]
    on = DEFAULT_GATES | {"RayClusterNetworkPolicy"}
    assert validate.check(documents, None, gates=on) == []


@pytest.mark.parametrize(
    "schedule",
    [
        "* * * * *",
        "*/5 0-6/2 1,15 JAN-jun ?",
        "@daily",
        "@every 1h30m",
        "0 0 31 12 6",
        "5/10 * * * *",
    ],
)
def test_good_schedule_is_taken(schedule: str) -> None:
    assert cron.problem(schedule) is None


@pytest.mark.parametrize(
    ("schedule", "part"),
    [
        ("60 * * * *", "minute is '60'"),
        ("* 5-3 * * *", "hour is '5-3'"),
        ("* * 0 * *", "day of month"),
        ("* * * foo *", "month is 'foo'"),
        ("* * * * 7", "day of week"),
        ("*/0 * * * *", "minute"),
        ("* * * * * *", "6 fields"),
        ("@often", "@daily"),
        ("@every hour", "@every"),
    ],
)
def test_bad_schedule_is_refused(schedule: str, part: str) -> None:
    assert part in str(cron.problem(schedule))
