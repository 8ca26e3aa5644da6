"""What the API server refuses in labels, selectors and rules of network policies, beyond types.

Source: https://github.com/kubernetes/kubernetes, pkg/apis/core/validation/validation.go,
pkg/apis/networking/validation/validation.go and
staging/src/k8s.io/apimachinery/pkg/apis/meta/v1/validation/validation.go, 1.37
"""

import re
from collections.abc import Iterator
from typing import Any

from kuberay_deploy.findings import At, Finding
from kuberay_deploy.labels import LABEL_VALUE, is_cidr, is_label_key

WITH_VALUES, WITHOUT_VALUES, COMPARING = ("In", "NotIn"), ("Exists", "DoesNotExist"), ("Gt", "Lt")
PROTOCOLS = ("TCP", "UDP", "SCTP")
LABELS = ("labels", "matchLabels", "nodeSelector")


def check_labels(node: Any, at: At, key: str | int = "") -> Iterator[Finding]:
    """Checks all labels and selectors at any depth.

    Args:
        node: An object of Kubernetes, or a part of it, which has passed its schema.
        at: Its place.
        key: The last of the place's keys.
    """
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from check_labels(item, at(i), i)
    elif isinstance(node, dict):
        for name, item in node.items():
            # A group's own `labels` are Ray's: the operator's rule `label-syntax` knows them.
            if name in LABELS[1:] or (name == "labels" and key == "metadata"):
                yield from _map(item, at(name))
            elif name == "matchExpressions" and isinstance(item, list):
                for i, each in enumerate(item):
                    yield from _expression(each, at(name, i), key)
            else:
                yield from check_labels(item, at(name), name)


def _map(labels: Any, at: At) -> Iterator[Finding]:
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if not is_label_key(str(name)):
            allowed = "a label: 1 to 63 letters, digits, '-', '_' or '.'"
            yield at(name).finding(name, allowed, "label")
        if isinstance(value, str) and not LABEL_VALUE.fullmatch(value):
            allowed = "at most 63 letters, digits, '-', '_' or '.'"
            yield at(name).finding(value, allowed, "label")


def _expression(expression: Any, at: At, key: str | int) -> Iterator[Finding]:
    """One requirement of a selector; one of a node may also compare numbers."""
    if not isinstance(expression, dict):
        return
    operator, values = expression.get("operator"), expression.get("values") or []
    of_node = isinstance(key, int) or key == "preference"
    operators = (*WITH_VALUES, *WITHOUT_VALUES, *(COMPARING if of_node else ()))
    if operator not in operators:
        yield at("operator").finding(operator, f"one of {', '.join(operators)}", "selector")
    elif operator in WITH_VALUES and not values:
        yield at("values").finding("none", f"at least one with operator {operator}", "selector")
    elif operator in WITHOUT_VALUES and values:
        yield at("values").finding(values, f"none with operator {operator}", "selector")
    elif operator in COMPARING and not (
        len(values) == 1 and re.fullmatch(r"[+-]?[0-9]+", str(values[0]))
    ):
        yield at("values").finding(values, "one whole number", "selector")


def check_policy(spec: dict[str, Any], at: At) -> Iterator[Finding]:
    """Checks the addresses and ports of a NetworkPolicy.

    Args:
        spec: Its spec, which has passed its schema.
        at: The place of the spec.
    """
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(spec.get(direction) or []):
            place = at(direction, i)
            for j, peer in enumerate(rule.get(peers) or []):
                yield from _peer(peer, place(peers, j))
            for j, port in enumerate(rule.get("ports") or []):
                yield from _port(port, place("ports", j))
    for i, name in enumerate(spec.get("policyTypes") or []):
        if name not in ("Ingress", "Egress"):
            yield at("policyTypes", i).finding(name, "Ingress or Egress", "network-policy")


def _peer(peer: dict[str, Any], at: At) -> Iterator[Finding]:
    block = peer.get("ipBlock")
    if block is None:
        if not peer:
            yield at.finding("nothing", "a selector or an ipBlock", "network-policy")
        return
    ranges = [(block.get("cidr"), at("ipBlock", "cidr"))]
    ranges += [(e, at("ipBlock", "except", i)) for i, e in enumerate(block.get("except") or [])]
    for value, place in ranges:
        if not is_cidr(str(value)):
            yield place.finding(value, "a range such as 10.0.0.0/8", "network-policy")
    if len(peer) > 1:
        yield at.finding(" and ".join(peer), "an ipBlock alone, or selectors", "network-policy")


def _port(port: dict[str, Any], at: At) -> Iterator[Finding]:
    if port.get("protocol", "TCP") not in PROTOCOLS:
        allowed = f"one of {', '.join(PROTOCOLS)}"
        yield at("protocol").finding(port["protocol"], allowed, "network-policy")
    for key in ("port", "endPort"):
        number = port.get(key)
        if isinstance(number, int) and not 1 <= number <= 65535:
            yield at(key).finding(number, "1 to 65535", "network-policy")
