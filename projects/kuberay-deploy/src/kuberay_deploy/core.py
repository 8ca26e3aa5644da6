"""Checks the kinds of Kubernetes itself: Secret, PersistentVolumeClaim, PodDisruptionBudget, ...

The schemas are those of kubernetes-validate, which carries Kubernetes' own OpenAPI documents.

Source: https://pypi.org/project/kubernetes-validate/
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

import kubernetes_validate

from kuberay_deploy import pod_checks, selector_checks
from kuberay_deploy.findings import At, Finding, nearest, one_of, without_nulls
from kuberay_deploy.labels import SUBDOMAIN

logger = logging.getLogger(__name__)
KUBERNETES = "1.37"
RULE = "core-schema"
# Kubernetes' own groups with a dot in their names. Others have groups below k8s.io, too, but none
# without a dot: Kubernetes refuses the definition of such a kind.
OWN_GROUPS = (
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
)
KINDS = """
ConfigMap CronJob DaemonSet Deployment HorizontalPodAutoscaler Ingress Job LimitRange Namespace
NetworkPolicy PersistentVolume PersistentVolumeClaim Pod PodDisruptionBudget PriorityClass
ResourceQuota Role RoleBinding ClusterRole ClusterRoleBinding RuntimeClass Secret Service
ServiceAccount StatefulSet StorageClass
""".split()


TEMPLATE = ("spec", "template", "spec")
# Where each kind has its pod, and the restart policies that it allows.
PODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Pod": (("spec",), pod_checks.POLICIES),
    "Deployment": (TEMPLATE, ("Always",)),
    "StatefulSet": (TEMPLATE, ("Always",)),
    "DaemonSet": (TEMPLATE, ("Always",)),
    "Job": (TEMPLATE, pod_checks.JOB_POLICIES),
    "CronJob": (("spec", "jobTemplate", *TEMPLATE), pod_checks.JOB_POLICIES),
}


def check(document: dict[str, Any], at: At) -> Iterator[Finding]:
    """Compares one object that is not KubeRay's with the schema of its kind.

    A kind of another project (a PodMonitor, say) cannot be checked here; that is logged.

    Args:
        document: The object.
        at: The top of the document.
    """
    name_findings = list(_name(document, at))
    yield from name_findings
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        if not name_findings:
            yield from _beyond_schema(without_nulls(document), at)
    except kubernetes_validate.ValidationError as error:
        yield _translate(error, at)
    except kubernetes_validate.SchemaNotFoundError:
        kind, version = document["kind"], document["apiVersion"]
        if _is_own(version.rpartition("/")[0]):
            near = nearest(kind, KINDS)
            found = f"{kind} of {version}"
            hint = f"'{near}'?" if near and near != kind else "another apiVersion?"
            allowed = f"a kind of Kubernetes {KUBERNETES}: {hint}"
            yield at("kind").finding(found, allowed, "kind")
        else:
            logger.warning("%s: not checked: no schema for %s", at.document, version)


def _is_own(group: str) -> bool:
    """Whether a kind of this group that has no schema is a typo, and not some other project's."""
    return "." not in group or group in OWN_GROUPS


def _name(document: dict[str, Any], at: At) -> Iterator[Finding]:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        yield at("metadata").finding(json.dumps(metadata), "an object with a name", RULE)
        return
    name = metadata.get("name")
    if name is None and not metadata.get("generateName"):
        yield at("metadata", "name").finding("no name", "a name", RULE)
        return
    # Roles and bindings may have other names: `system:node`.
    free = name is None or document["apiVersion"].startswith("rbac.")
    if not free and not (isinstance(name, str) and SUBDOMAIN.fullmatch(name)):
        allowed = "lower-case letters, digits, '-' and '.'"
        yield at("metadata", "name").finding(name, allowed, RULE)


def _beyond_schema(document: dict[str, Any], at: At) -> Iterator[Finding]:
    """What the API server refuses, too, though the schema does not say it."""
    kind, spec = document["kind"], document.get("spec", {})
    if kind == "NetworkPolicy":
        yield from selector_checks.check_policy(spec, at("spec"))
    if kind == "PodDisruptionBudget" and {"minAvailable", "maxUnavailable"} <= set(spec):
        place = at("spec", "maxUnavailable")
        yield place.finding("both", "either minAvailable or maxUnavailable", "disruption-budget")
    requests = spec.get("resources", {}).get("requests", {})
    if kind == "PersistentVolumeClaim" and "storage" not in requests:
        place = at("spec", "resources", "requests", "storage")
        yield place.finding("no size", "a size, such as 50Gi", "claim-size")
    if kind in ("Deployment", "StatefulSet", "DaemonSet"):
        wanted = spec.get("selector", {}).get("matchLabels", {})
        labels = spec.get("template", {}).get("metadata", {}).get("labels", {})
        for name, value in wanted.items():
            if labels.get(name) != value:
                place = at("spec", "selector", "matchLabels", name)
                yield place.finding(value, "a label of spec.template, too", "selector")
    path, policies = PODS.get(kind, ((), ()))
    pod: Any = document
    for key in path:
        pod = pod.get(key, {})
    if path and pod:
        # A StatefulSet mounts its claims by their names.
        claims = [
            {"name": each["metadata"]["name"]} for each in spec.get("volumeClaimTemplates", [])
        ]
        pod = pod | {"volumes": [*pod.get("volumes", []), *claims]}
        yield from pod_checks.check(pod, at(*path), policies)


def _translate(error: Any, at: At) -> Finding:
    """The first mistake that the validator found, with the field's name."""
    place, message = at(*error.absolute_path), error.message.replace("'null'", "null")
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        return place(unknown).finding("an unknown field", one_of(unknown, known), RULE)
    if error.validator == "required":
        missing = next(key for key in error.validator_value if f"'{key}'" in message)
        return place(missing).finding("no such field", "a value, which is required", RULE)
    if error.validator in ("type", "oneOf"):
        kinds = error.validator_value if error.validator == "type" else ["string", "number"]
        names = [kind for kind in kinds if kind != "null"] if isinstance(kinds, list) else [kinds]
        found = json.dumps(error.instance)
        return place.finding(found, f"of type {' or '.join(names)}", RULE)
    if error.validator == "enum":
        return place.finding(error.instance, ", ".join(map(str, error.validator_value)), RULE)
    return place.finding(error.instance, message, RULE)
