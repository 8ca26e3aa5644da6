"""Whatever ends a rehearsal, nothing of it stays. The pods run plain programs here, not Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from .leftovers import traces
from .manifests import cluster, document, write

PROGRAM = """
import os, pathlib, socket, sys, time
pathlib.Path("/tmp/ray/mine").write_text("x")
pathlib.Path("/rehearsal-test-file").write_text("x")
print("hostname", socket.gethostname(), flush=True)
print("pids", sorted(int(p) for p in os.listdir("/proc") if p.isdigit())[:1], flush=True)
print("tmp", os.listdir("/tmp/ray"), flush=True)
for host in sys.argv[1].split(","):
    try:
        socket.create_connection((host, int(sys.argv[2])), timeout=2)
        print("reached", host, flush=True)
    except OSError as error:
        print("not reached", host, flush=True)
print("done", flush=True)
time.sleep(1000)  # ray start
"""


def plain(tmp_path, *arguments: str) -> str:
    """A cluster whose head runs the program above; its workers wait for a GCS that never comes."""
    spec = cluster(enableInTreeAutoscaling=False)
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    container["command"] = ["exec", sys.executable, str(program), *arguments, "'ray start'"]
    container["readinessProbe"] = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    return write(tmp_path / "plain.yaml", document("RayCluster", spec))


def wait_for(command, text: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in command.text():
        assert time.monotonic() < deadline, command.text()
        assert command.process.poll() is None, command.text()
        time.sleep(0.1)


def children(pid: int) -> list[str]:
    done = subprocess.run(["ps", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_nothing_stays_after_a_signal(rehearse, tmp_path, signum, code):
    with rehearse(plain(tmp_path, "127.0.0.1", "1")) as command:
        wait_for(command, "ready")
        assert children(command.process.pid)
        command.process.send_signal(signum)
        assert command.process.wait(30) == code
        if signum != signal.SIGKILL:
            events = json.loads((command.output / "timeline.json").read_text())
            assert {"pod", "started", "ready"} <= {event["kind"] for event in events}
    assert traces(str(tmp_path))["processes"] == []
    # The fixture looks for the rest.


def test_nothing_stays_after_the_timeout_and_it_says_so(rehearse, tmp_path):
    with rehearse(plain(tmp_path, "127.0.0.1", "1"), "--timeout-s=3") as command:
        assert command.process.wait(60) == 1
        assert "error: not done after rehearse.timeout_s=3" in command.text()


def test_pod_sees_its_own_files_and_processes_and_no_network_but_the_pods(rehearse, tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=server.accept, daemon=True).start()
        outside = [line.split()[3].split("/")[0] for line in addresses()]
        hosts = ",".join([*outside, "127.0.0.1"])
        with rehearse(plain(tmp_path, hosts, str(port))) as command:
            wait_for(command, "ready")
            (log,) = (command.output / "logs").glob("*-head-*.log")
            deadline = time.monotonic() + 60
            while "done" not in log.read_text() and time.monotonic() < deadline:
                time.sleep(0.1)
            text = log.read_text()
    assert "not reached 127.0.0.1" in text
    assert "\nreached" not in text
    assert f"hostname {log.stem}" in text
    assert "pids [1]" in text
    assert "tmp ['mine']" in text
    assert not Path("/rehearsal-test-file").exists()


def addresses() -> list[str]:
    done = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_without_root_it_is_refused_in_one_sentence(tmp_path):
    spec = document("RayCluster", cluster())
    command = [sys.executable, "-m", "rehearsal", write(tmp_path / "m.yaml", spec)]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--clear-groups", *command]
    tmp_path.chmod(0o755)
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs Linux and root" in done.stderr or "Permission denied" in done.stderr
