"""What these tests start ends with them."""

import os
import sys
import time
from pathlib import Path

import pytest

from .repository import run

# A server below a command: it takes Ctrl-C as its cue to tidy up.
PATIENT = """
import pathlib, time
pathlib.Path("started").touch()
try:
    time.sleep(100)
except KeyboardInterrupt:
    time.sleep(0.3)
    pathlib.Path("tidied").touch()
"""
STUBBORN = "trap '' INT; sleep 100 & echo $! > pid; wait; wait"


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # One that has ended stays until its new parent has asked.
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_late_command_may_tidy_up_before_it_ends(tmp_path: Path) -> None:
    command = ["sh", "-c", f"'{sys.executable}' -c '{PATIENT}'; echo after"]
    with pytest.raises(AssertionError, match="after 2 s it still ran"):
        run(command, tmp_path, timeout_s=2, stop_s=30)
    assert (tmp_path / "started").exists()
    assert (tmp_path / "tidied").exists()


def test_what_ignores_ctrl_c_is_killed_with_all_below_it(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="after 1 s it still ran"):
        run(["sh", "-c", STUBBORN], tmp_path, timeout_s=1, stop_s=0.5)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)
