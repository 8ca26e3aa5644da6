"""What a user can get wrong: one sentence, exit code 2, and nothing left behind."""

from pathlib import Path

import pytest
from kuberay_deploy.__main__ import preflight
from kuberay_deploy.config import Config
from ray_shared.config import compose
from ray_shared.errors import UserError
from ray_shared.testing import free_port

from .conftest import StartJob
from .ray_cluster import source

RAY = ["target=ray", "workload=tf-train", "profile=dev"]
TRAIN = ["workload=torch-ddp-train", "profile=dev"]
VALIDATE = ["action=validate", "manifest=x.yaml"]
EXISTING = ["cluster=existing", "cluster.address=http://127.0.0.1:8265"]


MISTAKES: list[tuple[list[str], str]] = [
    (
        ["profile=spto"],
        "profile=spto: must be one of dev, gpu, spot, prod, all; did you mean spot",
    ),
    (
        ["workload=torch-dpp-train"],
        "workload=torch-dpp-train: must be one of torch-ddp-train, core-parameter-server, ",
    ),
    (["kind=deployment"], "kind=deployment: must be one of auto, cluster, job, service, cron"),
    (
        ["kind=service", "workload=tf-train"],
        "kind=service: must be one of auto, cluster, job, cron for tf-train",
    ),
    (
        ["platform=azure"],
        "platform=azure: must be one of aws, aws-auto, aws-managed, bare, gcp",
    ),
    (
        ["profile=gpu", "platform.gpu.exists=false"],
        "profile=gpu: platform=bare has no gpu pool: must be another profile, or platform.gpu",
    ),
    (
        ["profile=gpu", "workload=serve-fastapi"],
        "profile=gpu: serve-fastapi does not use GPUs: must be one of dev, spot, prod, all",
    ),
    (["storage.path=./runs"], "storage.path=./runs: must be in /mnt/runs, or start with s3://"),
    (["storage.path=/mnt/runs/../x"], "storage.path=/mnt/runs/../x: must be in /mnt/runs"),
    (["storage.path=ftp://host/x"], "storage.path=ftp://host/x: must be in /mnt/runs"),
    (["image.tag=latest"], "image.tag=latest: must be a tag with Ray's version in it"),
    (["image.tag=2.51.0"], "image.tag=2.51.0: must be of Ray 2.52.0 or newer"),
    (["image.tag=3.1.0-ray2.51.0"], "image.tag=3.1.0-ray2.51.0: must be of Ray 2.52.0 or newer"),
    (["image.tag=mine-2.60.0"], "image.tag=mine-2.60.0: must be a tag with Ray's version in it"),
    (["job.timeout_s=0"], "job.timeout_s=0.0: must be > 0, or null"),
    (
        ["profiles.spot.retires=1"],
        "unknown key 'profiles.spot.retires': did you mean 'profiles.spot.retries'?",
    ),
    (
        ["workloads.tf_train.prod.max_workers=1"],
        "workloads.tf_train.prod.max_workers=1: must be >= workloads.tf_train.prod.workers=4",
    ),
    (
        ["workloads.tf_train.worker.memory=8GB"],
        "workloads.tf_train.worker.memory=8GB: must be a number of Mi, Gi or Ti",
    ),
    (["action=validate"], "manifest=null: must be the file to validate"),
    (["action=validate", "manifest=no.yaml"], "no.yaml: No such file or directory"),
    (["manifest=x.yaml"], "manifest=x.yaml: only with action=validate, rehearse or submit"),
    (["crds.path=nowhere"], "crds.path=nowhere: no such directory"),
    (["crds=download", "crds.path=x"], "crds.path=x: only with crds=directory"),
    (["action=submit"], "workload=all: must be one workload with action=submit"),
    (["action=status"], "job.id=null: must be given with action=status"),
    (["action=submit", *RAY], "cluster.address=null: must be the dashboard's, as in cluster="),
    (["action=submit", *RAY, *EXISTING], "tf_train: no such package in this environment"),
    (["action=logs", "job.id=RayJob/x", *EXISTING], "cluster=existing: only with target=ray"),
    (
        ["workload=serve-fastapi", "profile=dev", 'overrides=["batch.max_row=1"]'],
        "overrides: batch.max_row=1: serve-fastapi has no key batch.max_row: did you mean "
        "batch.max_rows?",
    ),
    (["namespace=Foo"], "namespace=Foo: must be at most 63 small letters, digits and '-'"),
    (["platform.api_server_cidr=foo"], "platform.api_server_cidr=foo: must be a range of addr"),
    (["image.pull_secret=Foo_Bar"], "image.pull_secret=Foo_Bar: must be at most 253 small"),
    (
        ["image.repository=ray-ref:5/x..y"],
        "image.repository=ray-ref:5/x..y: must be a registry",
    ),
    (
        ["kubernetes.head_service_account='A B'"],
        "kubernetes.head_service_account=A B: must be at most 253 small letters",
    ),
    (["kubernetes.redis_address=redis:99999"], "kubernetes.redis_address=redis:99999: must be"),
    (
        ["kubernetes.feature_gates=[RayCronJobs]"],
        "kubernetes.feature_gates=RayCronJobs: must be one of RayClusterStatusConditions, ",
    ),
    (["kind=service", "profile=gpu"], "workload=all profile=gpu kind=service: no workload is"),
    (
        ["storage.path=abfs://runs@account/x"],
        "storage.path=abfs://runs@account/x: the images h",
    ),
    (["output=/dev/null"], "output=/dev/null: /dev/null is no directory: must be a directory"),
    (["+job.env.A=b"], "job.env: only with target=ray"),
    ([*VALIDATE, "workload=tf-train"], "workload=tf-train: only without manifest="),
    ([*VALIDATE, 'overrides=["a=b"]'], "overrides=['a=b']: only without manifest="),
    ([*VALIDATE, "source=src"], "source=src: only without manifest="),
    (["action=submit", *RAY, *EXISTING, "kind=job"], "kind=job: only with target=kubernetes"),
    (
        ["action=logs", *RAY, *EXISTING, "job.id=serve-fastapi"],
        "action=logs: serve-fastapi is an application of Ray Serve, which has no log of a job",
    ),
    ([*TRAIN, 'overrides=["storage.path=/x"]'], "overrides: storage.path=/x: submitting a job"),
    (
        [*TRAIN, 'overrides=["+cluster=local"]'],
        "overrides: +cluster=local: submitting a job sets",
    ),
    ([*TRAIN, 'overrides=["hydra.run.dir=x"]'], "overrides: hydra.run.dir=x: submitting a job"),
    ([*TRAIN, "overrides=[train.lr]"], "overrides: train.lr: must be key=value"),
    ([*TRAIN, "overrides=['train.lr=1,2']"], "overrides: train.lr=1,2: must be one value"),
    (
        [*TRAIN, 'overrides=["train.lr=0.1","train.lr=0.2"]'],
        "overrides: train.lr=0.2: a second value of train.lr: must be one",
    ),
    (
        [*TRAIN, "kind=cron", 'overrides=["run.name=x"]'],
        "overrides: run.name=x: each job of kind=",
    ),
    (
        ["workload=serve-fastapi", "profile=dev", 'overrides=["batch.max_rows=many"]'],
        "overrides: batch.max_rows=many: must be an integer",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), MISTAKES)
