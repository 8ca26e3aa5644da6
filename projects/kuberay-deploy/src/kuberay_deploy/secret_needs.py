"""Which secrets the pods of a manifest need: without one of them they never start, and say little.

Source: https://kubernetes.io/docs/concepts/configuration/secret/#using-a-secret
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kuberay_deploy.manifests import Document

TOKEN_KEY = "auth_token"
"""Where KubeRay's operator looks for Ray's token in `authOptions.secretName`."""


@dataclass(frozen=True)
class Need:
    """A secret that must be there before a document is applied."""

    user: str
    """The document that needs it: `RayJob/name`."""
    namespace: str
    name: str
    key: str | None
    """What must be in it; None: anything."""


def required_secrets(
    documents: Sequence[Document], namespace_of: Callable[[Document], str]
) -> list[Need]:
    """The secrets that the documents refer to, without those that are optional or among them.

    Args:
        documents: A manifest.
        namespace_of: The namespace of a document.
    """
    own = {
        (namespace_of(each), each["metadata"]["name"])
        for each in documents
        if each["kind"] == "Secret"
    }
    needs = {}
    for document in documents:
        user, namespace = (
            f"{document['kind']}/{document['metadata']['name']}",
            namespace_of(document),
        )
        for name, key in _references(document):
            if (namespace, name) not in own:
                needs[namespace, name, key] = Need(user, namespace, name, key)
    return list(needs.values())


def missing_key(need: Need, secret: Document) -> str | None:
    """The key that the secret should have and has not."""
    return None if need.key is None or need.key in secret.get("data", {}) else need.key


def _references(node: Any) -> Iterator[tuple[str, str | None]]:
    """Name and key of every secret that is mentioned in this part of a document."""
    if isinstance(node, list):
        for each in node:
            yield from _references(each)
    if not isinstance(node, dict):
        return
    for field, value in node.items():
        if field == "imagePullSecrets" and isinstance(value, list):
            yield from ((each["name"], None) for each in value)
        elif not isinstance(value, dict) or value.get("optional"):
            yield from _references(value) if isinstance(value, list) else ()
        elif field == "secretKeyRef":
            yield value["name"], value["key"]
        elif field == "secretRef":  # envFrom
            yield value["name"], None
        elif field == "secret" and ("secretName" in value or "name" in value):  # A volume.
            keys = [item["key"] for item in value.get("items", [])]
            yield from ((value.get("secretName") or value["name"], key) for key in keys or [None])
        elif field == "authOptions" and value.get("secretName"):
            yield value["secretName"], TOKEN_KEY
        else:
            yield from _references(value)
