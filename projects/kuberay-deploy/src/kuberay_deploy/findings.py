"""What is wrong with a manifest: one line each, with the place, what stands there, what may."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Finding:
    """One mistake in a manifest."""

    where: str
    """Kind, name and field: `RayJob/train: spec.rayClusterSpec.rayVersion`."""
    found: str
    """What stands there."""
    allowed: str
    """What could stand there."""
    rule: str
    """The name of the rule that it breaks."""

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.where}: found {self.found}; allowed: {self.allowed} [{self.rule}]"


@dataclass(frozen=True)
class At:
    """A place in a document, which a rule carries down to the field that it speaks about."""

    document: str
    """Kind and name: `RayJob/train`."""
    path: str = ""
    """The fields down to here: `spec.workerGroupSpecs[0]`; empty at the top."""

    def __call__(self, *keys: str | int) -> "At":
        """The place below: `at("spec", "workerGroupSpecs", 0)`."""
        path = self.path
        for key in keys:
            if isinstance(key, int):
                path += f"[{key}]"
            elif PLAIN_KEY.fullmatch(key):
                path += f".{key}" if path else key
            else:
                path += f"['{key}']"
        return At(self.document, path)

    def finding(self, found: object, allowed: str, rule: str) -> Finding:
        """A mistake at this place; long values are cut."""
        text = "true" if found is True else "false" if found is False else str(found)
        text = " ".join(text.split())
        shown = text if len(text) <= 120 else f"{text[:117]}..."
        return Finding(f"{self.document}: {self.path or 'document'}", shown or "''", allowed, rule)


def document_name(document: Mapping[str, Any]) -> str:
    """`RayJob/train`, as far as the document says."""
    metadata = document.get("metadata")
    name = metadata.get("name") or metadata.get("generateName") if isinstance(metadata, dict) else 0
    return f"{document.get('kind') or 'no kind'}/{name or 'no name'}"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that looks most like this one, unless none does."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=cutoff)
    return lower[near[0]] if near else None


def one_of(word: str, known: Iterable[str]) -> str:
    """`'maxReplicas'` for a near miss; else the list of what is known."""
    names = sorted(known)
    near = nearest(word, names)
    return f"'{near}'" if near else f"one of {', '.join(names)}" if names else "no field at all"


def without_nulls(value: Any) -> Any:
    """The value without the nulls in it, which the API server prunes."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
