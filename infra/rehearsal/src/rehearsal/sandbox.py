"""The namespaces of one pod.

A pod sees the machine's files through an overlay, so what it writes is its own and is gone with it.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ray_shared.errors import JobError

from rehearsal.namespaces import BRIDGE, GATEWAY, WORK, first_child, run

POD = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
# Mounts that each pod gets anew, or that only belong to the machine, with all below them.
OWN_MOUNTS = ("/proc", "/sys", "/dev", "/run")
# Files that a container runtime mounts, and that each pod has of its own.
OWN_FILES = ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname")
SAFE_PATH = re.compile(r"[^:,\\\s]+")
"""What the options of an overlay can hold."""
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
# What a pod writes to another file system is its own, too; where there can be no overlay (of a
# file, or of such a file system), it can only read.
other() {{
  [ -e "$1" ] || return 0  # Another mount hides it.
  up={dir}/mounts/$2
  mkdir -p $up/up $up/work
  chmod --reference="$1" $up/up
  if [ -d "$1" ] && [ $3 = overlay ] && mount -t overlay overlay \\
    -o "lowerdir=$1,upperdir=$up/up,workdir=$up/work" "$root$1" 2>/dev/null
  then return 0; fi
  mount --bind "$1" "$root$1" 2>/dev/null || return 0
  mount -o remount,bind,ro "$root$1"
}}
{others}
mount -t proc proc $root/proc
mount --rbind /sys $root/sys
mount --rbind /dev $root/dev
mount -t tmpfs -o size={shm} shm $root/dev/shm
{volumes}
mkdir -p $root/tmp/home
rm -f $root/etc/hosts $root/etc/resolv.conf $root/etc/hostname
: > $root/etc/hosts
mount --bind {dir}/hosts $root/etc/hosts
: > $root/etc/resolv.conf
{init}
: > {dir}/started
exec chroot $root /bin/bash -c -- {command}
"""
WAIT = "until ray health-check --address {head} >/dev/null 2>&1; do sleep 2; done"


def other_mounts(mountinfo: str) -> list[str]:
    """Where other file systems are mounted that a pod shall see, the outer ones first.

    Args:
        mountinfo: As in /proc/self/mountinfo.
    """
    points = {_unescaped(line.split()[4]) for line in mountinfo.splitlines()} - {"/", *OWN_FILES}
    own = {p for p in points if any(f"{p}/".startswith(f"{mount}/") for mount in OWN_MOUNTS)}
    return sorted(points - own)


def _unescaped(text: str) -> str:
    r"""A path as the kernel writes it there: a space is `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def address(number: int) -> str:
    """The IP address of a pod."""
    return f"10.77.{number // 250 + 1}.{number % 250 + 1}"


class Sandbox:
    """The namespaces of one pod, and the process that runs in them."""

    def __init__(self, name: str, number: int):
        self.name = name
        self.ip = address(number)
        self.link = f"pod{number}"
        self.directory = WORK / name
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0

    def start(
        self,
        command: str,
        env: Mapping[str, str],
        wait_for: str | None,
        volumes: Mapping[str, Path],
        shm_bytes: int,
        hosts: str,
        log: IO[bytes],
    ) -> None:
        """Starts the pod's process.

        Args:
            command: For `bash -c`.
            env: Its whole environment.
            wait_for: `host:port` of a head, until which it waits.
            volumes: Path in the pod to a directory or file of this machine.
            shm_bytes: Size of /dev/shm.
            hosts: For /etc/hosts, besides its own line.
            log: Gets what it prints.

        Raises:
            JobError: If the namespaces cannot be made.
        """
        self.directory.mkdir(exist_ok=True)
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
                f"other {shlex.quote(path)} {number} "
                f"{'overlay' if SAFE_PATH.fullmatch(path) else 'read-only'}"
                for number, path in enumerate(others)
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

    def _mount(self, path: str, source: Path) -> str:
        place = shlex.quote(path)
        make = f"mkdir -p {place}"
        if source.is_file():
            make = f'sh -c \'mkdir -p "${{1%/*}}" && touch "$1"\' sh {place}'
        # A link such as /var/run leads elsewhere in the pod than on the machine.
        return (
            f"chroot $root {make}; mount --bind {shlex.quote(str(source))} "
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

    def execute(
        self, command: Sequence[str], env: Mapping[str, str], output: int | IO[Any]
    ) -> subprocess.Popen[bytes]:
        """Starts another command in the pod, with this environment; in a session of its own.

        Args:
            command: Found on the environment's PATH.
            env: All of it. Not among the arguments, which every user of the machine can read.
            output: Gets what it prints.
        """
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--root", "--wd=/"]
        return subprocess.Popen(
            [str(shutil.which("nsenter")), f"--target={self._first}", *spaces, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env),
            start_new_session=True,
        )

    def run(
        self, command: Sequence[str], env: Mapping[str, str], timeout_s: float
    ) -> tuple[int, str] | None:
        """Runs a command in the pod: exit code and what it printed; None: it took too long."""
        process = self.execute(command, env, subprocess.PIPE)
        try:
            printed, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # `nsenter` waits for a child, which is in its process group.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None
        return process.returncode, (printed or errors).decode(errors="replace").strip()

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
