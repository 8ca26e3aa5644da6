"""Submitting as a user does it: a rendered workload, on a running cluster and on Kubernetes."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from kuberay_deploy import dashboard
from ray_shared.testing import free_port

from .conftest import PROJECT, StartJob
from .fake_api import FakeApi, serve
from .ray_cluster import running, source

SMALL = ["workload=torch-ddp-train", "profile=dev"]


@pytest.fixture(scope="module")
def address(ray_tmpdir: Path) -> Iterator[str]:
    with running(num_cpus=4) as found:
        yield found


@pytest.fixture
def on_ray(address: str) -> list[str]:
    return ["target=ray", "cluster=existing", f"cluster.address={address}"]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeApi]:
    with serve(tmp_path) as server:
        server.objects["namespaces", "", "ray"] = {"metadata": {"name": "ray"}}
        yield server


def kubernetes_env(fake: FakeApi) -> dict[str, str]:
    return {"KUBECONFIG": str(fake.kubeconfig), "KUBERAY_CRDS": ""}


@pytest.mark.fault  # The fast tier submits a service.
def test_training_is_submitted_and_its_result_comes_back(
    start: StartJob, on_ray: list[str], address: str, tmp_path: Path
):
    storage = [f"storage.path={tmp_path}/runs", f"source={source('torch-ddp-train')}"]
    overrides = 'overrides=["train.batch_size=128"]'
    submit = ["action=submit", *SMALL, *on_ray, *storage, overrides, "wait=true", "job.id=first"]
    submit += ["+job.env.WORD=there"]
    with start(*submit) as job:
        assert job.wait() == 0, job.output()
    metrics = job.result()["metrics"]
    assert metrics["status"] == "SUCCEEDED"
    result = metrics["result"]
    assert result["project"] == "torch-ddp-train"
    assert result["status"] == "ok"
    assert result["config"]["train"]["batch_size"] == 128
    assert result["config"]["run"]["name"] == "first"
    assert result["metrics"]["accuracy"] > 0.5
    assert (tmp_path / "runs" / "first").is_dir()
    runtime_env = dashboard.connect(address).get_job_info("first").runtime_env
    assert runtime_env["env_vars"]["WORD"] == "there"

    with start("action=status", *on_ray, "job.id=first") as job:
        assert job.wait(60) == 0, job.output()
    assert job.result()["metrics"]["status"] == "SUCCEEDED"
    with start("action=logs", *on_ray, "job.id=first") as job:
        assert job.wait(60) == 0, job.output()
    assert "test accuracy" in job.output()
    with start(*submit) as job:
        assert job.wait(60) == 2, job.output()
    assert "job.id=first: there is such a job already" in job.output()


@pytest.mark.fault  # The fast tier has its parts, each without a command.
def test_failed_job_ends_the_command_with_its_exit_code(
    start: StartJob, on_ray: list[str], tmp_path: Path
):
    storage = [f"storage.path={tmp_path}/runs", f"source={source('torch-ddp-train')}"]
    # What its configuration alone does not tell.
    resumed = ['overrides=["run.resume=must"]', "job.id=second"]
    with start("action=submit", *SMALL, *on_ray, *storage, *resumed, "wait=true") as job:
        assert job.wait() == 2, job.output()
    assert "submitted" in job.output()
    assert "error: job second: run.resume=must: " in job.output()


def test_service_is_submitted_answers_and_is_stopped(
    start: StartJob, on_ray: list[str], tmp_path: Path
):
    port = free_port()
    # On a loopback interface nobody needs a key.
    own = f'["serve.host=127.0.0.1","serve.port={port}","scale.fused=true","scale.ingress.max=1"]'
    where = [f"storage.path={tmp_path}/runs", f"source={source('serve-fastapi')}"]
    service = ["workload=serve-fastapi", "profile=dev", f"overrides={own}"]
    with start("action=submit", *service, *on_ray, *where) as job:
        assert job.wait() == 0, job.output()
    (found,) = job.result()["metrics"]["addresses"].values()
    assert httpx.get(f"{found.rstrip('/')}/readyz").status_code == 200
    for action in ("status", "wait"):
        with start(f"action={action}", *on_ray, "job.id=serve-fastapi") as job:
            assert job.wait(60) == 0, job.output()
        assert job.result()["metrics"]["status"] == "RUNNING"
    assert "waiting until serve-fastapi runs" in job.output()
    with start("action=stop", *on_ray, "job.id=serve-fastapi") as job:
        assert job.wait(120) == 0, job.output()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{found.rstrip('/')}/readyz").raise_for_status()


def test_rendered_workload_is_applied_as_a_whole(start: StartJob, fake: FakeApi):
    with start("action=submit", *SMALL, env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 0, job.output()
    name = "torch-ddp-train-dev"
    assert job.result()["metrics"]["submitted"] == [f"RayJob/{name}"]
    assert fake.names() == {
        "namespaces/ray",
        f"networkpolicies/{name}",
        f"networkpolicies/{name}-api",
        f"poddisruptionbudgets/{name}-head",
        f"poddisruptionbudgets/{name}-worker",
        f"rayjobs/{name}",
    }


def test_kept_file_is_applied_and_followed(start: StartJob, fake: FakeApi):
    manifest = PROJECT / "manifests" / "torch-ddp-train-dev.yaml"
    with start("action=submit", f"manifest={manifest}", env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 0, job.output()
    key = ("rayjobs", "ray", "torch-ddp-train-dev")
    fake.objects[key]["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    name = "job.id=RayJob/torch-ddp-train-dev"
    with start("action=wait", name, env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 0, job.output()
    fake.objects[key]["status"] = {"jobDeploymentStatus": "Failed", "message": "no luck"}
    with start("action=wait", name, env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 1, job.output()
    assert "no luck" in job.output()
    with start("action=stop", name, env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 0, job.output()
    assert "rayjobs/torch-ddp-train-dev" not in fake.names()


def test_missing_secret_is_named_and_nothing_is_applied(start: StartJob, fake: FakeApi):
    service = ["workload=serve-fastapi", "profile=dev"]
    with start("action=submit", *service, env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 2, job.output()
    assert "the secret ray/serve-fastapi-keys is missing" in job.output()
    assert fake.names() == {"namespaces/ray"}


def test_unknown_context_is_refused(start: StartJob, fake: FakeApi):
    with start("action=submit", *SMALL, "kubernetes.context=prod", env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 2, job.output()
    assert "kubernetes.context=prod: must be one of test" in job.output()
    assert fake.calls == []


def test_wrong_manifest_never_reaches_the_cluster(start: StartJob, fake: FakeApi, tmp_path: Path):
    good = (PROJECT / "manifests" / "torch-ddp-train-dev.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.replace("  backoffLimit: 0\n", "  backoffLimit: -1\n", 1))
    assert bad.read_text() != good
    with start("action=submit", f"manifest={bad}", env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 2, job.output()
    assert "spec.backoffLimit" in job.output()
    assert json.dumps(fake.calls) == "[]"


@pytest.mark.fault  # The fast tier has its parts, each without a command.
def test_definitions_come_from_the_cluster(start: StartJob, fake: FakeApi, crds_path: Path):
    manifest = f"manifest={PROJECT / 'manifests' / 'torch-ddp-train-dev.yaml'}"
    validate = ["action=validate", manifest, "crds=cluster"]
    with start(*validate, env=kubernetes_env(fake)) as job:
        assert "customresourcedefinitions" in job.refusal()
    for file in crds_path.glob("ray.io_*.yaml"):
        definition = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        name = definition["metadata"]["name"]
        fake.objects["customresourcedefinitions", "", name] = definition
    with start(*validate, env=kubernetes_env(fake)) as job:
        assert job.wait(60) == 0, job.output()
    assert job.result()["metrics"]["schemas_checked"] is True
