"""Each check, broken for real on a simulated cluster of two nodes and one that is not as they are.

The third node joins with the fault in its environment or options, and leaves after the test; the
doctor must name it, and blame it for nothing else.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray_shared.cluster import available_cpus
from ray_shared.testing import free_port, wait_for

from .simulated import SimulatedCluster, simulate
from .test_node import shadow

pytestmark = pytest.mark.fault
# Two modules that every process on a node runs first. They change the clock, and the directory, for
# the doctor alone: Ray's own processes go on. A directory's mode would not keep root from writing.
HOUR_AHEAD = """
import sys, time
now = time.time

def ahead():
    caller = sys._getframe(1).f_globals.get("__name__")
    return now() + (3600 if caller == "ray_doctor.node" else 0)

time.time = ahead
"""
READ_ONLY = """
import errno, os, re, sys

def refuse(event, args):
    if event == "open" and re.search(r"/session_[^/]+/[.]doctor-", str(args[0])):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

sys.addaudithook(refuse)
"""


@pytest.fixture(scope="module")
def simulated(
    ray_tmpdir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimulatedCluster]:
    with pytest.MonkeyPatch.context() as patch:
        # The head takes a node that hangs for alive for half a minute, so that others can meet it.
        patch.setenv("RAY_health_check_failure_threshold", "10")
        patch.chdir(tmp_path_factory.mktemp("first"))
        with simulate(tmp_path_factory.mktemp("out"), "cluster.num_nodes=2") as simulated:
            yield simulated


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The storage, `./runs`, is in the test's own directory, and gone afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "runs").exists()


def first_on_the_path(directory: Path) -> dict[str, str]:
    """The environment of a node whose Python finds first what is in this directory."""
    path = filter(None, [str(directory), os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join(path)}


def test_two_healthy_nodes_pass_with_gloo(simulated: SimulatedCluster):
    checks = simulated.examine("doctor.expect_nodes=2", collective=True)
    assert simulated.problems(checks) == {}
    assert checks["gloo"].status == checks["objects"].status == "ok"
    assert checks["NCCL"].found.startswith("no GPU on 127.0.0.1/")
    assert checks["ports"].found == "reached by every node: 8 connection(s) tried"


def test_package_of_another_version_on_one_node(simulated: SimulatedCluster, tmp_path: Path):
    shadow(tmp_path, "numpy", "0.0.1")
    with simulated.extra_node(first_on_the_path(tmp_path)) as node:
        checks = simulated.examine()
    assert simulated.problems(checks) == {"versions": "failed"}
    assert f"0.0.1 ({node.shown_as})" in checks["versions"].found


def test_more_cpus_than_the_machine_has(simulated: SimulatedCluster):
    with simulated.extra_node(num_cpus=available_cpus() + 1) as node:
        checks = simulated.examine()
    assert simulated.problems(checks) == {"CPUs": "warning"}
    assert checks["CPUs"].found.startswith(f"{node.shown_as}: Ray was told")


def test_more_gpus_than_there_are(simulated: SimulatedCluster):
    with simulated.extra_node(num_gpus=64) as node:
        checks = simulated.examine()
    assert simulated.problems(checks) == {"GPUs": "failed"}
    assert checks["GPUs"].found.startswith(f"{node.shown_as}: Ray was told 64")


def test_memory_above_the_mark_from_which_ray_kills(simulated: SimulatedCluster):
    # Not killed for it here, or nobody could tell.
    env = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "0"}
    with simulated.extra_node(env) as node:
        checks = simulated.examine()
    assert simulated.problems(checks) == {"memory": "failed"}
    assert checks["memory"].found.startswith(f"{node.shown_as}: ")


def test_more_memory_than_the_limit(simulated: SimulatedCluster):
    with simulated.extra_node(memory=10**13) as node:
        checks = simulated.examine()
    assert simulated.problems(checks) == {"memory": "failed"}
    assert f"{node.shown_as}: Ray was told 10 TB" in checks["memory"].found


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm on this system")
def test_shared_memory_too_small_for_the_object_store(
    simulated: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
):
    # Docker's default; Ray itself then takes another directory.
    monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda: 64 * 2**20)
    with simulated.extra_node() as node:
        checks = simulated.examine()
    assert simulated.problems(checks) == {"/dev/shm": "failed"}
    assert f"{node.shown_as}: the object store of 157 MB lies in" in checks["/dev/shm"].found


def test_spilling_directory_that_is_gone(simulated: SimulatedCluster, tmp_path: Path):
    spilling = tmp_path / "spilling"
    spilling.mkdir()
    with simulated.extra_node(object_spilling_directory=str(spilling)) as node:
        shutil.rmtree(spilling)
        spilling.write_text("")
        try:
            checks = simulated.examine()
        finally:
            # Ray looks for it when it removes the node.
            spilling.unlink()
            spilling.mkdir()
    assert simulated.problems(checks) == {"spilling directory": "failed"}
    assert checks["spilling directory"].found == f"{node.shown_as}: {spilling}: Not a directory"


def test_second_spilling_directory_that_is_a_file(simulated: SimulatedCluster, tmp_path: Path):
    (tmp_path / "second").write_text("")
    places = [str(tmp_path), str(tmp_path / "second")]
    config = {"type": "filesystem", "params": {"directory_path": places}}
    with simulated.extra_node({"RAY_object_spilling_config": json.dumps(config)}) as node:
        checks = simulated.examine()
    assert simulated.problems(checks) == {"spilling directory": "failed"}
    assert checks["spilling directory"].found == f"{node.shown_as}: {places[1]}: Not a directory"


def test_disk_fuller_than_ray_allows(simulated: SimulatedCluster):
    with simulated.extra_node({"RAY_local_fs_capacity_threshold": "0.0001"}) as node:
        checks = simulated.examine()
    expected = {"spilling directory": "failed", "session directory": "failed"}
    assert simulated.problems(checks) == expected
    assert checks["session directory"].found.startswith(f"{node.shown_as}: ")
    assert "Ray stops at 0%" in checks["session directory"].found


def test_session_directory_that_is_read_only(simulated: SimulatedCluster, tmp_path: Path):
    spilling = tmp_path / "spilling"
    spilling.mkdir()
    (tmp_path / "sitecustomize.py").write_text(READ_ONLY)
    env = first_on_the_path(tmp_path)
    with simulated.extra_node(env, object_spilling_directory=str(spilling)) as node:
        checks = simulated.examine()
        session = node.get_session_dir_path()
    assert simulated.problems(checks) == {"session directory": "failed"}
    expected = f"{node.shown_as}: {session}: Read-only file system"
    assert checks["session directory"].found == expected


def test_clock_an_hour_ahead(simulated: SimulatedCluster, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(HOUR_AHEAD)
    with simulated.extra_node(first_on_the_path(tmp_path)) as node:
        checks = simulated.examine()
    assert simulated.problems(checks) == {"clocks": "failed"}
    assert checks["clocks"].found == f"{node.shown_as}: +3600.0 s from the driver's"


def test_node_that_hangs(simulated: SimulatedCluster):
    with simulated.extra_node() as node:
        (raylet,) = (info.process for info in node.all_processes["raylet"])
        os.kill(raylet.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            checks = simulated.examine("doctor.node_timeout_s=15")
            assert time.monotonic() - started < 90
        finally:
            os.kill(raylet.pid, signal.SIGCONT)
    assert simulated.problems(checks) == {"tasks": "failed"}
    assert checks["tasks"].found == f"{node.shown_as}: no answer within 15 s"


def test_node_that_has_just_died_and_then_is_known_to(simulated: SimulatedCluster):
    with simulated.extra_node() as node:
        (raylet,) = (info.process for info in node.all_processes["raylet"])
        os.kill(raylet.pid, signal.SIGKILL)
        raylet.wait()
        # For some seconds the head takes it for alive.
        checks = simulated.examine("doctor.expect_nodes=3", "doctor.node_timeout_s=15")
        assert simulated.problems(checks) == {"tasks": "failed", "ports": "failed"}
        assert f" to node manager of {node.shown_as} " in checks["ports"].found
        assert "Connection refused" in checks["ports"].found

        def dead() -> bool:
            return any(n["NodeID"] == node.node_id and not n["Alive"] for n in ray.nodes())

        wait_for(dead, "dead node", 120)
        checks = simulated.examine("doctor.expect_nodes=3")
    assert simulated.problems(checks) == {"nodes": "failed"}
    assert checks["lost nodes"].status == "warning"
    assert f"{node.shown_as}: " in checks["lost nodes"].found


def test_service_that_a_node_needs_is_not_there(simulated: SimulatedCluster):
    checks = simulated.examine(f"doctor.reach=[127.0.0.1:{free_port()}]")
    assert simulated.problems(checks) == {"ports": "failed"}
    assert checks["ports"].found.count("Connection refused") == 2


def test_objects_that_do_not_leave_a_node(simulated: SimulatedCluster):
    # Its object manager takes a minute over what it is asked for.
    env = {"RAY_testing_asio_delay_us": "ObjectManagerService.grpc_server.Pull=60000000:60000000"}
    with simulated.extra_node(env) as node:
        checks = simulated.examine("doctor.node_timeout_s=15")
    assert simulated.problems(checks) == {"objects": "failed"}
    assert checks["objects"].found.startswith(f"{node.shown_as} to ")


def test_storage_that_is_a_file(simulated: SimulatedCluster, tmp_path: Path):
    (tmp_path / "file").write_text("")
    checks = simulated.examine("storage.path=file")
    assert simulated.problems(checks) == {"storage": "failed"}
    assert checks["storage"].found.count("Cannot create directory") == 2


def test_gloo_on_an_interface_that_one_node_does_not_have(simulated: SimulatedCluster):
    with simulated.extra_node({"GLOO_SOCKET_IFNAME": "no-such-0"}) as node:
        started = time.monotonic()
        checks = simulated.examine(collective=True)
        # Not the time-out: the others wait for a node that has failed.
        assert time.monotonic() - started < 100
    assert simulated.problems(checks) == {"gloo": "failed"}
    assert checks["gloo"].found.startswith(f"{node.shown_as}: ")
    assert "no-such-0" in checks["gloo"].found
