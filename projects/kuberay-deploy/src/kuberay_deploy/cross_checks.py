"""Mistakes between fields, each of which is right by itself.

Neither the API server nor the operator refuses most of them: the pods stay pending, the cluster
comes up without GPUs, or the job's driver and workers have different versions of Ray.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from kuberay_deploy import pod_checks, ray_parser
from kuberay_deploy.catalog import WORKLOADS
from kuberay_deploy.cluster_spec import Spec, clusters, pod
from kuberay_deploy.findings import At, Finding, nearest
from kuberay_deploy.image_tags import named_version, ray_version
from kuberay_deploy.labels import LABEL_VALUE

# Ray's own, and those of this repository, wherever they lie.
RAY_IMAGES = ("ray", "ray-ml", "ray-llm", *WORKLOADS)
# Others with Ray's name somewhere in theirs, whose tags look as Ray's do: `2.60.0-py311-gpu`.
RAY_LIKE = re.compile(r"(?<![a-z0-9])ray(?![a-z0-9])|rayproject")
ALIKE = re.compile(r"2\.\d\d+\.\d+(?:-\w+)*-(?:cpu|gpu|py3\d+)(?![\w.])")
PYTHON = re.compile(r"-py(3\d+)")
SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
ANNOTATIONS = (
    "ray.io/external-storage-namespace",
    "ray.io/ft-enabled",
    "ray.io/initializing-timeout",
    "ray.io/overwrite-container-cmd",
)
STANDARD = {"cpu": "CPU", "gpu": "GPU", "tpu": "TPU", "memory": "memory"}


def check(document: dict[str, Any], at: At) -> Iterator[Finding]:
    """Checks one object of KubeRay's kinds, which has passed its schema.

    Args:
        document: The object with its defaults applied.
        at: The top of the document.
    """
    for spec, place in clusters(document, at):
        yield from _cluster(spec, place)
    yield from _annotations(document, at)
    yield from _kind(document, at)


def repeated_documents(documents: list[dict[str, Any]]) -> Iterator[Finding]:
    """Two objects of the same kind and name: the second would replace the first."""
    keys = []
    for document in documents:
        metadata = document.get("metadata") or {}
        if isinstance(metadata, dict) and metadata.get("name"):
            group = str(document.get("apiVersion")).rpartition("/")[0]
            words = (document.get("kind"), metadata.get("namespace"), metadata["name"])
            keys.append((group, *map(str, words)))
    for (_, kind, _, name), count in Counter(keys).items():
        if count > 1:
            place = At(f"{kind}/{name}")("metadata", "name")
            found = f"{count} times in this manifest"
            yield place.finding(found, "another name for each", "repeated-document")


def _annotations(document: dict[str, Any], at: At) -> Iterator[Finding]:
    """Any name is allowed, but nobody reads one that is almost KubeRay's."""
    for name in document["metadata"].get("annotations", {}):
        near = nearest(name, ANNOTATIONS, cutoff=0.9)
        if near is not None and near != name:
            yield at("metadata", "annotations", name).finding(name, f"'{near}'", "annotation")


def _kind(document: dict[str, Any], at: At) -> Iterator[Finding]:
    spec, place = document["spec"], at("spec")
    if document["kind"] == "RayCronJob":
        spec, place = spec["jobTemplate"], place("jobTemplate")
    if document["kind"] in ("RayJob", "RayCronJob"):
        yield from _job(spec, place)
    if document["kind"] == "RayService" and spec.get("serveConfigV2"):
        yield from ray_parser.check_serve_config(spec["serveConfigV2"], place("serveConfigV2"))


def _job(spec: Spec, at: At) -> Iterator[Finding]:
    mode, submitter = spec.get("submissionMode", "K8sJobMode"), spec.get("submitterPodTemplate", {})
    if mode not in SUBMISSION_MODES:
        allowed = f"one of {', '.join(SUBMISSION_MODES)}"
        yield at("submissionMode").finding(mode, allowed, "submission-mode")
    own_command = any(c.get("command") for c in submitter.get("spec", {}).get("containers", []))
    if not spec.get("entrypoint") and mode != "InteractiveMode" and not own_command:
        allowed = "the command of the job, unless submissionMode=InteractiveMode"
        yield at("entrypoint").finding("no command", allowed, "entrypoint")
    if spec.get("runtimeEnvYAML"):
        try:
            place = at("runtimeEnvYAML")
            yield from ray_parser.check_runtime_env(spec["runtimeEnvYAML"], place)
        except (yaml.YAMLError, TypeError):
            pass  # The operator's rule `job-runtime-env` says it.
    place = at("submitterPodTemplate", "spec")
    if "submitterPodTemplate" in spec and not submitter.get("spec", {}).get("containers"):
        yield place("containers").finding("no container", "at least one", "submitter")
    elif submitter:
        yield from pod_checks.check(submitter["spec"], place, pod_checks.JOB_POLICIES)
        wanted = (spec.get("rayClusterSpec") or {}).get("rayVersion")
        yield from _image_version(submitter["spec"], wanted, place)


