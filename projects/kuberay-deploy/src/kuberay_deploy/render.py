"""The manifests: RayCluster, RayJob, RayService and RayCronJob, with what stands around them.

A pure function of the configuration: the same values make the same bytes.

Source: https://docs.ray.io/en/releases-2.60.0/cluster/kubernetes/index.html and the custom resource
definitions of KubeRay 1.7
"""

import shlex
from typing import Any

import yaml

from kuberay_deploy import pods, serve_config
from kuberay_deploy.config import Config
from kuberay_deploy.manifests import Document
from kuberay_deploy.pods import Plan
from kuberay_deploy.policies import disruption_budgets, metadata, network_policies, uses_redis

API = "ray.io/v1"
# What a job may wait for nodes and images before it counts as failed.
PRE_RUNNING_S = 1800
# After which the autoscaler gives up pods that no node takes, and turns to the other group: an hour
# unless it is said. Longer than a node and an image take, shorter than any workload waits.
FALLBACK_S = 300
# Of each pod, where runs live in an object store: for what must be a directory.
LOCAL_RUNS = "/tmp/ray/runs"
# A RayService: time that requests under way on the old cluster have after the switch.
OLD_CLUSTER_S = 120
# Per cent of the traffic that moves at once, seconds between two moves, and per cent of its
# capacity that the new cluster gets before the old one gives up as much.
STEP_PERCENT, STEP_S, SURGE_PERCENT = 10, 30, 50
# A service that has not been ready by then has failed for good: only a new one can be tried.
INITIALIZING_TIMEOUT = "30m"
# The record and the log of a job of a cron job: a week after its cluster has gone.
RECORD_S = 7 * 24 * 3600


def make_plan(config: Config, workload: str, profile: str) -> Plan:
    """The plan of one manifest.

    Raises:
        UserError: If an override is wrong; for a service only.
    """
    kind = config.kind_of(workload)
    env = serve_config.variables() if config.describe(workload).kind == "service" else {}
    return Plan(config, workload, profile, kind, env)


def render(plan: Plan) -> list[Document]:
    """The documents of one manifest: policies first, so that they are there when pods come.

    Raises:
        UserError: If an override is wrong.
    """
    kinds = {"cluster": ray_cluster, "job": ray_job, "service": ray_service, "cron": ray_cron_job}
    around = [*network_policies(plan), *disruption_budgets(plan)]
    return [*around, kinds[plan.kind](plan)]


def ray_cluster(plan: Plan) -> Document:
    """A cluster that stays, for whoever submits jobs to it."""
    return {
        "apiVersion": API,
        "kind": "RayCluster",
        "metadata": metadata(plan, plan.name),
        "spec": cluster_spec(plan),
    }


def ray_job(plan: Plan) -> Document:
    """A job, with a cluster that comes and goes with it."""
    return {
        "apiVersion": API,
        "kind": "RayJob",
        "metadata": metadata(plan, plan.name),
        "spec": job_spec(plan),
    }


def ray_cron_job(plan: Plan) -> Document:
    """A job at set times. The operator needs its feature gate RayCronJob."""
    return {
        "apiVersion": API,
        "kind": "RayCronJob",
        "metadata": metadata(plan, plan.name),
        "spec": {
            "schedule": plan.config.job.schedule,
            "timeZone": plan.config.job.time_zone,
            "jobTemplate": job_spec(plan),
        },
    }


