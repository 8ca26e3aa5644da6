"""The namespaces of one pod.

A pod sees the machine's files through an overlay, so what it writes is its own and is gone with it.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ray_shared.errors import JobError

from rehearsal.namespaces import BRIDGE, GATEWAY, WORK, first_child, run

POD = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
# Mounts that each pod gets anew, or that only belong to the machine.
OWN_MOUNTS = ("/proc", "/sys", "/dev", "/run")
START_S = 20.0
"""For the namespaces of a pod to be made."""

SETUP = """
set -e
read -r _
echo {name} > /proc/sys/kernel/hostname
ip link set lo up
ip addr add {ip}/16 dev eth0
ip link set eth0 up
ip route add default via {gateway}
mkdir -p {dir}/up {dir}/work {dir}/root
mount -t overlay overlay -o lowerdir=/,upperdir={dir}/up,workdir={dir}/work {dir}/root
root={dir}/root
{others}
mount -t proc proc $root/proc
mount --rbind /sys $root/sys
mount --rbind /dev $root/dev
mount -t tmpfs -o size={shm} shm $root/dev/shm
{volumes}
mkdir -p $root/tmp/home
rm -f $root/etc/hosts $root/etc/resolv.conf
: > $root/etc/hosts
mount --bind {dir}/hosts $root/etc/hosts
: > $root/etc/resolv.conf
{init}
: > {dir}/started
exec chroot $root /bin/bash -c -- {command}
"""
WAIT = "until ray health-check --address {head} >/dev/null 2>&1; do sleep 2; done"


def other_mounts(mountinfo: str) -> list[str]:
    """Where other file systems are mounted, those below one of them left out.

    Args:
        mountinfo: As in /proc/self/mountinfo.
    """
    points = {line.split()[4] for line in mountinfo.splitlines()} - {"/"}
    inside = {p for p in points if any(p.startswith(f"{other}/") for other in points)}
    own = {p for p in points if p.startswith(OWN_MOUNTS)}
    return sorted(points - inside - own)


class Sandbox:
    """The namespaces of one pod, and the process that runs in them."""

    def __init__(self, name: str, number: int):
        self.name = name
        self.ip = f"10.77.{number // 250 + 1}.{number % 250 + 1}"
        self.link = f"pod{number}"
        self.directory = WORK / name
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0

    def start(
        self,
        command: str,
        env: Mapping[str, str],
        wait_for: str | None,
        volumes: Mapping[str, Path | None],
        shm_bytes: int,
        hosts: str,
        log: IO[bytes],
    ) -> None:
        """Starts the pod's process.

        Args:
            command: For `bash -c`.
            env: Its whole environment.
            wait_for: `host:port` of a head, until which it waits.
            volumes: Path in the pod to a directory of this machine, or to None: memory.
            shm_bytes: Size of /dev/shm.
            hosts: For /etc/hosts, besides its own line.
            log: Gets what it prints.

        Raises:
            JobError: If the namespaces cannot be made.
        """
        self.directory.mkdir()
        self.set_hosts(hosts)
        others = other_mounts(Path("/proc/self/mountinfo").read_text())
        init = ""
        if wait_for is not None:
            init = f"chroot $root /bin/bash -c -- {shlex.quote(WAIT.format(head=wait_for))}"
        script = SETUP.format(
            name=self.name,
            ip=self.ip,
            gateway=GATEWAY,
            dir=self.directory,
            others="\n".join(
                f"mount --rbind {shlex.quote(p)} $root{shlex.quote(p)} 2>/dev/null || true"
                for p in others
            ),
            shm=shm_bytes,
            volumes="\n".join(self._mount(path, source) for path, source in volumes.items()),
            init=init,
            command=shlex.quote(command),
        )
        self._process = subprocess.Popen(
            [*POD, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd="/",
        )
        self._first = self._wait_for_first()
        peer = ("type", "veth", "peer", "name", "eth0", "netns", str(self._first))
        run("ip", "link", "add", self.link, *peer)
        run("ip", "link", "set", self.link, "master", BRIDGE, "up")
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.close()

    def _mount(self, path: str, source: Path | None) -> str:
        what = "-t tmpfs tmpfs" if source is None else f"--bind {shlex.quote(str(source))}"
        place = shlex.quote(path)
        # A link such as /var/run leads elsewhere in the pod than on the machine.
        return (
            f"chroot $root mkdir -p {place}; mount {what} "
            f'"$root$(chroot $root readlink -f {place})"'
        )

    def _wait_for_first(self) -> int:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(IndexError):
                return first_child(self._process.pid)
            time.sleep(0.02)
        raise JobError(f"pod {self.name}: its namespaces could not be made; see its log")

    @property
    def started(self) -> bool:
        """Whether it is past its init container, and sees its own files only."""
        if not (self.directory / "started").exists():
            return False
        try:
            return not Path(f"/proc/{self._first}/root").samefile("/")
        except OSError:
            return False

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def signal(self, signum: int) -> None:
        """Sends a signal to its first process; after SIGKILL the kernel ends all others in it."""
        if self.poll() is None and self._first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first, signum)

    def execute(self, command: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The command that runs another one in the pod, with this environment."""
        variables = [f"{name}={value}" for name, value in env.items()]
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--root", "--wd=/"]
        enter = ["nsenter", f"--target={self._first}", *spaces]
        return [*enter, "env", "-i", *variables, *command]

    def read(self, path: str) -> str:
        """A text file of a pod that has started, or nothing."""
        if not self.started:
            return ""
        try:
            return Path(f"/proc/{self._first}/root{path}").read_text(errors="replace")
        except OSError:
            return ""

    def set_hosts(self, text: str) -> None:
        """Replaces what its /etc/hosts says, as DNS does when a head's address changes."""
        lines = f"127.0.0.1 localhost\n{self.ip} {self.name}\n{text}"
        (self.directory / "hosts").write_text(lines)

    def cut(self) -> None:
        """Takes its link down: nothing comes in or goes out any more."""
        run("ip", "link", "set", self.link, "down")

    def remove(self) -> None:
        """Ends what is left of it and forgets its files."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
