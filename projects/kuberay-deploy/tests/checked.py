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

PROJECT = Path(__file__).resolve().parents[1]
GOOD = PROJECT / "tests" / "good"
# A copied starter has a noxfile of its own, and nothing to do with what lies around it.
REPOSITORY = None if (PROJECT / "noxfile.py").exists() else PROJECT.parents[1]

Change = Callable[[Any, Any], None]


def crds_directory() -> Path:
    """Where KubeRay's CRDs lie: in KUBERAY_CRDS, beside the repository, or downloaded.

    Without a network the test is skipped; where CI is set, they must be there.
    """
    named = os.environ.get("KUBERAY_CRDS")
    if named:
        return Path(named)
    if REPOSITORY is not None:
        beside = REPOSITORY.parent / "shared" / "kuberay-crds"
        if beside.is_dir():
            return beside
    cache = actions.cache_directory()
    error = _download(cache)
    if error is not None:
        end = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        end(f"NOT CHECKED against KubeRay's CRDs: set KUBERAY_CRDS ({error})")
    return cache


@functools.cache
def _download(cache: Path) -> str | None:
    """Why it failed; asked once in a process, because without a network it takes its time."""
    try:
        crds.download(cache)
    except UserError as error:
        return str(error)
    return None


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
