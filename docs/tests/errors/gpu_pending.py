"""A task asks for a GPU, and no node has one; mended: a node with one joins.

Run: python docs/tests/errors/gpu_pending.py
"""

# ruff: noqa: T201

import subprocess
import sys
import traceback
from pathlib import Path

import ray
from ray.cluster_utils import Cluster


@ray.remote(num_cpus=0, num_gpus=1)
def which_gpus() -> list[int]:
    """The GPUs that Ray has given to this task."""
    return [int(gpu) for gpu in ray.get_gpu_ids()]


def broken() -> ray.ObjectRef:
    """Waits; without the timeout, for ever."""
    waiting = which_gpus.remote()
    try:
        ray.get(waiting, timeout=15)
    except ray.exceptions.GetTimeoutError:
        traceback.print_exc()
    ray_program = Path(sys.executable).with_name("ray")
    subprocess.run([ray_program, "status", "--address", cluster.address], check=True)
    return waiting


def mended(waiting: ray.ObjectRef) -> None:
    """The same task runs as soon as there is a GPU: here one that is only claimed to be there."""
    cluster.add_node(num_cpus=1, num_gpus=1)
    print("GPUs of the task:", ray.get(waiting, timeout=60))


if __name__ == "__main__":
    # Without a number for its port, the dashboard finds a free one.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": None})
    try:
        ray.init(address=cluster.address)
        mended(broken())
    finally:
        ray.shutdown()
        cluster.shutdown()
