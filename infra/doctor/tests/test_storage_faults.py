"""Storage that one node cannot write, and storage that is not the same everywhere."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_shared.testing import free_port
from ray_shared.testing_s3 import S3Server

from .simulated import SimulatedCluster, simulate

pytestmark = pytest.mark.fault
BUCKET = "storage.path=s3://runs/mine"


@pytest.fixture(scope="module")
def simulated(
    ray_tmpdir: Path, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimulatedCluster]:
    s3_server.create_bucket("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("first"))
        with simulate(tmp_path_factory.mktemp("out"), "cluster.num_nodes=1") as simulated:
            yield simulated


def test_bucket_that_all_nodes_reach(simulated: SimulatedCluster):
    with simulated.extra_node():
        checks = simulated.examine(BUCKET)
    assert simulated.problems(checks) == {}
    expected = "s3://runs/mine: written by 2 node(s) and read by all others"
    assert checks["storage"].found == expected


def test_bucket_that_one_node_does_not_reach(simulated: SimulatedCluster):
    with simulated.extra_node({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}) as node:
        checks = simulated.examine(BUCKET)
    assert simulated.problems(checks) == {"storage": "failed"}
    found = checks["storage"].found
    assert found.startswith(f"s3://runs/mine: not writable: {node.shown_as}: ")


def test_storage_that_every_node_has_for_itself(simulated: SimulatedCluster):
    """As a local directory on several machines: all can write, and nobody sees the others."""
    other = S3Server(os.environ["MOTO_SERVER"])
    try:
        other.create_bucket("runs")
        with simulated.extra_node({"AWS_ENDPOINT_URL": other.endpoint}) as node:
            checks = simulated.examine(BUCKET)
    finally:
        other.close()
    assert simulated.problems(checks) == {"storage": "failed"}
    found = checks["storage"].found
    assert found.startswith("s3://runs/mine: not shared: ")
    assert f"{node.shown_as} does not read what 127.0.0.1/" in found
    assert f"does not read what {node.shown_as} wrote" in found
