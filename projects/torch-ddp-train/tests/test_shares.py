"""In the real training processes, each worker gets its own images of an epoch."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train
import ray.train.torch
from ray_shared import cluster
from ray_shared.config import compose
from ray_shared.report import Report
from torch_ddp_train import data
from torch_ddp_train.config import Config

from .cifar import write_cifar10

NUM_RECORDS = 101


@pytest.fixture(scope="module")
def local_cluster(tmp_path_factory: pytest.TempPathFactory, ray_tmpdir: Path) -> Iterator[None]:
    # The workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    config = compose(Config, "torch_ddp_train.conf", ["cluster.num_cpus=4"])
    report = Report("test", tmp_path_factory.mktemp("report"), {})
    demand = cluster.Demand(2, 1, ray_train=True)
    with cluster.connect(config.cluster, demand, report, "torch_ddp_train"):
        yield


def collect(loop: dict[str, Any]) -> None:
    """Writes which images this worker gets in one epoch: their first pixels are their numbers."""
    context = ray.train.get_context()
    config: Config = loop["config"]
    rank, world_size = context.get_world_rank(), context.get_world_size()
    split = data.load(config.data).splits["train"]
    batches = data.epoch_batches(config, split, rank, world_size, epoch=0, offset=0)
    numbers = [
        int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for images, _ in batches for image in images
    ]
    (Path(loop["out"]) / f"{rank}.json").write_text(json.dumps(numbers))


@pytest.mark.parametrize("loader", ["torch", "ray"])
def test_workers_share_an_epoch_without_overlap(local_cluster: None, tmp_path: Path, loader: str):
    files = tmp_path / "cifar"
    files.mkdir()
    write_cifar10(files, NUM_RECORDS, numbered=True)
    config = compose(
        Config,
        "torch_ddp_train.conf",
        ["data=cifar10", f"data.path={files}", f"data.loader={loader}", "cluster.num_cpus=4"],
    )
    ray.train.torch.TorchTrainer(
        collect,
        train_loop_config={"config": config, "out": str(tmp_path)},
        datasets={"train": data.ray_dataset(config.data)} if loader == "ray" else None,
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "runs")),
    ).fit()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    everyone = first + second
    assert len(first) == len(second) == 2 * NUM_RECORDS
    assert sorted(everyone) == list(range(4 * NUM_RECORDS))
    assert everyone != sorted(everyone)