def test_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], sentence: str
):
    monkeypatch.delenv("KUBERAY_CRDS", raising=False)
    with pytest.raises(UserError) as refusal:
        preflight(compose(Config, "kuberay_deploy.conf", overrides))
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(("overrides", "sentence"), MISTAKES[::12])
def test_command_ends_with_the_sentence(start: StartJob, overrides: list[str], sentence: str):
    # Without the definitions a warning would come first.
    with start(*overrides, env={"KUBERAY_CRDS": ""}) as job:
        assert job.refusal().startswith(sentence)


def test_override_that_the_workload_does_not_know_is_refused(start: StartJob):
    wrong = ['overrides=["train.epohcs=3"]', f"source={source('torch-ddp-train')}"]
    with start(*TRAIN, *wrong, env={"KUBERAY_CRDS": ""}) as job:
        refusal = job.refusal()
    assert refusal.startswith(
        "overrides: torch-ddp-train: unknown key 'train.epohcs': did you mean"
    )


def test_output_that_cannot_be_made_is_named(start: StartJob):
    # Root may write everywhere, but not this.
    with start(*TRAIN, "output=/proc/foo", env={"KUBERAY_CRDS": ""}) as job:
        assert job.wait(60) == 2, job.output()
    assert "error: output=/proc/foo: " in job.output()
    assert "Traceback" not in job.output()


def test_cache_that_cannot_be_written_is_named(start: StartJob, tmp_path: Path):
    (tmp_path / "file").write_text("")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "file"), "KUBERAY_CRDS": ""}
    with start(*TRAIN, "crds=download", env=cache) as job:
        refusal = job.refusal()
    assert refusal.startswith(
        f"crds=download: {tmp_path}/file/kuberay-deploy/crds: Not a directory"
    )


def test_address_without_a_dashboard_is_refused(start: StartJob):
    address = f"http://127.0.0.1:{free_port()}"
    args = ["target=ray", "cluster=existing", f"cluster.address={address}", "job.id=x"]
    with start("action=status", *args) as job:
        assert job.wait(60) == 2, job.output()
    assert f"error: cluster.address={address}: no dashboard answers there" in job.output()
    assert "Traceback" not in job.output()


def test_wrong_manifest_is_caught_before_any_file_is_written(start: StartJob, tmp_path: Path):
    overrides = ["workload=tf-train", "profile=dev", "output=made", "job.schedule=0 3 * * 9"]
    with start("kind=cron", *overrides, env={"KUBERAY_CRDS": ""}) as job:
        assert job.wait(60) == 2, job.output()
    assert "spec.schedule: found 0 3 * * 9" in job.output()
    assert not (tmp_path / "made").exists()
