"""The deadline of a step, in a process that it may end."""

import subprocess
import sys
import time

import pytest

HANGS = """
import sys, time
from tf_train.worker import Deadline
with Deadline(2) as deadline:
    for word in sys.argv[1:]:
        getattr(deadline, word)()
        time.sleep(0.5 if word == "start" else 3)
    if sys.argv[-1] == "start":
        time.sleep(60)
"""


@pytest.mark.fault
@pytest.mark.parametrize(
    ("calls", "code"),
    [
        (["start"] * 6 + ["stop"], 0),
        # Reading files, before the first step, and saving, after it.
        (["stop", "start", "stop", "start"], 1),
    ],
)
def test_process_ends_when_a_step_takes_too_long_and_only_then(calls: list[str], code: int):
    began = time.monotonic()
    command = [sys.executable, "-c", HANGS, *calls]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == code, done.stderr
    assert ("no step for train.step_timeout_s=2 seconds" in done.stderr) == (code == 1)
    assert time.monotonic() - began < 60
