"""A user's mistake: exit code 2, one sentence, no Ray, nothing left in the storage."""

import json
from pathlib import Path

import pytest
from ray_shared.testing import free_port

from .cifar import write_cifar10
from .conftest import StartJob


def refused(start: StartJob, *overrides: str, env: dict[str, str] | None = None) -> str:
    """Runs the job, which must be refused, and returns its sentence."""
    with start(*overrides, env=env) as job:
        return job.refusal()


def test_misspelt_key_is_refused_and_leaves_nothing(start: StartJob, tmp_path: Path):
    sentence = refused(start, "train.epohcs=3")
    assert sentence == "unknown key 'train.epohcs': did you mean 'train.epochs'?"
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".log"] == []


def test_added_misspelt_key_is_refused(start: StartJob):
    assert "did you mean 'train.epochs'?" in refused(start, "+train.epohcs=3")


def test_zero_workers_are_refused(start: StartJob):
    assert refused(start, "scaling.num_workers=0") == "scaling.num_workers=0: must be >= 1"


def test_missing_data_is_refused(start: StartJob, tmp_path: Path):
    sentence = refused(start, "data=cifar10", f"data.path={tmp_path}/none")
    assert sentence.endswith("data_batch_1.bin is missing there")


def test_truncated_data_file_is_refused(start: StartJob, tmp_path: Path):
    write_cifar10(tmp_path, 3)
    (tmp_path / "data_batch_2.bin").write_bytes(b"x" * 100)
    sentence = refused(start, "data=cifar10", f"data.path={tmp_path}")
    assert "data_batch_2.bin: 100 bytes: truncated" in sentence


def test_unwritable_storage_is_refused(start: StartJob, tmp_path: Path):
    (tmp_path / "file").touch()
    sentence = refused(start, f"storage.path={tmp_path}/file/runs")
    assert sentence.startswith(f"storage.path={tmp_path}/file/runs: not writable")


def test_unreachable_s3_endpoint_is_refused(start: StartJob):
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    sentence = refused(start, "storage.path=s3://bucket/runs", env=env)
    assert sentence.startswith("storage.path=s3://bucket/runs: not writable")


def test_missing_cluster_is_refused(start: StartJob):
    address = f"127.0.0.1:{free_port()}"
    env = {"RAY_AUTH_TOKEN": "0" * 64}
    with start("cluster=existing", f"cluster.address={address}", env=env) as job:
        assert job.wait() == 2
    sentence = f"error: cluster.address={address}: no cluster answers there (Connection refused)"
    assert job.output().strip() == sentence


def test_more_workers_than_cpus_are_refused_without_starting_ray(start: StartJob, ray_tmpdir: Path):
    sessions = list(ray_tmpdir.rglob("session_*"))
    with start("scaling.num_workers=9", "cluster.num_cpus=4") as job:
        assert job.wait() == 2
    assert job.output().strip() == (
        "error: scaling.num_workers=9: each needs 1 CPU, and the cluster (1 node(s), 4 CPU, 0 GPU) "
        "has room for 4; with a larger cluster.num_cpus they share CPUs"
    )
    assert list(ray_tmpdir.rglob("session_*")) == sessions


def test_absent_gpu_is_refused(start: StartJob):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    with start("scaling.use_gpu=true", "scaling.num_workers=1", env=hidden) as job:
        assert job.wait() == 2
    assert job.output().strip() == "error: scaling.use_gpu=true: the cluster has no GPU"
    assert job.survivors() == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.width=64"], "model.width=64: run 'old' was started with 32"),
        (["data.split_seed=5"], "data.split_seed=5: run 'old' was started with 0"),
        (["run.resume=must"], "run.resume=must: "),
        (["run.resume=never"], "run.resume=never: "),
    ],
)
def test_resume_that_makes_no_sense_is_refused(
    start: StartJob, tmp_path: Path, overrides: list[str], sentence: str
):
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    data = {"name": "digits", "loader": "torch", "split_seed": 0}
    model = {"name": "cnn", "width": 32, "dropout": 0.1}
    checkpoint = {"metric": "val_accuracy", "mode": "max"}
    record = {"data": data, "model": model, "train": {"seed": 0}, "checkpoint": checkpoint}
    (run / "run.json").write_text(json.dumps(record))
    assert refused(start, "run.name=old", *overrides).startswith(sentence)
    assert [p.name for p in run.iterdir()] == ["run.json"]


def test_run_whose_record_is_torn_is_refused(start: StartJob, tmp_path: Path):
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"data": ')
    assert refused(start, "run.name=old").endswith("choose another run.name")
