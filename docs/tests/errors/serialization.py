"""A function that carries something that cannot leave its process.

Run: python docs/tests/errors/serialization.py
"""

# ruff: noqa: T201

import threading
import traceback

import ray

lock = threading.Lock()


@ray.remote(num_cpus=1)
def add_with_lock(x: int) -> int:
    """Uses the driver's lock, so Ray has to send it along."""
    with lock:
        return x + 1


@ray.remote(num_cpus=1, max_concurrency=4)
class Adder:
    """Makes its own lock, where it is used."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.total = 0

    def add(self, x: int) -> int:
        """The sum so far."""
        with self.lock:
            self.total += x
            return self.total


def broken() -> None:
    """Fails in the driver, before the task is sent."""
    try:
        ray.get(add_with_lock.remote(1))
    except TypeError:
        traceback.print_exc()


def mended() -> None:
    """Nothing but numbers is sent."""
    adder = Adder.remote()
    print("total:", max(ray.get([adder.add.remote(1) for _ in range(20)])))


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    broken()
    mended()
