"""Linux namespaces: one around the whole rehearsal, and in it one for each pod.

Everything lies in an outer namespace of processes, mounts and network. When its first process
ends, for whatever reason, the kernel ends all others in it, and with the last one its mounts and
networks go: there is nothing that would have to be cleaned up. The network has no way out.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray_shared.errors import JobError, UserError

GATEWAY = "10.77.0.1"
"""This machine, as the pods see it: the API server and the probes."""
BRIDGE = "pods"
WORK = Path("/dev/shm")
"""Replaced by a file system of the rehearsal's own, which goes with it."""
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount", "chroot")
CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--mount", "--pid", "--uts", "--ipc"),
    *("--fork", "--kill-child", "--mount-proc"),
)
TRIAL = (
    "mount -t tmpfs tmpfs /dev/shm && mkdir /dev/shm/up /dev/shm/work /dev/shm/root && "
    "mount -t overlay overlay -o lowerdir=/,upperdir=/dev/shm/up,workdir=/dev/shm/work "
    "/dev/shm/root && ip link add trial type bridge"
)
STOP_S = 30.0


def check_possible() -> None:
    """Finds out whether this machine can do it.

    Raises:
        UserError: If not, with what is missing.
    """
    needs = "a rehearsal needs Linux and root, with network namespaces and overlay mounts"
    if not sys.platform.startswith("linux"):
        raise UserError(f"{needs}: this is {sys.platform}")
    if os.geteuid() != 0:
        raise UserError(f"{needs}: this is user {os.geteuid()}; try sudo")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise UserError(f"{needs}: not installed: {', '.join(missing)} (iproute2, util-linux)")
    done = subprocess.run([*CONTAINED, "sh", "-c", TRIAL], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{needs}: {reason}")


def contain(
    command: Sequence[str],
    env: Mapping[str, str],
    interrupted: Callable[[], bool],
    grace_s: float,
) -> int:
    """Runs a command in the outer namespaces until it ends; its exit code.

    Args:
        command: What becomes their first process.
        env: Its environment.
        interrupted: Asked all the time; once true, the command gets SIGTERM until it ends.
        grace_s: How long it may then take to end.
    """
    # A session of its own: Ctrl-C comes here only.
    outer = subprocess.Popen([*CONTAINED, *command], env=env, start_new_session=True)
    deadline = None
    try:
        while outer.poll() is None:
            if interrupted():
                deadline = deadline or time.monotonic() + grace_s
                # Again and again: the first process of a namespace gets no signal that it has no
                # handler for, and at its start it has none yet.
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(first_child(outer.pid), signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        # While it runs, its number is nobody else's.
        inner = process_file(outer.pid)
        outer.kill()  # And with it, by the kernel, everything inside.
        outer.wait()
        if inner is not None:  # Its death comes after that of all others inside.
            select.select([inner], [], [], STOP_S)
            os.close(inner)
    return outer.returncode


def process_file(pid: int) -> int | None:
    """A descriptor that becomes readable when the first child of a process ends; None: no child."""
    with contextlib.suppress(OSError, IndexError):
        return os.pidfd_open(first_child(pid))
    return None


def first_child(pid: int) -> int:
    """The first process that a process has started.

    Raises:
        IndexError: If there is none.
    """
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    except OSError as error:
        raise IndexError(str(error)) from None


def set_up() -> None:
    """Makes the network and the place for files. Called inside the outer namespaces."""
    run("mount", "-t", "tmpfs", "tmpfs", str(WORK))
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{GATEWAY}/16", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def run(*command: str) -> str:
    """Runs a tool; what it printed.

    Raises:
        JobError: If it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise JobError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
