"""What is right by default for Ray on Kubernetes, as a function from manifests to what is not."""

import shlex
from collections.abc import Iterator
from typing import Any

import yaml

Document = dict[str, Any]

# Labels by which platforms mark nodes that may go at any time, and what else they may say.
SPOT_LABELS = (
    "cloud.google.com/gke-spot",
    "eks.amazonaws.com/capacityType",
    "karpenter.sh/capacity-type",
    "ray-ref/spot",
)
STAYS = ("on-demand", "ON_DEMAND")
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


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
    bucket = in_a_bucket(documents)
    if bucket and of_kind(documents, "PersistentVolumeClaim"):
        yield "storage: a claim that nobody mounts"
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
        if not off_spot(head["template"]["spec"].get("affinity") or {}):
            yield f"{name}: head on a spot node"
        if document["kind"] == "RayJob":
            deadlines = spec["activeDeadlineSeconds"] > 0 and spec["preRunningDeadlineSeconds"] > 0
            resumes = {"run.name=", "storage.path="} - words(spec["entrypoint"]).keys()
            if not deadlines or resumes or "backoffLimit" not in spec:
                yield f"{name}: what another try starts from"
            if ("deletionStrategy" in spec) == spec["shutdownAfterJobFinishes"]:
                yield f"{name}: who deletes the cluster"
        for group, template in templates(document):
            yield from (f"{name} {group}: {problem}" for problem in pod_problems(group, template))
            if group != "submitter" and not keeps_runs(template["spec"], bucket):
                yield f"{name} {group}: runs are lost with the pod"
            labels = template["metadata"]["labels"] | {"ray.io/is-ray-node": "yes"}
            if ("egress", "anywhere", 53) not in traffic(labels, documents):
                yield f"{name} {group}: names only where pods answer"
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
    (logs,) = (volume for volume in spec["volumes"] if volume["name"] == "ray-logs")
    if resources["requests"].get("ephemeral-storage") != logs["emptyDir"]["sizeLimit"]:
        yield "disk that nobody asked for"


def off_spot(affinity: Document) -> bool:
    """Whether none of the alternatives of an affinity is a node that may go at any time."""
    terms = affinity.get("nodeAffinity", {}).get(REQUIRED, {}).get("nodeSelectorTerms", [])
    return bool(terms) and all(
        any(
            e["key"] in SPOT_LABELS
            and (e["operator"] in ("NotIn", "DoesNotExist") or set(e["values"]) <= set(STAYS))
            for e in term["matchExpressions"]
        )
        for term in terms
    )


def words(entrypoint: str) -> dict[str, str]:
    """The overrides of a command: `key=` to its value."""
    parts = [word.partition("=") for word in shlex.split(entrypoint)]
    return {f"{key}=": value for key, equals, value in parts if equals}


def in_a_bucket(documents: list[Document]) -> bool:
    """Whether the jobs have their runs in an object store."""
    jobs = of_kind(documents, "RayJob")
    return any("://" in words(d["spec"]["entrypoint"]).get("storage.path=", "") for d in jobs)


