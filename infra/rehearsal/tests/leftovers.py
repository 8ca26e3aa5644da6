"""What a rehearsal could leave on a machine."""

import time
from pathlib import Path
from typing import Any

PLACES = ("/", "/tmp/ray", "/mnt", "/dev/shm", "/run/netns", "/sys/class/net")
SOON_S = 5.0


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
                found.append(arguments.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def _names(directory: Path) -> list[str]:
    # Other programs on this machine come and go; those of Ray have names of their own.
    skipped = ("session_", "ray_current", "prom_", "sem.", "plasma", "__KMP", "torch_")
    if not directory.is_dir():
        return []
    return sorted(p.name for p in directory.iterdir() if not p.name.startswith(skipped))
