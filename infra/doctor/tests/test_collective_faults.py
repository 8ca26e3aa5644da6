"""NCCL between nodes of which Ray was told that they have a GPU, where there is none."""

from pathlib import Path

import pytest
from ray_shared.testing import many_nodes

from .conftest import StartJob

pytestmark = pytest.mark.fault


def test_nccl_without_the_gpus(start: StartJob, tmp_path: Path):
    """gloo passes; NCCL gets its two workers, which PyTorch refuses."""
    with many_nodes([]) as cluster:
        for _ in range(2):
            address = {"node_ip_address": "127.0.0.1", "dashboard_port": None}
            cluster.add_node(num_cpus=1, num_gpus=1, **address)
        overrides = [f"cluster.address={cluster.address}", "doctor.checklist=false"]
        with start("cluster=existing", *overrides) as job:
            assert job.wait() == 1, job.output()
            result = job.result()
    assert result["error"] == "2 checks failed: GPUs, NCCL"
    checks = {check["name"]: check for check in result["metrics"]["checks"]}
    assert checks["GPUs"]["found"].count("Ray was told 1") == 2
    assert checks["gloo"]["status"] == "ok"
    assert checks["NCCL"]["found"].startswith("127.0.0.1/")
    assert "NCCL" in checks["NCCL"]["found"]  # PyTorch's own words.
