"""Errors at the door of a cluster and of Ray Serve, on docs/debugging.md.

Run by `nox -s faults -- docs`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from .conftest import RunScript, Shown

pytestmark = pytest.mark.fault


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node, with the token that this process has."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": None})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_dashboard_port_in_use(run: RunScript, shown: Shown):
    text = run("port_in_use", "dashboard")
    shown(text)
    broken, mended = re.findall(r"^dashboard: (.*)$", text, re.MULTILINE)
    assert broken == "None"
    assert re.fullmatch(r"'[\d.]+:\d+'", mended)


def test_serve_port_in_use(run: RunScript, shown: Shown):
    text = run("port_in_use", "serve")
    shown(text)
    assert "answer: hello\n" in text


def test_serve_application_that_does_not_start(run: RunScript, shown: Shown):
    text = run("serve_not_deployed")
    shown(text)
    assert "answer: " in text


def test_versions_that_differ(run: RunScript, shown: Shown):
    text = run("version_mismatch")
    shown(text)
    assert "joined: 1 node\n" in text


def test_token_that_is_missing_or_wrong(
    cluster: Cluster, run: RunScript, shown: Shown, tmp_path: Path
):
    # No token of the person who runs the test, either.
    nobody = {"HOME": str(tmp_path / "nobody"), "RAY_AUTH_TOKEN": ""}
    shown(run("no_token", cluster.address, env=nobody, code=1))
    shown(run("no_token", cluster.address, env={"RAY_AUTH_TOKEN": "f" * 64}, code=1))
    assert "joined: 1 node\n" in run("no_token", cluster.address)
