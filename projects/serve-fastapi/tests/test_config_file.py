"""Serve's configuration file: what `serve deploy` and a RayService take."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from ray_shared.config import compose
from ray_shared.testing import free_port, many_nodes, wait_for
from serve_fastapi.config import Config
from serve_fastapi.environment import environment, variables

from .conftest import StartJob

# What `serve deploy` leads to. The command itself asks the dashboard, which takes 127.0.0.1 for
# this machine's address in its network, where a cluster on the loopback interface does not listen.
DEPLOY = """
import sys, ray, yaml
from ray import serve
from ray._private import ray_constants
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
ray_constants.ENABLE_RAY_CLUSTER = False
ray.init(address=sys.argv[1], log_to_driver=False)
with open(sys.argv[2]) as file:
    content = yaml.safe_load(file)
serve.start(http_options=content["http_options"])
_get_global_client().deploy_apps(ServeDeploySchema(**content))
"""


def written(start: StartJob, *overrides: str) -> Path:
    with start("action=config", *overrides) as job:
        assert job.wait(60) == 0, job.output()
    assert "serve_config" in job.output()
    return Path(job.result()["artifacts"]["serve_config"])


def test_file_says_what_the_configuration_says(start: StartJob):
    path = written(start, "serve.port=8123", "scale.ingress.max=7", "limits.deadline_s=3")
    content = yaml.safe_load(path.read_text())
    assert content["http_options"] == {"host": "127.0.0.1", "port": 8123}
    (application,) = ServeDeploySchema(**content).applications
    assert application.import_path == "serve_fastapi.app:build"
    assert application.args["scale"]["ingress"]["max"] == 7
    assert application.args["limits"]["deadline_s"] == 3
    assert set(application.args["models"]["bundles"]) == {"digits", "digits-small", "trips"}
    for name, value in variables(compose(Config, "serve_fastapi.conf")).items():
        assert f"#   {name}={value}\n" in path.read_text()


@pytest.mark.fault
def test_file_is_deployed_and_answers(start: StartJob):
    port = free_port()
    path = written(start, f"serve.port={port}")
    with environment(compose(Config, "serve_fastapi.conf")), many_nodes([3]) as cluster:
        command = [sys.executable, "-c", DEPLOY, cluster.address, str(path)]
        subprocess.run(command, check=True, timeout=60)

        def label() -> str | None:
            image = {"image": [[0] * 8] * 8}
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/digits", json=image)
            except httpx.TransportError:
                return None
            return answer.json()["model"] if answer.status_code == 200 else None

        assert wait_for(label, "answer", 90) == "digits"
