"""Whatever ends a rehearsal, nothing of it stays. The pods run plain programs here, not Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .leftovers import traces
from .manifests import cluster, document, write

PROGRAM = """
import os, pathlib, socket, sys, time
pathlib.Path("/tmp/ray/mine").write_text("x")
pathlib.Path("/rehearsal-test-file").write_text("x")
pathlib.Path("/tmp/rehearsal-test-file").write_text("x")
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


def plain(tmp_path, *arguments: str, **changes: Any) -> str:
    """A cluster whose head runs the program above; its workers wait for a GCS that never comes."""
    spec = cluster(enableInTreeAutoscaling=False, **changes)
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    container["command"] = ["exec", sys.executable, str(program), *arguments, "'ray start'"]
    container["readinessProbe"] = {
        "exec": {"command": ["test", "-e", "/tmp/rehearsal-test-file"]},
        "periodSeconds": 1,
    }
    return write(tmp_path / "plain.yaml", document("RayCluster", spec))


def wait_for(command, text: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in command.text():
        assert time.monotonic() < deadline, command.text()
        assert command.process.poll() is None, command.text()
        time.sleep(0.1)


def children(pid: int) -> list[str]:
    done = subprocess.run(
        ["ps", "-ww", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True
    )
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
            result = json.loads((command.output / "rehearsal.json").read_text())
            assert result["error"] == "interrupted"
    assert traces(str(tmp_path))["processes"] == []
    # The fixture looks for the rest.


def test_interrupt_in_the_first_moment_is_not_lost(rehearse, tmp_path):
    with rehearse(plain(tmp_path, "127.0.0.1", "1")) as command:
        deadline = time.monotonic() + 60
        while not any("rehearsal.inside" in line for line in children(command.process.pid)):
            assert time.monotonic() < deadline, command.text()
            time.sleep(0.01)
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(60) == 130
    # It has ended by itself: one that is killed writes none.
    assert (command.output / "timeline.json").exists()
    result = json.loads((command.output / "rehearsal.json").read_text())
    assert (result["status"], result["error"]) == ("failed", "interrupted")


def test_nothing_stays_after_the_timeout_and_it_says_so(rehearse, tmp_path):
    with rehearse(plain(tmp_path, "127.0.0.1", "1"), "--timeout-s=3") as command:
        assert command.process.wait(60) == 1
        assert "error: not done after --timeout-s=3" in command.text()


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
    for path in ("/rehearsal-test-file", "/tmp/rehearsal-test-file"):
        assert not Path(path).exists()


def addresses() -> list[str]:
    done = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


SEPARATE_TMP = """
set -e
mount --bind /tmp /mnt
mount -t tmpfs tmpfs /tmp
for name in {kept}; do mkdir /tmp/$name; mount --rbind /mnt/$name /tmp/$name; done
"$@"
echo "left: $(find /tmp -xdev -mindepth 1 -maxdepth 1 | sort | tr '\\n' ' ')"
"""


def test_pod_writes_nothing_to_another_file_system(namespaces, tmp_path):
    """As where /tmp is one: here in mount namespaces of the test's own."""
    needed = [path.parts for path in (tmp_path, Path(sys.prefix), Path(__file__))]
    kept = sorted({parts[2] for parts in needed if parts[1] == "tmp"})
    command = [
        sys.executable,
        "-m",
        "rehearsal",
        plain(tmp_path, "127.0.0.1", "1", workerGroupSpecs=[]),
    ]
    command += [f"--output={tmp_path / 'out'}"]
    script = SEPARATE_TMP.format(kept=" ".join(kept))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready" in done.stdout  # Which it is once its files are written.
    assert done.stdout.splitlines()[-1].split() == ["left:", *(f"/tmp/{name}" for name in kept)]


def test_without_root_it_is_refused_in_one_sentence():
    # Below /tmp, and not pytest's own directory, which is closed to other users.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        manifest = write(Path(directory, "m.yaml"), document("RayCluster", cluster()))
        command = [sys.executable, "-m", "rehearsal", manifest]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=65534", "--clear-groups", *command]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs Linux and root" in done.stderr
