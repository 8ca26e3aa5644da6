"""CRDs from a directory, a cluster and a download; a wrong or missing one is refused."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_deploy import crds
from ray_shared.errors import UserError

from .checked import crds_directory

KINDS = {"RayCluster": "rayclusters", "RayCronJob": "raycronjobs", "RayJob": "rayjobs"}
KINDS["RayService"] = "rayservices"


def definition(kind: str) -> dict[str, Any]:
    schema = {"openAPIV3Schema": {"type": "object", "properties": {}}}
    return {
        "kind": "CustomResourceDefinition",
        "spec": {
            "group": "ray.io",
            "names": {"kind": kind, "plural": KINDS[kind]},
            "versions": [
                {"name": "v1", "served": True, "schema": schema},
                {"name": "v1alpha1", "served": False, "schema": schema},
            ],
        },
    }


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """The address of a web site with small CRDs, to which the pins fit, and its directory."""
    place = tmp_path / "site"
    place.mkdir()
    digests = {}
    for kind, plural in KINDS.items():
        content = yaml.safe_dump(definition(kind)).encode()
        (place / f"ray.io_{plural}.yaml").write_bytes(content)
        digests[f"ray.io_{plural}.yaml"] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(crds, "SHA256", digests)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=place))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", place
    server.shutdown()
    thread.join()
    server.server_close()


def test_directory_has_the_kinds_of_kuberay() -> None:
    found = crds.from_directory(crds_directory())
    assert {kind for version, kind in found if version == "ray.io/v1"} == set(KINDS)


def test_pinned_files_are_those_that_the_tests_use() -> None:
    files = sorted(crds_directory().glob("*.yaml"))
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert found == crds.SHA256


def test_directory_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"crds.path=.*none: no such directory"):
        crds.from_directory(tmp_path / "none")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(definition("RayJob")))
    with pytest.raises(UserError, match="no ray.io/v1 RayCluster, RayCronJob, RayService"):
        crds.from_directory(tmp_path)
    (tmp_path / "b.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"b\.yaml: .*must be a CRD"):
        crds.from_directory(tmp_path)


def test_cluster_is_asked_for_each_kind() -> None:
    asked = []

    def get(path: str) -> dict[str, Any]:
        asked.append(path)
        plural = path.rpartition("/")[2].removesuffix(".ray.io")
        return definition(next(kind for kind in KINDS if KINDS[kind] == plural))

    found = crds.from_cluster(get)
    assert set(found) == {("ray.io/v1", kind) for kind in KINDS}
    assert len(asked) == 4
    assert asked[0].startswith("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/")


def test_download_is_kept_and_not_repeated(tmp_path: Path, site: tuple[str, Path]) -> None:
    url, place = site
    first = crds.download(tmp_path / "cache", url)
    assert set(first) == {("ray.io/v1", kind) for kind in KINDS}
    for file in place.iterdir():
        file.unlink()
    assert crds.download(tmp_path / "cache", url) == first


def test_changed_cache_is_downloaded_again(tmp_path: Path, site: tuple[str, Path]) -> None:
    url, _ = site
    crds.download(tmp_path / "cache", url)
    changed = tmp_path / "cache" / "ray.io_rayjobs.yaml"
    changed.write_text("a: 1\n")
    crds.download(tmp_path / "cache", url)
    assert hashlib.sha256(changed.read_bytes()).hexdigest() == crds.SHA256[changed.name]


def test_download_of_another_file_is_refused(tmp_path: Path, site: tuple[str, Path]) -> None:
    url, place = site
    (place / "ray.io_rayjobs.yaml").write_text("kind: other\n")
    with pytest.raises(UserError, match=r"ray.io_rayjobs.yaml: has SHA-256 .*: must be"):
        crds.download(tmp_path / "cache", url)
    assert not (tmp_path / "cache" / "ray.io_rayjobs.yaml").exists()


def test_download_without_a_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crds=directory crds.path=") as caught:
        crds.download(tmp_path, "http://127.0.0.1:9/")
    assert "\n" not in str(caught.value)