def ray_service(plan: Plan) -> Document:
    """A Serve application on a cluster that the operator replaces without losing a request."""
    resource = metadata(plan, plan.name)
    resource["annotations"] = {"ray.io/initializing-timeout": INITIALIZING_TIMEOUT}
    gateway = plan.config.platform.gateway_class
    upgrade: Document = {"type": "NewCluster"}
    if plan.chosen.incremental_upgrade and gateway is not None:
        upgrade = {
            "type": "NewClusterWithIncrementalUpgrade",
            "clusterUpgradeOptions": {
                "gatewayClassName": gateway,
                "stepSizePercent": STEP_PERCENT,
                "intervalSeconds": STEP_S,
                "maxSurgePercent": SURGE_PERCENT,
            },
        }
    storage = plan.config.storage.path if plan.config.on_volume else LOCAL_RUNS
    overrides = [*plan.variant.overrides, *plan.config.overrides]
    return {
        "apiVersion": API,
        "kind": "RayService",
        "metadata": resource,
        "spec": {
            "upgradeStrategy": upgrade,
            "rayClusterDeletionDelaySeconds": OLD_CLUSTER_S,
            # Requests go to workers: the head has no CPUs for Ray, and other things to do.
            "excludeHeadPodFromServeSvc": True,
            "serveConfigV2": to_yaml(serve_config.content(storage, overrides)),
            "rayClusterConfig": cluster_spec(plan),
        },
    }


def job_spec(plan: Plan) -> Document:
    """The job: what runs, how often it is tried, how long it may take, and what stays of it."""
    chosen = plan.chosen
    spec: Document = {
        "entrypoint": entrypoint(plan),
        "submissionMode": "K8sJobMode",
        # Tries after the first, each on a new cluster; the run's name makes them resume.
        "backoffLimit": chosen.retries,
        "activeDeadlineSeconds": plan.described.deadline_s,
        "preRunningDeadlineSeconds": PRE_RUNNING_S,
        # Of the submitter's pod: it asks first whether the job has been submitted already.
        "submitterConfig": {"backoffLimit": 2},
        "submitterPodTemplate": pods.submitter(plan),
    }
    # A time to live, or rules; the operator refuses both together. No rule knows a job that was
    # stopped: its head stays until somebody deletes the job. And a time to live knows the cluster
    # only: nobody would delete the jobs that a cron job makes.
    if chosen.keep_failed_s or plan.kind == "cron":
        spec["deletionStrategy"] = {"deletionRules": deletion_rules(plan)}
    else:
        spec["shutdownAfterJobFinishes"] = True
        spec["ttlSecondsAfterFinished"] = chosen.keep_done_s
    return spec | {"rayClusterSpec": cluster_spec(plan)}


def deletion_rules(plan: Plan) -> list[Document]:
    """When a job's cluster goes, and after a week the job itself if a cron job made it."""
    keep_done_s = plan.chosen.keep_done_s
    ends: list[tuple[Document, int]] = [
        ({"jobStatus": "SUCCEEDED"}, keep_done_s),
        ({"jobDeploymentStatus": "Failed"}, plan.chosen.keep_failed_s or keep_done_s),
    ]
    rules: list[Document] = []
    for status, keep_s in ends:
        rules.append({"policy": "DeleteCluster", "condition": status | {"ttlSeconds": keep_s}})
        if plan.kind == "cron":
            gone_s = keep_s + RECORD_S
            rules.append({"policy": "DeleteSelf", "condition": status | {"ttlSeconds": gone_s}})
    return rules


def entrypoint(plan: Plan) -> str:
    """The driver's command. It passes two shells, and the words between them are quoted anew.

    A variable of the shell would therefore arrive as text; `${oc.env:...}` is Hydra's own.
    """
    config = plan.config
    given = [*plan.variant.overrides, *config.overrides]
    storage = config.storage.path.rstrip("/")
    # KubeRay names a cluster after its job, with five characters more, and a job after its cron
    # job, with the time. So all tries of a job share this name, and no two jobs of a cron job do.
    name = "${RAY_CLUSTER_NAME%-*}" if plan.kind == "cron" else plan.name
    results = f"{storage}/results/{name}" if config.on_volume else f"{LOCAL_RUNS}/results/{name}"
    words = ["python", "-m", plan.workload.replace("-", "_")]
    words += [
        "cluster=existing",
        "cluster.address=${oc.env:RAY_ADDRESS}",
        "cluster.autoscaling=true",
    ]
    words += [f"storage.path={storage}", *given]
    named = [f"run.name={name}"] if not _sets(given, "run.name") else []
    named += [f"hydra.run.dir={results}"] if not _sets(given, "hydra.run.dir") else []
    if plan.kind != "cron":
        return shlex.join([*words, *named])
    quoted = " ".join(f'"{word}"' for word in named)
    return shlex.join(["sh", "-c", f"exec {shlex.join(words)} {quoted}".rstrip()])


