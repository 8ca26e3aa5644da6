"""The same work in many small tasks, and in a few.

Run: python docs/tests/errors/small_tasks.py
"""

# ruff: noqa: T201

import subprocess
import sys
import time
from pathlib import Path

import ray

NUM_ITEMS = 2000
BATCH_SIZE = 200


@ray.remote(num_cpus=1)
def square(item: int) -> int:
    """A microsecond of work."""
    return item * item


@ray.remote(num_cpus=1)
def square_batch(items: list[int]) -> list[int]:
    """Enough of them that sending the task is worth it."""
    return [item * item for item in items]


@ray.remote(num_cpus=1)
def wait() -> None:
    """Keeps its worker for so long that the other one starts as well."""
    time.sleep(0.5)


def broken() -> list[int]:
    """A task for each item."""
    squares: list[int] = ray.get([square.remote(i) for i in range(NUM_ITEMS)])
    return squares


def mended() -> list[int]:
    """A task for each batch."""
    starts = range(0, NUM_ITEMS, BATCH_SIZE)
    batches = [list(range(start, start + BATCH_SIZE)) for start in starts]
    done = ray.get([square_batch.remote(batch) for batch in batches])
    return [item for batch in done for item in batch]


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2)
    ray.get([wait.remote() for _ in range(2)])  # The workers' start is not what is measured.
    for work in (broken, mended):
        start = time.perf_counter()
        total = sum(work())
        print(f"{work.__name__}: sum {total} after {time.perf_counter() - start:.3f} s")
    time.sleep(2)  # Task events arrive once a second.
    address = ray.get_runtime_context().gcs_address
    ray_program = Path(sys.executable).with_name("ray")
    subprocess.run([ray_program, "summary", "tasks", "--address", address], check=True)
