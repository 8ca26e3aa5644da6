"""An actor loses its process; mended: it is started again and finds its state.

Run: python docs/tests/errors/actor_died.py
"""

# ruff: noqa: T201

import os
import signal
import tempfile
import traceback
from pathlib import Path

import ray
from ray.util.state import list_actors


class Counter:
    """Counts, in memory only."""

    def __init__(self) -> None:
        self.value = 0

    def add(self) -> int:
        """The new value."""
        self.value += 1
        return self.value

    def pid(self) -> int:
        """Of the actor's process."""
        return os.getpid()


@ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)
class LastingCounter(Counter):
    """Keeps its value in a file, so that a restart finds it."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.value = int(self.file.read_text()) if self.file.exists() else 0

    def add(self) -> int:
        """The new value, once it is kept."""
        self.value += 1
        self.file.write_text(str(self.value))
        return self.value


def count_across_a_kill(counter: ray.actor.ActorHandle) -> int:
    """Counts, loses the process as to a segmentation fault, counts again."""
    ray.get(counter.add.remote())
    os.kill(ray.get(counter.pid.remote()), signal.SIGKILL)
    value: int = ray.get(counter.add.remote())
    return value


def broken() -> None:
    """The second count finds no actor."""
    try:
        count_across_a_kill(ray.remote(num_cpus=1)(Counter).remote())
    except ray.exceptions.ActorDiedError:
        traceback.print_exc()
    address = ray.get_runtime_context().gcs_address
    for actor in list_actors(address, filters=[("state", "=", "DEAD")], detail=True):
        print(actor.class_name, actor.state, actor.death_cause)


def mended() -> None:
    """The second count waits for the restart and goes on from the file."""
    with tempfile.TemporaryDirectory() as directory:
        value = count_across_a_kill(LastingCounter.remote(f"{directory}/value"))
        print("value after the kill:", value)


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2)
    broken()
    mended()
