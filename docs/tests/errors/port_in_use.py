"""A port that Ray is told to use is taken.

Run: python docs/tests/errors/port_in_use.py dashboard (or: serve)
"""

# ruff: noqa: T201

import socket
import sys
import traceback
import urllib.request

import ray
from ray import serve
from ray_shared.testing import free_port


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
class Hello:
    """Answers every request."""

    def __call__(self) -> str:
        """The answer."""
        return "hello"


def dashboard(taken: int) -> None:
    """The dashboard's port, given as a number; and left to Ray."""
    broken = ray.init(address="local", num_cpus=1, dashboard_port=taken)
    print(f"dashboard: {broken.dashboard_url!r}")
    ray.shutdown()
    mended = ray.init(address="local", num_cpus=1)
    print(f"dashboard: {mended.dashboard_url!r}")


def serve_http(taken: int) -> None:
    """The port of Serve's proxy; and another one."""
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": taken})
    except ray.exceptions.RayTaskError:
        traceback.print_exc()
    serve.shutdown()
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Hello.bind())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        print("answer:", answer.read().decode())
    serve.shutdown()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with socket.socket() as other_program:
        other_program.bind(("", 0))
        other_program.listen()
        modes = {"dashboard": dashboard, "serve": serve_http}
        modes[sys.argv[1]](other_program.getsockname()[1])
