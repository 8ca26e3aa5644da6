"""In real training processes, Ray Data gives each worker its own images of an epoch."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train
import ray.train.tensorflow
from ray_shared import cluster
from ray_shared.config import compose
from ray_shared.report import Report
from tf_train import data
from tf_train.config import Config
from tf_train.group import GroupConfig

from .records import write_splits

NUM_RECORDS = 51


@pytest.fixture(scope="module")
def local_cluster(tmp_path_factory: pytest.TempPathFactory, ray_tmpdir: Path) -> Iterator[None]:
    # The workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    config = compose(Config, "tf_train.conf", ["cluster.num_cpus=4"])
    report = Report("test", tmp_path_factory.mktemp("report"), {})
    demand = cluster.Demand(2, 1, ray_train=True)
    with cluster.connect(config.cluster, demand, report, "tf_train"):
        yield


def collect(loop: dict[str, Any]) -> None:
    """Writes which images this worker gets in one epoch: their first pixels are their numbers."""
    rank = ray.train.get_context().get_world_rank()
    shard = ray.train.get_dataset_shard("train")
    batches = shard.to_tf(feature_columns="image", label_columns=["label", "weight"], batch_size=16)
    rows = [
        (int(image[0, 0, 0]), int(label), float(weight))
        for images, targets in batches
        for image, label, weight in zip(
            images.numpy(), targets["label"].numpy(), targets["weight"].numpy(), strict=True
        )
    ]
    (Path(loop["out"]) / f"{rank}.json").write_text(json.dumps(rows))


@pytest.mark.fault  # No fault, but most of a minute; test_data.py has the shares from memory.
def test_streamed_images_reach_one_worker_each_and_none_is_left_over(
    local_cluster: None, tmp_path: Path
):
    files = tmp_path / "files"
    files.mkdir()
    write_splits(files, NUM_RECORDS, numbered=True)
    (files / "train-1.tfrecord").unlink()  # An odd number of images, for two workers.
    options = ["data=tfrecord", f"data.path={files}", "data.loader=ray", "cluster.num_cpus=4"]
    config = compose(Config, "tf_train.conf", options)
    ray.train.tensorflow.TensorflowTrainer(
        collect,
        train_loop_config={"out": str(tmp_path)},
        tensorflow_config=GroupConfig(),
        datasets={"train": data.ray_dataset(config)},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "runs")),
    ).fit()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(second) == 26
    counted = sorted(number for number, _, weight in first + second if weight)
    assert counted == list(range(NUM_RECORDS))
    assert [weight for _, _, weight in first + second if not weight] == [0.0]
    assert all(label == number % 10 for number, label, weight in first + second if weight)
