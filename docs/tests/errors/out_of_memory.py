"""A task needs more memory than the node has left.

Run: python docs/tests/errors/out_of_memory.py
"""

# ruff: noqa: T201

import os
import time
import traceback

import numpy as np
import psutil
import ray

GIB = 2**30
NUM_CHUNKS = 60


def read_chunk(i: int) -> np.ndarray:
    """Stands for 64 MiB of a file: 60 of them are 3.75 GiB."""
    time.sleep(0.02)
    return np.full(8 * 2**20, i, dtype=np.int64)


@ray.remote(num_cpus=1, max_retries=0)
def total_of_all() -> int:
    """Loads everything, then adds."""
    chunks = [read_chunk(i) for i in range(NUM_CHUNKS)]
    return sum(int(chunk[-1]) for chunk in chunks)


@ray.remote(num_cpus=1, memory=1 * GIB)
def total_of_stream() -> int:
    """Adds chunk by chunk; says what it needs, so that Ray starts no more than fit."""
    return sum(int(read_chunk(i)[-1]) for i in range(NUM_CHUNKS))


def broken() -> None:
    """Ends with the task's process."""
    try:
        print("total:", ray.get(total_of_all.remote()))
    except ray.exceptions.OutOfMemoryError:
        traceback.print_exc()


def mended() -> None:
    """Needs one chunk's memory."""
    print("total:", ray.get(total_of_stream.remote()))


if __name__ == "__main__":
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    # Ray acts when 1.5 GiB more are in use than now: 0.95 of all memory is the default.
    os.environ |= {
        "RAY_memory_usage_threshold": f"{(used + 1.5 * GIB) / memory.total:.4f}",
        "RAY_memory_monitor_refresh_ms": "50",
    }
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=80 * 2**20,
        _memory=2 * GIB,
        include_dashboard=False,
    )
    broken()
    mended()
