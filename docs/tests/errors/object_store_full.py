"""More objects than the object store and the disk hold.

Run: python docs/tests/errors/object_store_full.py full (or: spilled)
"""

# ruff: noqa: T201

import os
import sys
import traceback

import numpy as np
import ray

MIB = 2**20
NUM_PIECES = 20
# int64 [1310720]: 10 MiB, 20 of them are 200 MiB.
SHAPE = 10 * MIB // 8


@ray.remote(num_cpus=1)
def last(piece: np.ndarray) -> int:
    """The piece's number, read from its end."""
    return int(piece[-1])


def hold_all() -> None:
    """Holds a reference to every piece."""
    pieces = [ray.put(np.full(SHAPE, i)) for i in range(NUM_PIECES)]
    print("sum:", sum(ray.get([last.remote(piece) for piece in pieces])))


def full() -> None:
    """A disk without room for the pieces that the store does not hold."""
    try:
        hold_all()
    except ray.exceptions.OutOfDiskError:
        traceback.print_exc()
    mended()


def mended() -> None:
    """Holds one piece at a time."""
    total = 0
    for i in range(NUM_PIECES):
        piece = ray.put(np.full(SHAPE, i))
        total += ray.get(last.remote(piece))
        del piece  # The last reference: the store may drop it.
    print("sum:", total)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "spilled":
        # By default Ray says so from 2 GiB on.
        os.environ |= {"RAY_verbose_spill_logs": str(10 * MIB)}
    else:
        # As if the disk were full: 0.95 is the default.
        os.environ |= {"RAY_local_fs_capacity_threshold": "0.0001"}
    ray.init(address="local", num_cpus=1, object_store_memory=80 * MIB, include_dashboard=False)
    {"full": full, "spilled": hold_all}[sys.argv[1]]()
