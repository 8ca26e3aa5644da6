"""A task loses its process; mended: it is tried again.

Run: python docs/tests/errors/worker_crashed.py
"""

# ruff: noqa: T201

import os
import signal
import tempfile
import traceback
from pathlib import Path

import ray


@ray.remote(num_cpus=1)
def crash_once(marker: str) -> str:
    """Dies the first time, as on a machine that is taken away."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done at the second try"


def broken(marker: str) -> None:
    """No second try."""
    try:
        ray.get(crash_once.options(max_retries=0).remote(marker))
    except ray.exceptions.WorkerCrashedError:
        traceback.print_exc()


def mended(marker: str) -> None:
    """Ray's default is three more tries, for a process that dies."""
    print(ray.get(crash_once.options(max_retries=3).remote(marker)))


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    with tempfile.TemporaryDirectory() as directory:
        broken(f"{directory}/broken")
        mended(f"{directory}/mended")
