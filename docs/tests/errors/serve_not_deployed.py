"""A Serve application whose replicas do not start.

Run: python docs/tests/errors/serve_not_deployed.py
"""

# ruff: noqa: T201

import traceback
import urllib.request
from pathlib import Path

import ray
from ray import serve
from ray_shared.testing import free_port


@serve.deployment(
    num_replicas=1, max_constructor_retry_count=1, ray_actor_options={"num_cpus": 0.1}
)
class Model:
    """Reads its weights when it starts."""

    def __init__(self, weights: str) -> None:
        self.size = len(Path(weights).read_bytes())

    def __call__(self) -> int:
        """Stands for a prediction."""
        return self.size


def broken() -> None:
    """No such file."""
    try:
        serve.run(Model.bind("/models/absent.bin"))
    except RuntimeError:
        traceback.print_exc()
    print(serve.status().applications["default"].deployments["Model"].message)


def mended() -> None:
    """A file that every node can read."""
    serve.run(Model.bind(__file__))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        print("answer:", answer.read().decode())


if __name__ == "__main__":
    port = free_port()
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    broken()
    mended()
    serve.shutdown()
