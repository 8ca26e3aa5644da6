"""Checks manifests before any cluster sees them: the schema, the operator's rules, and Ray itself.

Every check says which field is wrong. They run in the order in which a cluster would refuse: what
the API server does not take never reaches the operator, and so on.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from kuberay_deploy import core, cross_checks, operator_rules, schema, selector_checks
from kuberay_deploy.crds import Crds
from kuberay_deploy.findings import At, Finding, document_name, one_of, without_nulls
from kuberay_deploy.operator_features import DEFAULT_GATES

__all__ = ["DEFAULT_GATES", "Finding", "check"]

logger = logging.getLogger(__name__)
KINDS = ("RayCluster", "RayCronJob", "RayJob", "RayService")


def check(
    documents: Sequence[dict[str, Any]],
    crds: Crds | None,
    gates: Collection[str] = DEFAULT_GATES,
) -> list[Finding]:
    """Finds every mistake in a manifest that can be found without a cluster.

    Args:
        documents: The objects of the manifest, as `manifests.read` gives them.
        crds: KubeRay's definitions; without them the schema is not checked, which is logged.
        gates: The operator's feature gates that are on.

    Returns:
        The mistakes, in the order of the documents; empty if the manifest is good.
    """
    if crds is None:
        logger.warning("NO SCHEMA CHECKED: there are no CRDs (crds=directory crds.path=...)")
    findings = list(cross_checks.repeated_documents(list(documents)))
    for document in documents:
        findings += _check_document(document, crds, gates)
    return list(dict.fromkeys(findings))


def _check_document(
    document: dict[str, Any], crds: Crds | None, gates: Collection[str]
) -> Iterator[Finding]:
    at = At(document_name(document))
    kind, version = document.get("kind"), document.get("apiVersion")
    for key, value in (("apiVersion", version), ("kind", kind)):
        if not isinstance(value, str) or not value:
            yield at(key).finding(value, "a text, such as ray.io/v1 and RayJob", "kind")
            return
    yield from selector_checks.check_labels(document, at)
    if str(version).partition("/")[0] != "ray.io":
        yield from core.check(document, at)
    elif kind not in KINDS:
        yield at("kind").finding(kind, one_of(str(kind), KINDS), "kind")
    elif (version, kind) not in (crds or {("ray.io/v1", kind)}):
        yield at("apiVersion").finding(version, "ray.io/v1", "kind")
    elif crds is None:
        yield from _without_schema(document, at, gates)
    else:
        stored, findings = schema.check(document, crds[(str(version), str(kind))], at)
        yield from findings
        if not schema.shape_is_wrong(findings):
            yield from _rules(stored, at, gates)


def _rules(document: dict[str, Any], at: At, gates: Collection[str]) -> Iterator[Finding]:
    if document["kind"] == "RayCronJob" and "RayCronJob" not in gates:
        logger.warning("%s: needs the operator's feature gate RayCronJob", at.document)
    yield from operator_rules.check(document, at, gates)
    yield from cross_checks.check(document, at)


def _without_schema(document: dict[str, Any], at: At, gates: Collection[str]) -> Iterator[Finding]:
    """The rules alone. They rely on the types that the schema would have made sure of."""
    try:
        yield from _rules(without_nulls(document), at, gates)
    except (TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        reason = f"a value of the wrong type or no value ({error})"
        yield at.finding(reason, "what the CRD says", "shape")
