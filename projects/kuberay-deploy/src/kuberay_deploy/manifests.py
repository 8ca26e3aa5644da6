"""Reads Kubernetes manifests as `kubectl` reads them, but refuses what it would silently lose.

YAML lets a later key replace an earlier one of the same name, and PyYAML turns `2026-01-01` into
a date. Kubernetes wants JSON: unique keys, and dates as text.
"""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from ray_shared.errors import UserError

Document = dict[str, Any]


class KubernetesLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader with the types that JSON has."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuses a key that is there twice, and makes every key a string."""
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            name = self._key(key_node)
            if name in seen:
                raise _problem(key_node, f"the key '{name}', which line {seen[name]} already has")
            seen[name] = key_node.start_mark.line + 1
        self.flatten_mapping(node)
        return {self._key(key): self.construct_object(value, deep) for key, value in node.value}

    def _key(self, node: yaml.Node) -> str:
        key = self.construct_object(node, deep=True)
        if not isinstance(key, str | int | float):
            raise _problem(node, "a key that is no text")
        return str(key).lower() if isinstance(key, bool) else str(key)


# A copy, because PyYAML shares the table between its loaders.
KubernetesLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":value"))]
    for first, found in KubernetesLoader.yaml_implicit_resolvers.items()
}


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | str:
    """`0o644`, YAML 1.2's octal, is a number; `12:30`, YAML 1.1's base 60, is text."""
    if ":" in node.value:
        return str(node.value)
    if node.value.startswith("0o"):
        return int(node.value[2:], 8)
    return int(yaml.SafeLoader.construct_yaml_int(loader, node))


KubernetesLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
KubernetesLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+$"), ["0"])


def read(path: Path) -> list[Document]:
    """The documents of a manifest; those of a `List` one by one, empty ones left out.

    Raises:
        UserError: If there is no such file, it is no YAML, has a key twice or holds no documents.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is no UTF-8: a manifest is text") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: must be a readable YAML file") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> list[Document]:
    """The documents of a text.

    Args:
        text: YAML, or JSON, which is YAML too.
        name: Its file, for messages.

    Raises:
        UserError: As `read`.
    """
    documents: list[Document] = []
    loader = KubernetesLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            content = loader.construct_document(node)
            # No binary, no set, no list within itself.
            json.dumps(content, allow_nan=False)
            line = node.start_mark.line + 1
            for document in _items(content):
                if document is None:
                    continue
                if not isinstance(document, dict):
                    kind = "a list" if isinstance(document, list) else "a value"
                    allowed = "an object with apiVersion and kind; '---' stands between two"
                    raise UserError(f"{name}: line {line}: found {kind}; allowed: {allowed}")
                documents.append(document)
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise UserError(f"{name}: line {line}: found {error.problem}; allowed: YAML") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{name}: {error}: must be YAML that could be JSON") from None
    finally:
        loader.dispose()
    if not documents:
        raise UserError(f"{name}: holds no document: must hold Kubernetes objects")
    return documents


def _items(content: Any) -> list[Any]:
    if isinstance(content, dict) and content.get("kind") == "List":
        items = content.get("items")
        return items if isinstance(items, list) else [content]
    return [content]


def _problem(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
