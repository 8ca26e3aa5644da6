"""Serve, healthy and not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import serve
from ray_shared.testing import free_port, wait_for

from .clinic import Clinic, opened

pytestmark = pytest.mark.fault


@pytest.fixture
def clinic(ray_tmpdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clinic]:
    """Serve without applications."""
    monkeypatch.chdir(tmp_path)
    with opened(tmp_path, "cluster.num_nodes=1", "cluster.num_cpus=2") as clinic:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        yield clinic
        serve.shutdown()


def deploy(name: str, sick: Path) -> None:
    """An application that is healthy until the file `sick` is there."""

    @serve.deployment(ray_actor_options={"num_cpus": 0.1}, health_check_period_s=1)
    class App:
        def check_health(self) -> None:
            if sick.exists():
                raise RuntimeError("the model is gone")

        def __call__(self, request: Any) -> str:
            return "fine"

    serve.run(App.bind(), name=name, route_prefix=f"/{name}")


def test_application_that_becomes_unhealthy_is_found(clinic: Clinic, tmp_path: Path):
    sick = tmp_path / "sick"
    deploy("first", tmp_path / "never")
    deploy("second", sick)
    checks = clinic.examine()
    assert clinic.blamed(checks) == {}
    assert checks["Serve"].found == "2 application(s) RUNNING, healthy at 1 address(es)"

    sick.write_text("")
    wait_for(lambda: serve.status().applications["second"].status != "RUNNING", "sick app", 60)
    checks = clinic.examine()
    assert clinic.blamed(checks) == {"Serve": "failed"}
    assert checks["Serve"].found.startswith("second is ")
    assert "first" not in checks["Serve"].found


def test_proxy_that_hangs_is_found(clinic: Clinic, tmp_path: Path):
    deploy("first", tmp_path / "never")
    (raylet,) = clinic.cluster.head_node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    (proxy,) = (w for w in workers if "ray::ProxyActor" in " ".join(w.cmdline()))
    proxy.suspend()
    try:
        checks = clinic.examine()
    finally:
        proxy.resume()
    assert clinic.blamed(checks) == {"Serve": "failed"}
    assert checks["Serve"].found.endswith("timed out")
    assert "/-/healthz on 127.0.0.1" in checks["Serve"].found
