"""A fresh cluster on this machine: closed to others, and gone when the job ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray_shared import cluster
from ray_shared.cluster import Demand
from ray_shared.errors import UserError
from ray_shared.groups import ClusterConfig
from ray_shared.report import Report
from ray_shared.testing import Job, wait_for

from .conftest import StartJob

LOCAL = ClusterConfig(
    mode="local",
    address=None,
    num_cpus=2,
    num_nodes=1,
    dashboard=False,
    install=False,
    autoscaling=False,
)


def family() -> list[psutil.Process]:
    """The processes below this one."""
    return list(psutil.Process().children(recursive=True))


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return Report("tiny-job", tmp_path_factory.mktemp("out"), {})


@pytest.fixture(scope="module")
def local(ray_tmpdir: Path, report: Report) -> Iterator[None]:
    with cluster.connect(LOCAL, Demand(2, 1), report, "tiny_job"):
        yield


@pytest.mark.parametrize(
    ("demand", "nodes", "reason"),
    [
        (Demand(2, 1), [{"CPU": 2}], None),
        (Demand(3, 1), [{"CPU": 2}], "has room for 2"),
        (Demand(3, 1), [{"CPU": 2}, {"CPU": 2}], None),
        # Four CPUs in all, but no node with three.
        (Demand(1, 3), [{"CPU": 2}, {"CPU": 2}], "has room for 0"),
        (Demand(10, 0.1), [{"CPU": 1}], None),
        (Demand(11, 0.1), [{"CPU": 1}], "has room for 10"),
        (Demand(1, 1), [{"memory": 1}], "has room for 0"),
        (Demand(1, 1, gpus_per_worker=1), [{"CPU": 2}], "the cluster has no GPU"),
        (Demand(2, 1, gpus_per_worker=1), [{"CPU": 4, "GPU": 1}], "has room for 1"),
        (Demand(2, 1, gpus_per_worker=1), [{"CPU": 4, "GPU": 2}], None),
        # The GPU is on a node without a free CPU.
        (Demand(1, 1, gpus_per_worker=1), [{"CPU": 4}, {"GPU": 1}], "has room for 0"),
        (
            Demand(2, 1, extra_cpus=1),
            [{"CPU": 2}],
            "1 CPU for data tasks are more than the cluster's 2 CPU",
        ),
        (Demand(2, 1, extra_cpus=1), [{"CPU": 2}, {"CPU": 1}], None),
    ],
)
def test_demand_is_refused_exactly_where_it_can_never_be_met(
    demand: Demand, nodes: list[dict[str, float]], reason: str | None
):
    if reason is None:
        demand.check(nodes)
        return
    with pytest.raises(UserError) as caught:
        demand.check(nodes)
    assert reason in str(caught.value)


@pytest.mark.parametrize("mode", ["local", "simulated"])
def test_too_many_workers_are_refused_without_starting_ray(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_ray(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", no_ray)
    monkeypatch.setattr(cluster, "start_nodes", no_ray)
    config = ClusterConfig(mode, None, 2, 1, False, False, False)
    started = time.monotonic()
    with (
        pytest.raises(UserError, match=r"scaling\.num_workers=3: each needs 1 CPU"),
        cluster.connect(config, Demand(3, 1), Report("x", tmp_path, {}), "tiny_job"),
    ):
        pass
    assert time.monotonic() - started < 1


def test_cluster_has_the_cpus_it_was_given(local: None, report: Report):
    assert ray.cluster_resources()["CPU"] == 2
    assert report.resources["CPU"] == 2
    assert not any(":" in name for name in report.resources)
    assert 0 < report.timings["startup_s"] < 60


def cluster_id(address: str, token: str | None) -> bytes:
    """Asks the cluster's head for its id, as every client does first."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        answer: bytes = call(b"", timeout=10, metadata=metadata)
    return answer


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_client_without_the_token_is_refused(local: None, token: str | None):
    address = ray.get_runtime_context().gcs_address
    assert cluster_id(address, own_token()) != b""
    with pytest.raises(grpc.RpcError) as caught:
        cluster_id(address, token)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def own_token() -> str:
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"]
    default = Path.home() / ".ray" / "auth_token"
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", default)).read_text().strip()


CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined")
"""


@pytest.mark.fault  # Ray tries for 20 seconds.
@pytest.mark.parametrize("changes", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}])
def test_process_without_the_token_cannot_join(local: None, changes: dict[str, str]):
    # Ray replaces 127.0.0.1 by the machine's address, unless it is like this.
    env = os.environ | changes | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [sys.executable, "-c", CLIENT, ray.get_runtime_context().gcs_address]
    refused = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0
    assert "joined" not in refused.stdout
    assert "InvalidAuthToken" in refused.stderr
    env = {k: v for k, v in env.items() if k not in changes} | {"RAY_AUTH_TOKEN": own_token()}
    env["RAY_AUTH_MODE"] = "token"
    welcome = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert "joined" in welcome.stdout, welcome.stderr


def test_nothing_listens_beyond_the_loopback_interface(local: None):
    assert listening_beyond_loopback([psutil.Process(), *family()]) == []


def listening_beyond_loopback(processes: list[psutil.Process]) -> list[Any]:
    listening = [
        (p.name(), c.laddr)
        for p in processes
        for c in p.net_connections(kind="inet")
        if c.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    return [(name, address) for name, address in listening if address.ip not in loopback]


def finished(job: Job, exit_code: int) -> None:
    """The job has ended like that, and with it all of its processes."""
    assert job.wait(60) == exit_code, job.output()
    assert len(job.family) >= 4  # Ray's server, raylet, agents.
    job.wait_until_gone()


def test_logs_of_a_task_reach_the_driver_once(start: StartJob):
    with start("action=log", "cluster.num_cpus=1") as job:
        assert job.wait(90) == 0, job.output()
    assert job.output().count("logged by the task") == 1, job.output()
    assert job.output().count("printed by the task") == 1, job.output()


@pytest.mark.parametrize(
    ("mode", "signum", "code"),
    [
        ("local", signal.SIGINT, 130),
        pytest.param("local", signal.SIGTERM, 143, marks=pytest.mark.fault),
        pytest.param("simulated", signal.SIGINT, 130, marks=pytest.mark.fault),
        pytest.param("simulated", signal.SIGTERM, 143, marks=pytest.mark.fault),
    ],
)
def test_signal_inside_the_cluster_leaves_no_process(
    start: StartJob, mode: str, signum: signal.Signals, code: int
):
    with start("action=wait_connected", f"cluster={mode}", "cluster.num_cpus=1") as job:
        wait_for(lambda: "the job waits" in job.output(), "cluster", 60)
        job.remember_family()
        # Ctrl-C in a terminal reaches every process of the group, not only the job.
        group = signum == signal.SIGINT
        (os.killpg if group else os.kill)(job.process.pid, signum)
        finished(job, code)
    assert job.result()["status"] == "failed"
    assert job.result()["timings"].keys() == {"startup_s", "shutdown_s"}


def test_exception_inside_the_cluster_leaves_no_process(start: StartJob):
    with start("action=raise_connected", "cluster.num_cpus=1") as job:
        wait_for(lambda: job.remember_family() or "the job breaks" in job.output(), "cluster", 60)
        finished(job, 1)
    assert job.result()["error"].startswith("RuntimeError: the job broke")


@pytest.mark.fault
@pytest.mark.parametrize("mode", ["local", "simulated"])
def test_signal_while_the_cluster_starts_leaves_no_process(start: StartJob, mode: str):
    with start("action=wait_connected", f"cluster={mode}", "cluster.num_cpus=1") as job:

        def raylet_started() -> bool:
            job.remember_family()
            children = psutil.Process(job.process.pid).children(recursive=True)
            return any(p.name() == "raylet" for p in children)

        wait_for(raylet_started, "raylet", 60)
        job.process.send_signal(signal.SIGTERM)
        wait_for(lambda: job.remember_family() or job.process.poll() is not None, "end", 60)
        finished(job, 143)
