"""How a connection ends, each time with a cluster of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
from ray_shared import cluster
from ray_shared.cluster import Demand
from ray_shared.errors import UserError
from ray_shared.report import Report
from ray_shared.testing import wait_for

from .test_cluster_local import LOCAL, family, running
from .test_cluster_simulated import SIMULATED


@contextmanager
def everything_ends() -> Iterator[list[psutil.Process]]:
    """Fails if a process that the block put into the list outlives the block."""
    before = family()
    seen: list[psutil.Process] = []
    yield seen
    assert not ray.is_initialized()
    wait_for(lambda: not running(seen), "end of the cluster's processes", 10)
    assert [p for p in running(family()) if p not in before] == []


def breaks(seen: list[psutil.Process]) -> None:
    seen.extend(family())
    assert sum(p.name() == "raylet" for p in seen) == 2
    raise RuntimeError("broken")


@pytest.mark.fault
def test_exception_in_the_block_stops_every_node(ray_tmpdir: Path, tmp_path: Path):
    report = Report("tiny-job", tmp_path, {})
    with (
        everything_ends() as seen,
        pytest.raises(RuntimeError, match="broken"),
        cluster.connect(SIMULATED, Demand(1, 1), report, "tiny_job"),
    ):
        breaks(seen)
    assert report.timings.keys() == {"startup_s", "shutdown_s"}


def test_gpu_that_is_absent_is_refused_and_leaves_no_process(ray_tmpdir: Path, tmp_path: Path):
    demand = Demand(1, 1, gpus_per_worker=1)
    with (
        everything_ends(),
        pytest.raises(UserError, match=r"scaling\.use_gpu=true: the cluster has no GPU"),
        cluster.connect(LOCAL, demand, Report("tiny-job", tmp_path, {}), "tiny_job"),
    ):
        pass
