"""Several Ray nodes on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray_shared import cluster
from ray_shared.cluster import Demand
from ray_shared.groups import ClusterConfig
from ray_shared.report import Report

from .test_cluster_local import (
    cluster_id,
    family,
    listening_beyond_loopback,
    own_token,
)

SIMULATED = ClusterConfig(
    mode="simulated",
    address=None,
    num_cpus=1,
    num_nodes=2,
    dashboard=False,
    install=False,
    autoscaling=False,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return Report("tiny-job", tmp_path_factory.mktemp("out"), {})


@pytest.fixture(scope="module")
def simulated(ray_tmpdir: Path, report: Report) -> Iterator[Any]:
    with cluster.connect(SIMULATED, Demand(2, 1), report, "tiny_job") as handle:
        yield handle


def test_every_node_is_alive_with_its_cpus(simulated: Any, report: Report):
    assert [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"]] == [1, 1]
    assert report.resources["CPU"] == 2


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_client_without_the_token_is_refused(simulated: Any, token: str | None):
    assert cluster_id(simulated.address, own_token()) != b""
    with pytest.raises(grpc.RpcError) as caught:
        cluster_id(simulated.address, token)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_nothing_listens_beyond_the_loopback_interface(simulated: Any):
    assert listening_beyond_loopback([psutil.Process(), *family()]) == []
