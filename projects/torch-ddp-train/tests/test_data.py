"""Who gets which images, and which files are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ray_shared.errors import UserError
from torch_ddp_train import data
from torch_ddp_train.config import DataConfig

from .cifar import write_cifar10


def shares(num_samples, world_size, *, epoch=0, offset=0, batch_size=8, accumulate_steps=1):
    """The indices of every rank, batch by batch."""
    return [
        list(
            data.ShardSampler(
                num_samples, batch_size, accumulate_steps, rank, world_size, 0, epoch, offset
            )
        )
        for rank in range(world_size)
    ]


def flat(batches):
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("accumulate_steps", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_workers_get_disjoint_shares_of_equal_size(world_size, accumulate_steps):
    ranks = shares(1003, world_size, accumulate_steps=accumulate_steps)
    together = [index for batches in ranks for index in flat(batches)]
    assert len(together) == len(set(together)) == 1003 - 1003 % world_size
    assert len({tuple(len(batch) for batch in batches) for batches in ranks}) == 1


def test_order_changes_with_the_epoch_and_not_with_the_call():
    assert shares(100, 2, epoch=0) == shares(100, 2, epoch=0)
    assert shares(100, 2, epoch=0) != shares(100, 2, epoch=1)


def test_run_that_goes_on_with_fewer_workers_sees_every_image_once():
    before = shares(240, 3)
    done_steps = 4
    seen = [i for batches in before for i in flat(batches[:done_steps])]
    after = shares(240, 2, offset=len(seen))
    rest = [i for batches in after for i in flat(batches)]
    assert sorted(seen + rest) == list(range(240))


def test_loader_yields_what_the_sampler_chose_without_touching_the_global_generator():
    split = data.Split(
        np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1), np.arange(40, dtype=np.int64)
    )
    sampler = data.ShardSampler(40, 8, 1, 0, 2, 0, 0, 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(data.torch_loader(split, sampler))
    assert torch.equal(before, torch.get_rng_state())
    assert [labels.tolist() for _, labels in batches] == list(sampler)
    assert all(torch.equal(x.flatten().long(), y) for x, y in batches)


def test_digits_splits_are_disjoint_and_complete():
    config = DataConfig("digits", None, "torch", 2, 0)
    images = data.load(config)
    assert {name: len(s.labels) for name, s in images.splits.items()} == {
        "train": 1258,
        "val": 270,
        "test": 269,
    }
    assert images.shape == (1, 8, 8)
    other = data.load(DataConfig("digits", None, "torch", 2, 1))
    assert not np.array_equal(images.splits["test"].labels, other.splits["test"].labels)


def test_cifar10_files_are_read_as_they_were_written(tmp_path: Path):
    written = write_cifar10(tmp_path, num_records=20)
    config = DataConfig("cifar10", str(tmp_path), "torch", 2, 0)
    data.check_files(config)
    images = data.load(config)
    assert images.shape == (3, 32, 32)
    assert {name: len(split.labels) for name, split in images.splits.items()} == {
        "train": 80,
        "val": 20,
        "test": 20,
    }
    pixels, labels = written["test_batch.bin"]
    assert np.array_equal(images.splits["test"].images, pixels)
    assert np.array_equal(images.splits["test"].labels, labels)


def test_missing_data_path_is_refused(tmp_path: Path):
    config = DataConfig("cifar10", str(tmp_path / "nowhere"), "torch", 2, 0)
    with pytest.raises(UserError, match=r"data.path=.*nowhere: data_batch_1.bin is missing there"):
        data.check_files(config)


def test_truncated_data_file_is_refused(tmp_path: Path):
    write_cifar10(tmp_path, num_records=5)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"data_batch_3.bin: 15265 bytes: truncated or no CIFAR-10"):
        data.check_files(DataConfig("cifar10", str(tmp_path), "torch", 2, 0))


def test_data_file_of_another_format_is_refused(tmp_path: Path):
    write_cifar10(tmp_path, num_records=5)
    (tmp_path / "test_batch.bin").write_bytes(b"\xff" * 3073 * 5)
    with pytest.raises(UserError, match=r"test_batch.bin: record 0 has the label 255"):
        data.check_files(DataConfig("cifar10", str(tmp_path), "torch", 2, 0))