def keeps_runs(pod: Document, bucket: bool) -> bool:
    """Whether what a pod writes outlives it: by a claim at /mnt/runs, or a bucket and no claim."""
    claims = {v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    return not claims if bucket else "/mnt/runs" in [mounts.get(name) for name in claims]


# What two manifests of one workload are compared by.
POD = (
    "restartPolicy",
    "serviceAccountName",
    "automountServiceAccountToken",
    "terminationGracePeriodSeconds",
    "securityContext",
)
REDIS = 6379
CONTAINER = (
    "imagePullPolicy",
    "securityContext",
    "readinessProbe",
    "livenessProbe",
    "lifecycle",
)
GROUP = (
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "priority",
    "labels",
    "rayStartParams",
)
NOT_SAID = {"rayClusterSpec", "rayClusterConfig", "submitterPodTemplate", "entrypoint"}


def facts(document: Document, others: list[Document]) -> dict[str, Any]:
    """What a RayJob or RayService and what stands around it say, whichever way they say it.

    Left out are names, the sizes of pods and disks, and the nodes they ask for.
    """
    spec, cluster = document["spec"], cluster_of(document)
    name = document["metadata"]["name"]
    found = {key: value for key, value in spec.items() if key not in NOT_SAID}
    found["annotations"] = document["metadata"].get("annotations")
    found["serveConfigV2"] = yaml.safe_load(spec.get("serveConfigV2", ""))
    found["overrides"] = {
        word
        for word in shlex.split(spec.get("entrypoint", ""))
        if not word.startswith(("cluster.address=", "run.name=", "hydra.run.dir="))
    }
    found |= {key: cluster.get(key) for key in ("rayVersion", "authOptions")}
    found["head service"] = cluster["headGroupSpec"].get("serviceType")
    found["redis"] = cluster.get("gcsFaultToleranceOptions")
    found["autoscaler"] = cluster["autoscalerOptions"] | {"resources": None}
    for group in cluster["workerGroupSpecs"]:
        found[group["groupName"]] = {key: group.get(key) for key in GROUP}
    for group, template in templates(document):
        found[f"{group} pod"] = pod_facts(template["spec"])
        labels = template["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == name
        assert labels["app.kubernetes.io/part-of"] == "ray-ref"
    for node_type in ("head", "worker", *(["redis-cleanup"] if found["redis"] else [])):
        labels = {"app.kubernetes.io/part-of": "ray-ref", "app.kubernetes.io/instance": name}
        labels |= {"ray.io/node-type": node_type, "ray.io/is-ray-node": "yes"}
        found[f"{node_type} network"] = traffic(labels, others)
        if not found["redis"]:  # Here every head may ask for it.
            found[f"{node_type} network"] -= {("egress", "redis", REDIS)}
        for budget in of_kind(others, "PodDisruptionBudget"):
            if selects(budget["spec"]["selector"], labels):
                found[f"{node_type} budget"] = budget["spec"] | {"selector": None}
    return found


def pod_facts(spec: Document) -> Document:
    """What a pod may, when it is well, and what it finds."""
    (container,) = spec["containers"]
    found = {key: spec.get(key) for key in POD} | {key: container.get(key) for key in CONTAINER}
    mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
    found |= {
        "image": container["image"].rpartition("/")[2],
        "env": sorted(container.get("env", []), key=lambda variable: variable["name"]),
        "ports": {port["name"]: port["containerPort"] for port in container.get("ports", [])},
        "mounts": mounts,
        "volumes": sorted(
            ({**volume, "emptyDir": None} for volume in spec.get("volumes", [])),
            key=lambda volume: volume["name"],
        ),
        "spread": [c["topologyKey"] for c in spec.get("topologySpreadConstraints", [])],
        "gpus": container["resources"]["limits"].get("nvidia.com/gpu"),
    }
    return found


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector selects these labels."""
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        (labels.get(e["key"]) in e["values"]) if e["operator"] == "In" else e["key"] in labels
        for e in selector.get("matchExpressions", [])
    )


def traffic(labels: dict[str, str], documents: list[Document]) -> set[tuple[str, str, Any]]:
    """What the NetworkPolicies let a pod with these labels do: direction, peer, port or None.

    A peer is `own` (pods of the same instance), a namespace, `any namespace`, `anywhere` or a range
    of addresses.
    """
    found = set()
    for policy in of_kind(documents, "NetworkPolicy"):
        if not selects(policy["spec"]["podSelector"], labels):
            continue
        for direction, key in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, []):
                peers = {_peer(peer, labels) for peer in rule.get(key, [{}])} - {"nobody"}
                ports = {port["port"] for port in rule.get("ports", [])} or {None}
                found |= {
                    (direction, "redis" if port == REDIS else peer, port)
                    for peer in peers
                    for port in ports
                }
    return found


def _peer(peer: Document, labels: dict[str, str]) -> str:
    if "podSelector" in peer:
        return "own" if selects(peer["podSelector"], labels) else "redis"
    if "namespaceSelector" in peer:
        wanted = peer["namespaceSelector"].get("matchLabels", {})
        return wanted.get("kubernetes.io/metadata.name", "any namespace")
    cidr: str = peer.get("ipBlock", {}).get("cidr", "0.0.0.0/0")
    return "anywhere" if cidr == "0.0.0.0/0" else cidr
