"""Actors hold every CPU, and a task waits for one.

Run: python docs/tests/errors/actors_hold_cpus.py
"""

# ruff: noqa: T201

import subprocess
import sys
import time
from pathlib import Path

import ray


@ray.remote(num_cpus=1)
class Holder:
    """Holds one CPU for as long as it lives, busy or not."""

    def ping(self) -> str:
        """Answers once the actor runs."""
        return "here"


@ray.remote(num_cpus=1)
def work() -> str:
    """Waits its turn."""
    return "done"


def show(address: str) -> None:
    """What `ray status` says, and after some seconds the raylet's log."""
    ray_program = Path(sys.executable).with_name("ray")
    subprocess.run([ray_program, "status", "--address", address], check=True)
    context = ray.get_runtime_context()
    log = Path(context.get_temp_dir(), context.get_session_name(), "logs", "raylet.out")
    found: list[str] = []
    deadline = time.monotonic() + 60
    while not found and time.monotonic() < deadline:
        time.sleep(1)
        found = [line for line in log.read_text().splitlines() if "scheduled right now" in line]
    print(*found, sep="\n")


def broken() -> None:
    """Two CPUs, two actors, and a task."""
    holders = [Holder.remote() for _ in range(2)]
    ray.get([holder.ping.remote() for holder in holders])
    waiting = work.remote()
    done, _ = ray.wait([waiting], timeout=10)
    print("tasks done after 10 s:", len(done))
    show(ray.get_runtime_context().gcs_address)


def mended() -> None:
    """Actors that mostly wait ask for a part of a CPU."""
    holders = [Holder.options(num_cpus=0.25).remote() for _ in range(2)]
    ray.get([holder.ping.remote() for holder in holders])
    print("with smaller actors:", ray.get(work.remote(), timeout=60))


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2)
    broken()  # When it returns, its actors go, since nobody holds them any more.
    mended()
