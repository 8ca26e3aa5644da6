"""What a node finds out by itself."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ray_doctor import node
from ray_shared.testing import free_port


def test_first_version_on_the_search_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = node.packages()["ray"]
    shadow(tmp_path, "ray", "0.0.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert before != "0.0.1"
    assert node.packages()["ray"] == "0.0.1"


def shadow(directory: Path, name: str, version: str) -> None:
    """Installs another version of a distribution, without its code."""
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_directory_that_is_a_file_is_not_writable(tmp_path: Path):
    (tmp_path / "file").write_text("")
    found = node.directory(str(tmp_path / "file"))
    assert found["error"] == "Not a directory"
    found = node.directory(str(tmp_path))
    assert found["error"] is None
    assert 0 < found["full"] < 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_all_spilling_directories_are_found_or_the_reason_is_told():
    flags = {"fallback_directory": "/first"}
    several = '{"type": "filesystem", "params": {"directory_path": ["/first", "/second"]}}'
    elsewhere = '{"type": "smart_open", "params": {"uri": "s3://bucket"}}'
    # One directory in the head's configuration may be another one on this node.
    one = '{"type": "filesystem", "params": {"directory_path": "/of-the-head"}}'
    assert node.spilling_directories(flags, [one, ""]) == ["/first"]
    assert node.spilling_directories(flags, ["", several]) == ["/first", "/second"]
    assert "by smart_open" in node.spilling_directories(flags, [elsewhere, ""])
    assert node.spilling_directories({}, ["", ""]) == node.NO_RAYLET


@pytest.fixture
def unresponsive_port() -> Iterator[int]:
    """A port whose queue is full: what comes is dropped, as by a firewall."""
    if sys.platform != "linux":
        pytest.skip("how long the queue is, is Linux' own")
    waiting = []
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(8):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            waiting.append(client)
        yield port
        for client in waiting:
            client.close()


def test_closed_and_unresponsive_ports_are_told_apart_from_open_ones(unresponsive_port: int):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        opened, closed = listener.getsockname()[1], free_port()
        places = [f"127.0.0.1:{port}" for port in (opened, closed, unresponsive_port)]
        found = node.connect([("service", place) for place in places], 0.5)
    assert found == {
        f"service {places[1]}": "Connection refused",
        f"service {places[2]}": "no answer within 0.5 s",
    }


def test_storage_is_left_as_it_was(tmp_path: Path):
    folder = str(tmp_path / "runs" / ".doctor-1")
    written = node.write_file(folder, "a")
    assert written["error"] is None
    assert node.read_files(folder, ["a", "b"]).keys() == {"b"}
    (tmp_path / "runs" / ".doctor-1" / "a").write_text("other")
    assert node.read_files(folder, ["a"]) == {"a": "another content than was written"}
    node.delete_files(folder, written["made"])
    assert list(tmp_path.iterdir()) == []


def test_directory_that_held_something_stays(tmp_path: Path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    folder = str(tmp_path / "runs" / ".doctor-1")
    written = node.write_file(folder, "a")
    node.delete_files(folder, written["made"])
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["mine"]


def test_storage_below_a_file_is_not_writable(tmp_path: Path):
    (tmp_path / "file").write_text("")
    error = node.write_file(str(tmp_path / "file" / ".doctor-1"), "a")["error"]
    assert error.startswith("Cannot create directory")


def test_gpus_are_counted_as_ray_may_use_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho 'GPU 1: H100'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert node.visible_gpus(0, {}) == 2
    assert node.visible_gpus(0, {"CUDA_VISIBLE_DEVICES": "1"}) == 1
    assert node.visible_gpus(0, {"CUDA_VISIBLE_DEVICES": ""}) == 0
    program.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert node.visible_gpus(0, {}) == 0
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(node, "GPU_TIMEOUT_S", 0.2)
    assert node.visible_gpus(2, {}) is None


def test_node_needs_nothing_that_only_the_driver_has():
    """grpc and Hydra come with the doctor and with `ray[default]`, not with `ray[train]`."""
    code = """
import sys
sys.modules |= dict.fromkeys(["grpc", "hydra", "omegaconf", "rich"])
from ray_doctor.collective import Rank
from ray_doctor.node import clock, connect, fetch_object, look, make_object, write_file
"""
    subprocess.run([sys.executable, "-c", code], check=True)
