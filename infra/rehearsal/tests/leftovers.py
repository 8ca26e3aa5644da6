"""What a rehearsal could leave on a machine."""

import threading
import time
from pathlib import Path
from typing import Any

PLACES = ("/", "/tmp/ray", "/tmp/home", "/mnt", "/dev/shm", "/run/netns", "/sys/class/net")
KINDS = ("net", "pid", "mnt")
LOOK_S = 0.2
SOON_S = 10.0


class Namespaces:
    """Those of a command and all its descendants, as long as it runs."""

    def __init__(self, pid: int):
        self._pid = pid
        self._own = set(_namespaces("self"))
        self._seen: set[str] = set()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while Path(f"/proc/{self._pid}/ns").exists():
            for pid in _descendants(str(self._pid)):
                self._seen |= set(_namespaces(pid)) - self._own
            time.sleep(LOOK_S)

    def left(self) -> list[str]:
        """Command lines of processes that are still in one of them; they take a moment to go."""
        assert self._seen, "the command has made no namespaces"
        deadline = time.monotonic() + SOON_S
        while (found := self._inside()) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        return found

    def _inside(self) -> list[str]:
        return [
            _arguments(entry.name)
            for entry in Path("/proc").glob("[0-9]*")
            if self._seen & set(_namespaces(entry.name))
        ]


def _namespaces(pid: str) -> list[str]:
    found = []
    for kind in KINDS:
        try:
            found.append(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
        except OSError:  # It has ended.
            continue
    return found


def _descendants(pid: str) -> list[str]:
    children: list[str] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += (thread / "children").read_text().split()
    except OSError:  # It has ended.
        pass
    return [pid, *(each for child in children for each in _descendants(child))]


def _arguments(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def traces(mark: str) -> dict[str, Any]:
    """Processes with this mark, mounts, network links, and what lies where pods write.

    A process that has been killed takes a moment to go.
    """
    deadline = time.monotonic() + SOON_S
    while processes(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "processes": processes(mark),
        "mounts": [line for line in mounts if "overlay" in line or "rehearsal" in line],
        "hosts": Path("/etc/hosts").read_text(),
        "files": {p: _names(Path(p)) for p in PLACES},
    }


def processes(mark: str) -> list[str]:
    """Command lines of processes whose environment or arguments hold the mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes()
            if mark.encode() in (entry / "environ").read_bytes() + arguments:
                found.append(_arguments(entry.name))
        except OSError:
            continue
    return found


def _names(directory: Path) -> list[str]:
    # Other programs on this machine come and go; those of Ray have names of their own.
    skipped = ("session_", "ray_current", "prom_", "sem.", "plasma", "__KMP", "torch_")
    if not directory.is_dir():
        return []
    return sorted(p.name for p in directory.iterdir() if not p.name.startswith(skipped))
