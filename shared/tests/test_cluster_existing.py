"""Joining a cluster that runs already."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
from ray_shared import cluster
from ray_shared.cluster import Demand
from ray_shared.errors import UserError
from ray_shared.groups import ClusterConfig
from ray_shared.report import Report
from ray_shared.testing import free_port, many_nodes, wait_for

from .conftest import StartJob

EXISTING = ClusterConfig(
    mode="existing",
    address="127.0.0.1:6379",
    num_cpus=None,
    num_nodes=1,
    dashboard=False,
    install=False,
    autoscaling=False,
)


@pytest.fixture(scope="module")
def running_cluster(ray_tmpdir: Path) -> Iterator[Any]:
    with many_nodes([1, 1]) as nodes:
        yield nodes


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report("tiny-job", tmp_path, {})


def refusal(config: ClusterConfig, demand: Demand, report: Report) -> tuple[str, float]:
    """The sentence, and after how many seconds it came."""
    started = time.monotonic()
    with (
        pytest.raises(UserError) as caught,
        cluster.connect(config, demand, report, "tiny_job"),
    ):
        pass
    assert not ray.is_initialized()
    return str(caught.value), time.monotonic() - started


def test_joined_cluster_gets_the_packages_and_goes_on_afterwards(
    running_cluster: Any, report: Report
):
    config = replace(EXISTING, address=running_cluster.address)
    for _ in range(2):
        with cluster.connect(config, Demand(2, 1), report, "tiny_job") as handle:
            assert handle is None
            assert report.resources["CPU"] == 2
            # A lambda travels by value; a function of this module would need the module there.
            where = ray.remote(num_cpus=1)(lambda m: __import__(m).__file__)
            for module in ("tiny_job", "ray_shared"):
                # Not from the driver's directories, which only this machine has.
                assert "py_modules_files" in ray.get(where.remote(module), timeout=60)
    assert all(node.all_processes for node in running_cluster.list_all_nodes())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_the_job_and_not_the_cluster(
    running_cluster: Any, start: StartJob, signum: signal.Signals, code: int
):
    address = f"cluster.address={running_cluster.address}"
    with start("action=wait_connected", "cluster=existing", address) as job:
        wait_for(lambda: "the job waits" in job.output(), "cluster", 60)
        started = time.monotonic()
        job.process.send_signal(signum)
        assert job.wait(60) == code, job.output()
        # Ray's own handler would drain a node first, for half a minute.
        assert time.monotonic() - started < 15
    assert job.result()["status"] == "failed"
    assert job.result()["timings"].keys() == {"startup_s", "shutdown_s"}
    assert len(running_cluster.list_all_nodes()) == 2
    assert all(node.any_processes_alive() for node in running_cluster.list_all_nodes())


@pytest.mark.fault  # pip builds an environment for the job.
def test_third_party_packages_are_installed_on_request(
    ray_tmpdir: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    info = tmp_path / "ray_ref_tiny_job-0.1.dist-info"
    info.mkdir()
    requires = "Requires-Dist: ray-ref-shared\nRequires-Dist: iniconfig==2.0.0\n"
    named = "Metadata-Version: 2.1\nName: ray-ref-tiny-job\nVersion: 0.1\n"
    (info / "METADATA").write_text(named + requires)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert metadata.version("iniconfig") != "2.0.0"
    # One node: two on one machine would build the environment in the same folder.
    with many_nodes([1]) as nodes:
        config = replace(EXISTING, address=nodes.address, install=True)
        with cluster.connect(config, Demand(1, 1), report, "tiny_job"):
            version = ray.remote(num_cpus=1)(
                lambda: __import__("importlib.metadata").metadata.version("iniconfig")
            )
            assert ray.get(version.remote(), timeout=180) == "2.0.0"


def test_too_many_workers_are_refused(running_cluster: Any, report: Report):
    config = replace(EXISTING, address=running_cluster.address)
    message, seconds = refusal(config, Demand(3, 1), report)
    assert message.startswith("scaling.num_workers=3: each needs 1 CPU, and the cluster (2 node(s)")
    assert seconds < 15


def test_too_many_workers_are_not_refused_where_nodes_can_come(
    running_cluster: Any, report: Report
):
    config = replace(EXISTING, address=running_cluster.address, autoscaling=True)
    with cluster.connect(config, Demand(3, 1), report, "tiny_job"):
        assert ray.is_initialized()


def test_address_without_a_cluster_is_refused_soon(ray_tmpdir: Path, report: Report):
    cluster.ensure_token()
    config = replace(EXISTING, address=f"127.0.0.1:{free_port()}")
    message, seconds = refusal(config, Demand(1, 1), report)
    assert message.startswith(f"cluster.address={config.address}: no cluster answers there (")
    assert seconds < 10


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "ray://head:x"])
def test_malformed_address_is_refused(address: str, report: Report, monkeypatch: Any):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    message, _ = refusal(replace(EXISTING, address=address), Demand(1, 1), report)
    assert message == f"cluster.address={address}: must be host:port of a Ray cluster"


def test_no_token_is_refused_before_anything_is_asked(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    message, seconds = refusal(EXISTING, Demand(1, 1), report)
    assert message.startswith("cluster.address=127.0.0.1:6379: no token to join with; set RAY_AUTH")
    assert seconds < 5


def test_token_in_the_home_directory_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    cluster.ensure_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.fault  # Ray tries for 20 seconds.
def test_wrong_token_is_refused(running_cluster: Any, start: StartJob):
    # In a process of its own: Ray keeps the first token that it has read.
    overrides = ["cluster=existing", f"cluster.address={running_cluster.address}"]
    with start("action=wait_connected", *overrides, env={"RAY_AUTH_TOKEN": "0" * 64}) as job:
        assert job.wait(90) == 2, job.output()
    assert "the cluster refused the connection: check its version" in job.output()
    assert "Traceback" not in job.output()
