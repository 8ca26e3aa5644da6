"""Planned changes and lost nodes, on a cluster that stays: no request fails."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ray.cluster_utils import Cluster
from ray_shared.bundle import Bundle, read_bundle, write_bundle
from ray_shared.config import compose
from ray_shared.testing import free_port, many_nodes
from serve_fastapi.config import Config
from serve_fastapi.environment import environment

from .conftest import StartJob
from .loading import under_load

pytestmark = pytest.mark.fault


@contextlib.contextmanager
def cluster_for_serving(num_cpus: list[int]) -> Iterator[Cluster]:
    with environment(compose(Config, "serve_fastapi.conf")), many_nodes(num_cpus) as cluster:
        yield cluster


@pytest.fixture
def deploy(start: StartJob):
    """Deploys on a cluster; the exit code."""
    port = free_port()

    def begin(cluster: Cluster, *overrides: str) -> tuple[int, str]:
        common = ["action=deploy", "cluster=existing", f"cluster.address={cluster.address}"]
        with start(*common, *overrides, f"serve.port={port}") as job:
            return job.wait(120), job.output()

    begin.address = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
    return begin


def other_version(bundle: str, target: Path, **model: str) -> Path:
    """The same model with another version."""
    shutil.copytree(bundle, target)
    old = read_bundle(target)
    content = json.loads((target / "bundle.json").read_text())
    (target / "bundle.json").unlink()
    (target / "note.txt").write_text("another version")
    fields = Bundle.__dataclass_fields__
    kept = {k: v for k, v in content.items() if k in fields and k != "files"}
    kept["model"] = old.model | model
    write_bundle(target, Bundle(**kept))
    return target


def version(address: str) -> str:
    return httpx.get(f"{address}/version").json()["models"]["digits"]


def test_rolling_update_fails_no_request(deploy, bundles: dict[str, str], tmp_path: Path):
    new = other_version(bundles["digits"], tmp_path / "new")
    with cluster_for_serving([3]) as cluster:
        assert deploy(cluster)[0] == 0
        before = version(deploy.address)
        with under_load(deploy.address, 8, 0) as load:
            load.wait_for_answers(200)
            code, output = deploy(cluster, f"models.bundles.digits={new}")
            assert code == 0, output
            load.wait_for_answers(200)
        assert version(deploy.address) != before
    assert load.counts["num_failed"] == 0, load.counts["failures"]


def test_bad_new_version_gets_no_traffic(deploy, bundles: dict[str, str], tmp_path: Path):
    bad = other_version(bundles["digits"], tmp_path / "bad", file="note.txt")
    with cluster_for_serving([3]) as cluster:
        assert deploy(cluster)[0] == 0
        before = version(deploy.address)
        with under_load(deploy.address, 8, 0) as load:
            load.wait_for_answers(200)
            code, output = deploy(cluster, f"models.bundles.digits={bad}")
            assert code == 1, output
            assert "the application does not start" in output
            load.wait_for_answers(500)
        assert version(deploy.address) == before
    assert load.counts["num_failed"] == 0, load.counts["failures"]


def test_lost_node_fails_only_what_was_on_it(deploy):
    replicas = ["scale.fused=true", "scale.ingress.min=2", "scale.ingress.max=2"]
    with cluster_for_serving([0, 1, 1]) as cluster:  # A replica on each but the head.
        code, output = deploy(cluster, *replicas, "scale.ingress.num_cpus=1")
        assert code == 0, output
        with under_load(deploy.address, 8, 8) as load:
            load.wait_for_answers(200)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            load.wait_for_answers(1000)
    assert load.counts["num_failed"] == 0, load.counts["failures"]
