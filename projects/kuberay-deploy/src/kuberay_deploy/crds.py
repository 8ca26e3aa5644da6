"""Where the schemas of KubeRay's kinds come from: a directory, the cluster, or a pinned download.

The files are KubeRay's own CustomResourceDefinitions. They are 4 MB and not part of this package.

Source: https://github.com/ray-project/kuberay/tree/v1.7.0/ray-operator/config/crd/bases
"""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ray_shared.errors import UserError

VERSION = "1.7.0"
URL = "https://raw.githubusercontent.com/ray-project/kuberay/v{version}/ray-operator/config/crd/bases/"
PLURALS = ("rayclusters", "raycronjobs", "rayjobs", "rayservices")
# SHA-256 of the four files of VERSION: another file is another schema.
SHA256 = {
    "ray.io_rayclusters.yaml": ("c44704442eef0c6721ad40c1d66782c8bd3fdab9d3344306a5820910a679baa1"),
    "ray.io_raycronjobs.yaml": ("31c2c753bba01f7e8e89cb8e8c504131b58ee42090ca536d87f5ac27605a568e"),
    "ray.io_rayjobs.yaml": ("01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5"),
    "ray.io_rayservices.yaml": ("0a8fc325e6e22b9231c1f282b309555e2ecf94227ca20a03df3d1d9a403907ab"),
}
API_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.ray.io"
TIMEOUT_S = 30

Schema = dict[str, Any]
Crds = dict[tuple[str, str], Schema]
"""The schema of each `(apiVersion, kind)`: `("ray.io/v1", "RayJob")`."""


def from_directory(path: Path) -> Crds:
    """The definitions in the YAML files of a directory.

    Raises:
        UserError: If there is no such directory, or one of the four kinds is not in it.
    """
    if not path.is_dir():
        raise UserError(f"crds.path={path}: no such directory: must hold KubeRay's CRDs")
    files = sorted({*path.glob("*.yaml"), *path.glob("*.yml")})
    stamps = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _read_files(stamps, f"crds.path={path}")


def from_cluster(get: Callable[[str], dict[str, Any]]) -> Crds:
    """The definitions that a cluster has, which may be of another version of KubeRay.

    Args:
        get: Answers a path of the API server with the object there, as `kubectl get --raw` does.

    Raises:
        UserError: If one of the four kinds is not there; and whatever `get` raises.
    """
    found = [get(API_PATH.format(plural=plural)) for plural in PLURALS]
    return _schemas(found, "crds=cluster")


def download(cache: Path, url: str = URL.format(version=VERSION)) -> Crds:
    """The definitions of KubeRay 1.7.0, from the cache or else from GitHub.

    Args:
        cache: A directory to keep them in; each file is checked whenever it is read.
        url: Where the files lie.

    Raises:
        UserError: If a file cannot be had, or is not the one that was pinned.
    """
    try:
        _fill(cache, url)
    except OSError as error:
        hint = "must be a directory to write into, $XDG_CACHE_HOME or ~/.cache"
        raise UserError(f"crds=download: {cache}: {error.strerror}: {hint}") from None
    stamps = tuple((cache / name, 0, 0) for name in SHA256)
    return _read_files(stamps, f"crds=download in {cache}")


def _fill(cache: Path, url: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    for name, digest in SHA256.items():
        file = cache / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            content = _fetch(url + name)
            got = hashlib.sha256(content).hexdigest()
            if got != digest:
                raise UserError(f"{url}{name}: has SHA-256 {got}: must be {digest}")
            # A half-written file must never stand under its name.
            part = file.with_suffix(".part")
            part.write_bytes(content)
            part.replace(file)


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read()
            return content
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        hint = "must be reachable; without a network use crds=directory crds.path=..."
        raise UserError(f"crds=download: {url}: {reason}: {hint}") from None


@lru_cache(maxsize=4)
def _read_files(stamps: tuple[tuple[Path, int, int], ...], origin: str) -> Crds:
    """Reads them once in a process: they take seconds. `stamps` are files as they are now."""
    documents: list[dict[str, Any]] = []
    for file, *_ in stamps:
        try:
            # Not through `manifests`, which takes twice as long; nobody writes these by hand.
            found = yaml.load_all(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            documents += [document for document in found if isinstance(document, dict)]
        except (yaml.YAMLError, OSError) as error:
            raise UserError(f"{file}: {' '.join(str(error).split())}: must be a CRD") from None
    return _schemas(documents, origin)


def _schemas(documents: Iterable[dict[str, Any]], origin: str) -> Crds:
    crds: Crds = {}
    for document in documents:
        spec = document.get("spec", {})
        if document.get("kind") != "CustomResourceDefinition" or spec.get("group") != "ray.io":
            continue
        for version in spec["versions"]:
            if version.get("served"):
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                crds[key] = version["schema"]["openAPIV3Schema"]
    kinds = ("RayCluster", "RayCronJob", "RayJob", "RayService")
    missing = [kind for kind in kinds if ("ray.io/v1", kind) not in crds]
    if missing:
        raise UserError(f"{origin}: no ray.io/v1 {', '.join(missing)}: must be KubeRay {VERSION}'s")
    return crds
