"""A user's mistake: exit code 2, one sentence, no Ray, nothing left in the storage."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ray_shared.config import compose
from ray_shared.errors import UserError
from ray_shared.testing import free_port
from tf_train import data
from tf_train.backend import tf
from tf_train.config import Config

from .conftest import StartJob
from .records import write_splits


def refused(start: StartJob, *overrides: str, env: dict[str, str] | None = None) -> str:
    """Runs the job, which must be refused, and returns its sentence."""
    with start(*overrides, env=env) as job:
        return job.refusal()


def test_misspelt_key_is_refused_and_leaves_nothing(start: StartJob, tmp_path: Path):
    sentence = refused(start, "train.epohcs=3")
    assert sentence == "unknown key 'train.epohcs': did you mean 'train.epochs'?"
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".log"] == []


def test_missing_data_is_refused(start: StartJob, tmp_path: Path):
    sentence = refused(start, "data=tfrecord", f"data.path={tmp_path}/none")
    assert sentence == f"data.path={tmp_path}/none: must be a directory"


def test_wrong_record_is_refused_by_the_job(start: StartJob, tmp_path: Path):
    write_splits(tmp_path, 20)
    sentence = refused(start, "data=tfrecord", f"data.path={tmp_path}", "data.num_classes=5")
    expected = f"{tmp_path}/train-0.tfrecord: record 5 has the label 5; data.num_classes=5 allows"
    assert sentence.startswith(expected)


def checked(directory: Path, *overrides: str) -> str:
    """The sentence with which the files are refused."""
    options = ["data=tfrecord", f"data.path={directory}", *overrides]
    config = compose(Config, "tf_train.conf", options)
    with pytest.raises(UserError) as error:
        data.check_files(config.data)
    return str(error.value)


def test_missing_split_is_refused(tmp_path: Path):
    write_splits(tmp_path, 5)
    (tmp_path / "val.tfrecord").unlink()
    assert checked(tmp_path) == f"data.path={tmp_path}: no file val*.tfrecord in it"


def test_truncated_file_is_refused(tmp_path: Path):
    write_splits(tmp_path, 5)
    file = tmp_path / "train-1.tfrecord"
    os.truncate(file, file.stat().st_size - 10)
    assert checked(tmp_path).startswith(f"{file}: truncated or no TFRecord file: truncated record")


def test_file_of_another_format_is_refused(tmp_path: Path):
    write_splits(tmp_path, 5)
    file = tmp_path / "test.tfrecord"
    file.write_bytes(b"no record at all, but some bytes")
    assert checked(tmp_path).startswith(f"{file}: truncated or no TFRecord file: corrupted record")


def test_empty_file_is_refused(tmp_path: Path):
    write_splits(tmp_path, 5)
    (tmp_path / "test.tfrecord").write_bytes(b"")
    assert checked(tmp_path) == f"{tmp_path}/test.tfrecord: there is no record in it"


def test_unreadable_file_is_refused(tmp_path: Path):
    write_splits(tmp_path, 5)
    (tmp_path / "train-2.tfrecord").mkdir()
    assert checked(tmp_path).startswith(f"{tmp_path}/train-2.tfrecord: cannot be read: ")


def test_other_files_of_the_same_directory_are_no_resume(tmp_path: Path):
    write_splits(tmp_path, 5)
    config = compose(Config, "tf_train.conf", ["data=tfrecord", f"data.path={tmp_path}"]).data
    before = data.fingerprint(config)
    write_splits(tmp_path, 6)
    assert before is not None
    assert data.fingerprint(config) != before


def test_record_with_another_feature_spec_is_refused(tmp_path: Path):
    write_splits(tmp_path, 5)
    file = tmp_path / "val.tfrecord"
    floats = tf.train.Feature(float_list=tf.train.FloatList(value=[0.5]))
    example = tf.train.Example(features=tf.train.Features(feature={"image": floats}))
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(example.SerializeToString())
    sentence = checked(tmp_path)
    expected = f"{file}: a record is not 'image' (bytes) and 'label' (one int64): "
    assert sentence.startswith(expected)
    assert "\n" not in sentence


def test_image_of_another_size_is_refused(tmp_path: Path):
    write_splits(tmp_path, 5)
    sentence = checked(tmp_path, "data.shape=[4,4,1]")
    file = tmp_path / "train-0.tfrecord"
    assert sentence == f"{file}: record 0 has 64 bytes in 'image'; data.shape=[4, 4, 1] has 16"


def test_negative_label_is_refused_by_the_number_of_its_record(tmp_path: Path):
    write_splits(tmp_path, 5)
    labels = np.zeros(1500, np.int64)
    labels[1200] = -1
    images = np.zeros((1500, 8, 8, 1), np.uint8)
    data.write_records(tmp_path / "val.tfrecord", images, labels)
    assert "val.tfrecord: record 1200 has the label -1" in checked(tmp_path)


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
        assert job.wait(60) == 2
    sentence = f"error: cluster.address={address}: no cluster answers there (Connection refused)"
    assert job.output().strip() == sentence


def test_more_workers_than_cpus_are_refused_without_starting_ray(start: StartJob):
    sentence = refused(start, "scaling.num_workers=9", "cluster.num_cpus=4")
    assert "the cluster (1 node(s), 4 CPU, 0 GPU) has room for 4; with a larger" in sentence


def test_absent_gpu_is_refused(start: StartJob):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    with start("scaling.use_gpu=true", "scaling.num_workers=1", env=hidden) as job:
        assert job.wait(60) == 2
    assert job.output().strip() == "error: scaling.use_gpu=true: the cluster has no GPU"
    assert job.survivors() == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.width=64"], "model.width=64: run 'old' was started with 32"),
        (["model=mlp"], "model.name=mlp: run 'old' was started with cnn"),
        (["run.resume=must"], "run.resume=must: "),
        (["run.resume=never"], "run.resume=never: "),
    ],
)
def test_resume_that_makes_no_sense_is_refused(
    start: StartJob, tmp_path: Path, overrides: list[str], sentence: str
):
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    record = compose(Config, "tf_train.conf").locked()
    (run / "run.json").write_text(json.dumps(record))
    assert refused(start, "run.name=old", *overrides).startswith(sentence)
    assert [p.name for p in run.iterdir()] == ["run.json"]
