"""Good manifests, KubeRay's CRDs, and ways to break one field."""

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kuberay_deploy import actions, crds, manifests, validate
from kuberay_deploy.manifests import Document
from ray_shared.errors import UserError

GOOD = Path(__file__).parent / "good"
ROOT = Path(__file__).parents[3]

Change = Callable[[Any, Any], None]


def crds_directory() -> Path:
    """Where KubeRay's CRDs lie: KUBERAY_CRDS, or beside the repository; in a CI also downloaded."""
    path = Path(os.environ.get("KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay-crds")
    if path.is_dir():
        return path
    reason = f"NOT CHECKED against KubeRay's CRDs: {path} is missing; set KUBERAY_CRDS"
    if os.environ.get("CI") != "true":
        pytest.skip(reason)
    try:
        crds.download(actions.cache_directory())
    except UserError as error:
        pytest.fail(f"{reason} ({error})")
    return actions.cache_directory()


@functools.cache
def _crds(path: Path) -> crds.Crds:
    return crds.from_directory(path)


def check(documents: list[Document], **options: Any) -> list[validate.Finding]:
    """The mistakes in some documents."""
    return validate.check(documents, _crds(crds_directory()), **options)


def good(name: str) -> list[Document]:
    """The documents of one of the good manifests, to be changed at will."""
    return copy.deepcopy(manifests.read(GOOD / f"{name}.yaml"))


def change(documents: list[Document], path: str, how: Any) -> list[Document]:
    """Changes one field of the first document.

    Args:
        documents: Changed in place.
        path: Keys and indices with a space between them: `spec workerGroupSpecs 0 groupName`.
        how: A value to set, or `renamed(...)` or `dropped`.
    """
    *above, last = [int(key) if key.isdecimal() else key for key in path.split()]
    place: Any = documents[0]
    for key in above:
        if isinstance(place, dict) and key not in place:
            place[key] = {}
        place = place[key]
    if callable(how):
        how(place, last)
    else:
        place[last] = how
    return documents


def dropped(place: Any, key: Any) -> None:
    del place[key]


def renamed(name: str) -> Change:
    def rename(place: Any, key: Any) -> None:
        place[name] = place.pop(key)

    return rename


def appended(*items: Any) -> Change:
    def append(place: Any, key: Any) -> None:
        place[key] = [*place.get(key, []), *items]

    return append


def broken(name: str, path: str, how: Any) -> list[validate.Finding]:
    """The mistakes in a good manifest after one change."""
    return check(change(good(name), path, how))
