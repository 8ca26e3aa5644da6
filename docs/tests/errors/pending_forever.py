"""Workers are asked for that no cluster of this size can place.

Run: python docs/tests/errors/pending_forever.py
"""

# ruff: noqa: T201

import subprocess
import sys
import traceback
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.state import list_placement_groups


def workers(num_workers: int) -> PlacementGroup:
    """A place for each worker, of one CPU: all at once, or none."""
    return placement_group([{"CPU": 1}] * num_workers)


def show(address: str) -> None:
    """What the State API and `ray status` say."""
    print([group.state for group in list_placement_groups(address)])
    ray_program = Path(sys.executable).with_name("ray")
    subprocess.run([ray_program, "status", "--address", address], check=True)


def broken() -> None:
    """Four workers on two CPUs."""
    group = workers(4)
    try:
        ray.get(group.ready(), timeout=15)
    except ray.exceptions.GetTimeoutError:
        traceback.print_exc()
    show(ray.get_runtime_context().gcs_address)
    remove_placement_group(group)


def mended() -> None:
    """As many as the cluster holds."""
    group = workers(int(ray.cluster_resources()["CPU"]))
    ray.get(group.ready(), timeout=60)
    print("ready:", group.bundle_count, "workers")


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2)
    broken()
    mended()
