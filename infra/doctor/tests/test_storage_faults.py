"""Storage that one node cannot write, and storage that is not the same everywhere."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_shared.testing import free_port
from ray_shared.testing_s3 import S3Server

from .clinic import Clinic, opened

pytestmark = pytest.mark.fault
BUCKET = "storage.path=s3://runs/mine"


@pytest.fixture(scope="module")
def clinic(
    ray_tmpdir: Path, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clinic]:
    s3_server.create_bucket("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("first"))
        with opened(tmp_path_factory.mktemp("out"), "cluster.num_nodes=1") as clinic:
            yield clinic


def test_bucket_that_all_nodes_reach(clinic: Clinic):
    with clinic.third():
        checks = clinic.examine(BUCKET)
    assert clinic.blamed(checks) == {}
    expected = "s3://runs/mine: written by 2 node(s) and read by all others"
    assert checks["storage"].found == expected


def test_bucket_that_one_node_does_not_reach(clinic: Clinic):
    with clinic.third({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}) as node:
        checks = clinic.examine(BUCKET)
    assert clinic.blamed(checks) == {"storage": "failed"}
    found = checks["storage"].found
    assert found.startswith(f"s3://runs/mine: not writable: {node.called}: ")


def test_storage_that_every_node_has_for_itself(clinic: Clinic):
    """As a local directory on several machines: all can write, and nobody sees the others."""
    other = S3Server(os.environ["MOTO_SERVER"])
    try:
        other.create_bucket("runs")
        with clinic.third({"AWS_ENDPOINT_URL": other.endpoint}) as node:
            checks = clinic.examine(BUCKET)
    finally:
        other.close()
    assert clinic.blamed(checks) == {"storage": "failed"}
    found = checks["storage"].found
    assert found.startswith("s3://runs/mine: not shared: ")
    assert f"{node.called} does not read what 127.0.0.1/" in found
    assert f"does not read what {node.called} wrote" in found
