"""The driver's Ray is older than the cluster's.

Run: python docs/tests/errors/version_mismatch.py
"""

# ruff: noqa: T201

import traceback

import ray
from ray.cluster_utils import Cluster


def broken() -> None:
    """The check compares this string with the one that the head has stored."""
    version = ray.__version__
    ray.__version__ = "2.59.0"
    try:
        ray.init(address=cluster.address)
    except RuntimeError:
        traceback.print_exc()
    ray.__version__ = version


def mended() -> None:
    """The same version on both sides."""
    ray.init(address=cluster.address)
    print("joined:", len(ray.nodes()), "node")


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": None})
    try:
        broken()
        ray.shutdown()
        mended()
    finally:
        ray.shutdown()
        cluster.shutdown()
