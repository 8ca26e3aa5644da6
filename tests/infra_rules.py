"""What is right by default for Ray on Kubernetes, as a function from manifests to what is not."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

Document = dict[str, Any]


def load(text: str) -> list[Document]:
    return list(yaml.safe_load_all(text))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [d for d in documents if d["kind"] in kinds]


def cluster_of(document: Document) -> Document:
    spec: Document = document["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def templates(document: Document) -> Iterator[tuple[str, Document]]:
    """Every pod template that says what runs Ray, or what submits to it."""
    cluster = cluster_of(document)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if document["kind"] == "RayJob":
        yield "submitter", document["spec"]["submitterPodTemplate"]


def problems(documents: list[Document]) -> Iterator[str]:
    """What is not right by default, as `object: what`."""
    for document in of_kind(documents, "RayJob", "RayService"):
        name, spec, cluster = document["metadata"]["name"], document["spec"], cluster_of(document)
        head = cluster["headGroupSpec"]
        if cluster["authOptions"] != {"mode": "token"}:
            yield f"{name}: no token"
        if (
            cluster["autoscalerOptions"]["version"] != "v2"
            or not cluster["enableInTreeAutoscaling"]
        ):
            yield f"{name}: autoscaler"
        if head["rayStartParams"]["num-cpus"] != "0":
            yield f"{name}: tasks on the head"
        if "NotIn" not in json.dumps(head["template"]["spec"].get("affinity")):
            yield f"{name}: head on a spot node"
        if document["kind"] == "RayJob":
            deadlines = spec["activeDeadlineSeconds"] > 0 and spec["preRunningDeadlineSeconds"] > 0
            resumes = spec["backoffLimit"] > 0 and "run.name=" in spec["entrypoint"]
            if not (deadlines and resumes and "storage.path=/mnt/runs" in spec["entrypoint"]):
                yield f"{name}: what another try starts from"
            if ("deletionStrategy" in spec) == spec["shutdownAfterJobFinishes"]:
                yield f"{name}: who deletes the cluster"
        for group, template in templates(document):
            yield from (f"{name} {group}: {problem}" for problem in pod_problems(group, template))
            container = template["spec"]["containers"][0]
            if not container["image"].partition(":")[2].startswith(f"{cluster['rayVersion']}-"):
                yield f"{name} {group}: image and rayVersion"
            ready = container.get("readinessProbe", {}).get("httpGet", {}).get("path")
            if document["kind"] == "RayService" and group != "head" and ready != "/-/healthz":
                yield f"{name} {group}: readiness without Serve's health"
    for budget in of_kind(documents, "PodDisruptionBudget"):
        # A RayCluster has no `scale`: anything else would forbid every eviction.
        labels = budget["spec"]["selector"]["matchLabels"]
        if "ray.io/node-type" in labels and not isinstance(budget["spec"].get("minAvailable"), int):
            yield f"{budget['metadata']['name']}: not a whole number of minAvailable"
    (namespace,) = of_kind(documents, "Namespace")
    if namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] != "restricted":
        yield "namespace: not restricted"
    policies = of_kind(documents, "NetworkPolicy")
    if not any(p["spec"]["podSelector"] == {} and len(p["spec"]) == 2 for p in policies):
        yield "network: open by default"


def pod_problems(group: str, template: Document) -> Iterator[str]:
    spec, (container,) = template["spec"], template["spec"]["containers"]
    if spec["automountServiceAccountToken"]:
        yield "token of the service account"
    security = spec["securityContext"]
    if not security["runAsNonRoot"] or security["seccompProfile"]["type"] != "RuntimeDefault":
        yield "pod's security"
    if container["securityContext"] != {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }:
        yield "container's security"
    if spec["restartPolicy"] != "Never":
        yield "restartPolicy"
    resources = container["resources"]
    if resources["requests"]["memory"] != resources["limits"]["memory"]:
        yield "memory"
    if group == "submitter":
        return
    if spec.get("terminationGracePeriodSeconds", 30) < 60:
        yield "grace shorter than Ray's drain"
    if not {"readinessProbe", "livenessProbe"} <= container.keys():
        yield "probes"
    if group != "head" and "topologySpreadConstraints" not in spec:
        yield "spread"
    if "/mnt/runs" not in [mount["mountPath"] for mount in container["volumeMounts"]]:
        yield "runs are lost with the pod"
