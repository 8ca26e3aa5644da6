"""A small cluster with something in every state, for the tools on docs/debugging.md.

Run: python docs/tests/errors/something_to_look_at.py /tmp (until /tmp/stop exists)
"""

# ruff: noqa: T201

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group
from ray_shared.testing import free_port


@ray.remote(num_cpus=0.5)
class Sleeper:
    """Lives until the cluster ends."""

    def pid(self) -> int:
        """Of the actor's process."""
        return os.getpid()

    def sleep(self) -> None:
        """Is found in this line."""
        print("the sleeper sleeps")
        time.sleep(1000)


@ray.remote(num_cpus=0.5)
def divide(x: int) -> float:
    """Fails for zero."""
    return 1 / x


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
class Hello:
    """Answers every request."""

    def __call__(self) -> str:
        """The answer."""
        return "hello"


if __name__ == "__main__":
    # Without a number each port is one that is free, whatever else runs on this machine.
    head = {"num_cpus": 2, "dashboard_port": None, "dashboard_agent_listen_port": None}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address)
    sleeper, victim = Sleeper.remote(), Sleeper.remote()
    os.kill(ray.get(victim.pid.remote()), signal.SIGKILL)
    held = ray.put(np.zeros(2**20))
    waiting = placement_group([{"CPU": 8}])
    pid = ray.get(sleeper.pid.remote())
    sleeper.sleep.remote()
    done, _ = ray.wait([divide.remote(x) for x in (0, 1, 2)], num_returns=3)
    serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    serve.run(Hello.bind())
    time.sleep(2)  # Task events arrive once a second.
    print(f"ready {cluster.address} {cluster.webui_url} {ray.util.get_node_ip_address()} {pid}")
    while not Path(sys.argv[1], "stop").exists():
        time.sleep(0.2)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()
