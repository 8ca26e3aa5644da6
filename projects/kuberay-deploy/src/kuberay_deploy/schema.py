"""Checks an object against its CustomResourceDefinition, as strictly as `kubectl apply` does.

The API server prunes nulls, applies defaults, and only then looks at the schema; `kubectl` asks it
to refuse unknown fields (`fieldValidation=Strict`). The rules in CEL come last. Rules about a
change (`oldSelf`) do not concern a new object.

Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

import copy
import datetime
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import celpy
from jsonschema import Draft202012Validator, FormatChecker

from kuberay_deploy.findings import At, Finding, one_of

RULE = "schema"
Schema = dict[str, Any]

STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
# A CRD says only that `metadata` is an object; the API server knows what is in it.
OBJECT_META: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": STRINGS,
        "annotations": STRINGS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "name": {"type": "string"},
                    "uid": {"type": "string"},
                    "controller": {"type": "boolean"},
                    "blockOwnerDeletion": {"type": "boolean"},
                },
                "required": ["apiVersion", "kind", "name", "uid"],
            },
        },
        # What the API server writes itself: an object that was read from it has them.
        "uid": {"type": "string"},
        "resourceVersion": {"type": "string"},
        "generation": {"type": "integer"},
        "creationTimestamp": {"type": "string", "format": "date-time"},
        "deletionTimestamp": {"type": "string", "format": "date-time"},
        "deletionGracePeriodSeconds": {"type": "integer"},
        "selfLink": {"type": "string"},
        "managedFields": {
            "type": "array",
            "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    },
}
FORMATS = FormatChecker(formats=[])
JSON_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


@FORMATS.checks("int32")
def _is_int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@FORMATS.checks("int64")
def _is_int64(value: object) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


@FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or bool(datetime.datetime.fromisoformat(value))


def check(document: dict[str, Any], schema: Schema, at: At) -> tuple[dict[str, Any], list[Finding]]:
    """Compares one object with the schema of its kind.

    Args:
        document: The object as it was written; it is left as it is.
        schema: The `openAPIV3Schema` of its CRD.
        at: The top of the document.

    Returns:
        The object as the API server would store it, without unknown fields, and the mistakes.
    """
    properties = schema["properties"] | {"metadata": OBJECT_META}
    # Without a spec the API server would take it, and the operator fail.
    schema = schema | {"properties": properties, "required": ["metadata", "spec"]}
    findings: list[Finding] = []
    stored = _store(document, schema, at, findings)
    errors = Draft202012Validator(schema, format_checker=FORMATS).iter_errors(stored)
    findings += [_translate(error, at) for error in sorted(errors, key=lambda e: str(e.json_path))]
    if not findings:
        findings += _cel_findings(stored, schema, at)
    return stored, findings


def shape_is_wrong(findings: list[Finding]) -> bool:
    """Whether more than unknown fields is wrong, so that rules cannot rely on the types."""
    return any(finding.rule != "unknown-field" for finding in findings)


def _store(value: Any, schema: Schema, at: At, findings: list[Finding]) -> Any:
    """Prunes nulls and unknown fields, applies defaults and looks for keys that are there twice."""
    if isinstance(value, dict):
        return _store_object(value, schema, at, findings)
    if isinstance(value, list):
        items = schema.get("items", {})
        stored = [_store(item, items, at(i), findings) for i, item in enumerate(value)]
        findings += _repeated(stored, schema, at)
        return stored
    return value


def _store_object(
    value: dict[str, Any], schema: Schema, at: At, findings: list[Finding]
) -> dict[str, Any]:
    properties: Schema = schema.get("properties", {})
    additional = schema.get("additionalProperties")
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "type" not in schema
    stored = {}
    for key, item in value.items():
        below = properties.get(key, additional if isinstance(additional, dict) else None)
        if below is None:
            if open_ended or additional is True:
                stored[key] = item
            else:
                allowed = one_of(key, properties)
                findings.append(at(key).finding("an unknown field", allowed, "unknown-field"))
        elif item is not None or below.get("nullable"):
            stored[key] = _store(item, below, at(key), findings)
    for key, below in properties.items():
        if "default" in below and key not in stored:
            stored[key] = _store(copy.deepcopy(below["default"]), below, at(key), findings)
    return stored


def _repeated(items: list[Any], schema: Schema, at: At) -> Iterator[Finding]:
    """Two items of a list that must differ: the same name, the same port."""
    kind = schema.get("x-kubernetes-list-type")
    keys = schema.get("x-kubernetes-list-map-keys", [])
    seen: list[Any] = []
    for i, item in enumerate(items):
        if kind == "map" and isinstance(item, dict):
            identity: Any = {key: item[key] for key in keys if key in item}
            shown = ", ".join(f"{key}: {identity[key]}" for key in identity)
        elif kind == "set":
            identity, shown = item, str(item)
        else:
            continue
        if identity in seen:
            text = f"{shown} for the second time"
            yield at(i).finding(text, f"another {' and '.join(keys) or 'value'}", "repeated-key")
        seen.append(identity)


def _translate(error: Any, at: At) -> Finding:
    """A message of jsonschema as a finding that names the field."""
    place = at(*error.absolute_path)
    kind, wanted, value = error.validator, error.validator_value, error.instance
    if kind == "required":
        missing = next(name for name in wanted if f"'{name}'" in error.message)
        return place(missing).finding("no such field", "a value, which is required", RULE)
    named = {"object": "an object", "array": "an array", "integer": "an integer"}
    if kind == "type":
        allowed = named.get(wanted, f"a {wanted}")
        found = f"{json.dumps(value)}, {JSON_TYPES[type(value)]}"
        return place.finding(found, allowed, RULE)
    allowed = {
        "enum": lambda: f"one of {', '.join(map(str, wanted))}",
        "minimum": lambda: f">= {wanted}",
        "maximum": lambda: f"<= {wanted}",
        "minLength": lambda: f"at least {wanted} characters",
        "maxLength": lambda: f"at most {wanted} characters",
        "minItems": lambda: f"at least {wanted} items",
        "maxItems": lambda: f"at most {wanted} items",
        "anyOf": lambda: "an integer or a string",
        "pattern": lambda: _pattern(wanted),
        "format": lambda: f"of the format {wanted}",
    }.get(str(kind), lambda: error.message)()
    return place.finding(value, allowed, RULE)


def _pattern(pattern: str) -> str:
    if "numkMGTPE" in pattern:
        return "a quantity such as 2, 500m or 4Gi"
    return f"what matches {pattern}"


def _cel_findings(value: Any, schema: Schema, at: At) -> Iterator[Finding]:
    """The rules of the schema, from the top down."""
    for rule in schema.get("x-kubernetes-validations", []):
        if not re.search(r"\boldSelf\b", rule["rule"]) and not _holds(rule["rule"], value):
            allowed = rule.get("message") or f"what fulfils {rule['rule']}"
            found = value if not isinstance(value, dict) else f"the fields {', '.join(value)}"
            yield at.finding(found, allowed, "cel")
    if isinstance(value, dict):
        properties, additional = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            below = properties.get(key, additional)
            if isinstance(below, dict):
                yield from _cel_findings(item, below, at(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _cel_findings(item, schema.get("items", {}), at(i))


def _holds(rule: str, value: Any) -> bool:
    result = _program(rule).evaluate({"self": celpy.json_to_cel(value)})
    return bool(result)


@lru_cache(maxsize=256)
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