def _cluster(spec: Spec, at: At) -> Iterator[Finding]:
    head = spec["headGroupSpec"]
    groups = [(head, at("headGroupSpec"))]
    workers = spec.get("workerGroupSpecs", [])
    groups += [(group, at("workerGroupSpecs", i)) for i, group in enumerate(workers)]
    if not all(pod(group).get("containers") for group, _ in groups):
        return  # The operator's rule `containers` says it.
    service = head.get("serviceType", "ClusterIP")
    if service not in SERVICE_TYPES:
        allowed = f"one of {', '.join(SERVICE_TYPES)}"
        yield at("headGroupSpec", "serviceType").finding(service, allowed, "choice")
    for group, place in groups[1:]:
        most, number = group.get("maxReplicas"), group.get("replicas")
        if most is not None and number is not None and number > most:
            yield place("replicas").finding(number, f"<= maxReplicas={most}", "replicas")
    for group, place in groups:
        pod_at = place("template", "spec")
        yield from pod_checks.check(pod(group), pod_at)
        yield from _ray_resources(group, place)
    mounts = spec.get("autoscalerOptions", {}).get("volumeMounts", [])
    mounts_at = at("autoscalerOptions", "volumeMounts")
    yield from pod_checks.check_mounts(mounts, pod(head), mounts_at)
    amounts = spec.get("autoscalerOptions", {}).get("resources", {})
    yield from pod_checks.check_resources(amounts, at("autoscalerOptions", "resources"))
    names = list(_group_names(workers, at))
    yield from names
    yield from _versions(spec, groups, at)
    if not names:  # Else two groups would be one to the parser.
        yield from ray_parser.check_cluster(spec, at)


def _group_names(workers: list[Spec], at: At) -> Iterator[Finding]:
    """Names that are there twice, or that cannot be a label's value."""
    seen = {ray_parser.HEAD}
    for i, group in enumerate(workers):
        name, place = group["groupName"], at("workerGroupSpecs", i, "groupName")
        if name in seen:
            allowed = f"a name of its own, and not {ray_parser.HEAD}"
            yield place.finding(name, allowed, "group-name")
        elif not (name and LABEL_VALUE.fullmatch(name)):
            yield place.finding(name, "1 to 63 letters, digits, '-', '_' or '.'", "group-name")
        seen.add(name)


def _ray_resources(group: Spec, at: At) -> Iterator[Finding]:
    """Names and amounts that Ray would take for something else."""
    for name, amount in group.get("resources", {}).items():
        right = STANDARD.get(name.lower().rstrip("s"), name)
        if name != right:
            yield at("resources", name).finding(name, f"'{right}'", "ray-resource")
        elif pod_checks.quantity(amount) is None:
            yield at("resources", name).finding(amount, "a quantity, such as 2 or 4Gi", "quantity")
    node, container = ray_parser.expect(group), pod(group)["containers"][0]
    amounts = container.get("resources", {})
    pods = amounts.get("requests", {}) | amounts.get("limits", {})
    if node is None:
        return
    memory = pod_checks.quantity(pods.get("memory", ""))
    if memory is not None and node.memory is not None and node.memory > memory:
        allowed = f"<= the pod's memory of {pods['memory']}"
        yield at.finding(f"{node.memory} bytes of memory for Ray", allowed, "ray-memory")
    gpus = [pod_checks.quantity(amount) for name, amount in pods.items() if name.endswith("/gpu")]
    # A GPU can come in other ways: a part of one by its own name, a claim, a scheduler's mark.
    marks = (group["template"].get("metadata") or {}).get("annotations", {})
    other = any("/" in name for name in pods) or "claims" in amounts
    other = other or any("gpu" in mark for mark in marks)
    if node.gpu > sum(amount for amount in gpus if amount is not None) and (gpus or not other):
        place = at("template", "spec", "containers", 0, "resources", "limits")("nvidia.com/gpu")
        allowed = f"as many as Ray is told to have: {node.gpu}"
        yield place.finding("fewer GPUs" if gpus else "no GPU", allowed, "ray-gpu")


def _versions(spec: Spec, groups: list[tuple[Spec, At]], at: At) -> Iterator[Finding]:
    """Every image has the Ray of rayVersion, and one Python: Ray refuses to mix them."""
    wanted, pythons = spec.get("rayVersion"), set()
    for group, place in groups:
        yield from _image_version(pod(group), wanted, place("template", "spec"))
        python = PYTHON.search(pod(group)["containers"][0].get("image", ""))
        if python is not None:
            pythons.add(python[1])
    if len(pythons) > 1:
        shown = " and ".join(f"py{version}" for version in sorted(pythons))
        yield at.finding(f"images with {shown}", "one Python version in all", "python-version")


def _image_version(pod_spec: Spec, wanted: str | None, at: At) -> Iterator[Finding]:
    image = pod_spec["containers"][0].get("image", "")
    found = version_of(image)
    if wanted and found and found != wanted:
        field = at("containers", 0, "image")
        yield field.finding(image, f"Ray {wanted}, as rayVersion says", "ray-version")


def version_of(image: str) -> str | None:
    """The version of Ray that the tag of an image tells, if it does."""
    repository, _, tag = image.partition("@")[0].rpartition(":")
    if not repository or "/" in tag:
        return None
    known = repository.split("/")[-1] in RAY_IMAGES
    alike = RAY_LIKE.search(repository) and ALIKE.match(tag)
    return ray_version(tag) if known or alike else named_version(tag)
