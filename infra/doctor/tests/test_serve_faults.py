"""Serve, healthy and not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import serve
from ray_shared.testing import free_port, wait_for

from .simulated import SimulatedCluster, simulate

pytestmark = pytest.mark.fault


@pytest.fixture
def simulated(
    ray_tmpdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimulatedCluster]:
    """Serve without applications."""
    monkeypatch.chdir(tmp_path)
    with simulate(tmp_path, "cluster.num_nodes=1", "cluster.num_cpus=2") as simulated:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        yield simulated
        serve.shutdown()


def deploy(name: str, unhealthy: Path) -> None:
    """An application that is healthy until the file `unhealthy` is there."""

    @serve.deployment(ray_actor_options={"num_cpus": 0.1}, health_check_period_s=1)
    class App:
        def check_health(self) -> None:
            if unhealthy.exists():
                raise RuntimeError("the model is gone")

        def __call__(self, request: Any) -> str:
            return "fine"

    serve.run(App.bind(), name=name, route_prefix=f"/{name}")


def test_application_that_becomes_unhealthy_is_found(simulated: SimulatedCluster, tmp_path: Path):
    unhealthy = tmp_path / "unhealthy"
    deploy("first", tmp_path / "never")
    deploy("second", unhealthy)
    checks = simulated.examine()
    assert simulated.problems(checks) == {}
    assert checks["Serve"].found == "2 application(s) RUNNING, healthy at 1 address(es)"

    unhealthy.write_text("")
    wait_for(lambda: serve.status().applications["second"].status != "RUNNING", "unhealthy app", 60)
    checks = simulated.examine()
    assert simulated.problems(checks) == {"Serve": "failed"}
    assert checks["Serve"].found.startswith("second is ")
    assert "first" not in checks["Serve"].found


def test_proxy_that_hangs_is_found(simulated: SimulatedCluster, tmp_path: Path):
    deploy("first", tmp_path / "never")
    (raylet,) = simulated.cluster.head_node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    (proxy,) = (w for w in workers if "ray::ProxyActor" in " ".join(w.cmdline()))
    proxy.suspend()
    try:
        checks = simulated.examine()
    finally:
        proxy.resume()
    assert simulated.problems(checks) == {"Serve": "failed"}
    assert checks["Serve"].found.endswith("timed out")
    assert "/-/healthz on 127.0.0.1" in checks["Serve"].found