def cluster_spec(plan: Plan) -> Document:
    """The cluster: a head without CPUs for Ray, and one or two groups of workers."""
    config = plan.config
    spec: Document = {
        "rayVersion": config.image.ray_version,  # As in the image's tag.
        "authOptions": {"mode": "token"},  # Off unless it is said.
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",  # The older one unless it is said.
            "idleTimeoutSeconds": plan.chosen.idle_s,
            "upscalingMode": "Default",
            "imagePullPolicy": config.image.pull_policy,
            "resources": pods.resources("500m", "1Gi"),
            "securityContext": pods.CONTAINER_SECURITY,
            "volumeMounts": [pods.token_mount()],
        },
    }
    if plan.chosen.spot:
        name = "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
        spec["autoscalerOptions"]["env"] = [{"name": name, "value": str(FALLBACK_S)}]
    if uses_redis(plan):
        # No namespace in Redis is named: an old and a new cluster would share it.
        secret = {"name": config.kubernetes.redis_secret, "key": "password"}
        spec["gcsFaultToleranceOptions"] = {
            "redisAddress": config.kubernetes.redis_address,
            "redisPassword": {"valueFrom": {"secretKeyRef": secret}},
        }
    # No task on the head: one that takes its memory takes the cluster.
    head = {"serviceType": "ClusterIP", "rayStartParams": {"num-cpus": "0"}}
    spec["headGroupSpec"] = head | {"template": pods.head(plan)}
    spec["workerGroupSpecs"] = worker_groups(plan)
    return spec


def worker_groups(plan: Plan) -> list[Document]:
    """Of spot nodes with a fallback, of nodes with GPUs, or of plain ones."""
    platform, variant = plan.config.platform, plan.variant
    # The idle workers of a job that has ended go, whatever became of it: only the head stays.
    fewest = 0 if plan.kind in ("job", "cron") else variant.workers
    fixed = {"replicas": variant.workers, "minReplicas": fewest}
    if plan.chosen.gpu:
        return [_group(plan, "gpu", platform.gpu, fixed)]
    if not plan.chosen.spot:
        return [_group(plan, "workers", platform.on_demand, fixed)]
    # The autoscaler takes the group of higher priority, unless its nodes have failed to come. No
    # group has workers of its own: without spot nodes the cluster would never be ready, and the
    # job not start that asks for others. Each may have all of the workers, so that either can do
    # without the other; a workload that takes what it gets may then have twice as many.
    spot = {"replicas": 0, "minReplicas": 0, "priority": 10}
    fallback = {"replicas": 0, "minReplicas": 0, "priority": 0}
    return [
        _group(plan, "spot", platform.spot, spot),
        _group(plan, "on-demand", platform.on_demand, fallback),
    ]


def _group(plan: Plan, name: str, pool: Any, replicas: Document) -> Document:
    return {
        "groupName": name,
        **replicas,
        "maxReplicas": plan.variant.max_workers,
        "labels": {"pool": name},  # Ray's own, for label selectors of tasks and actors.
        "rayStartParams": {},
        "template": pods.worker(plan, pool),
    }


def _sets(overrides: list[str], key: str) -> bool:
    return any(override.lstrip("+").partition("=")[0] == key for override in overrides)


class _Dumper(yaml.SafeDumper):
    """Writes every value where it stands, and text of several lines as lines."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature of PyYAML
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(*documents: Document) -> str:
    """One YAML text, with `---` between documents; keys stay in their order."""
    return "---\n".join(
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100) for document in documents
    )


def manifest(plan: Plan, command: str) -> str:
    """The file: how it was made, then its documents."""
    comment = command.replace("\n", "\n# ")
    return f"# Written by: {comment}\n" + to_yaml(*render(plan))
