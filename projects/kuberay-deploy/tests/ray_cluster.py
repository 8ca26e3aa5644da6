"""A Ray cluster with a dashboard, on the loopback interface, and applications to put on it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray_shared  # noqa: F401 - before Ray, so that it wants a token

from .checked import REPOSITORY

HELLO = """
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Hello:
    def __init__(self, word):
        if word == "bad":
            raise ValueError("no such word")
        self.word = word

    def __call__(self, request):
        return self.word

def build(args):
    return Hello.bind(args["word"])
"""


def source(project: str) -> Path:
    """Where another project's package lies; a copied starter has no others."""
    if REPOSITORY is None:
        pytest.skip(f"{project} is not here")
    return REPOSITORY / "projects" / project / "src"


def hello(directory: Path) -> Path:
    """A package with a small application of Ray Serve."""
    package = directory / "hello_app"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(HELLO)
    return package


@contextlib.contextmanager
def running(num_cpus: int) -> Iterator[str]:
    """The address of the dashboard of a cluster that lives as long as the block.

    Its token is in this process's environment: see conftest.py.
    """
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Ray takes the machine's own address for 127.0.0.1, here and in each of its processes.
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # The command of a job is `python`, as in an image.
        programs = Path(sys.executable).parent
        patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster()
        try:
            # Another Ray on this machine may have the usual ports.
            node = cluster.add_node(
                num_cpus=num_cpus,
                node_ip_address="127.0.0.1",
                dashboard_port=None,
                dashboard_agent_listen_port=0,
                include_dashboard=True,
            )
            yield f"http://{node.webui_url}"
        finally:
            cluster.shutdown()
