"""Who gets which images, and what is read from files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray_shared.config import compose
from tf_train import data
from tf_train.config import Config

from .records import write_splits


@given(
    num_images=st.integers(1, 200),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 5),
    steps_done=st.integers(0, 3),
)
def test_every_image_is_in_exactly_one_share(
    num_images: int, batch_size: int, world_size: int, steps_done: int
):
    order = data.epoch_order(num_images, seed=3, epoch=1)
    offset = min(steps_done * batch_size * world_size, num_images)
    shares = [
        list(data.step_shares(order, batch_size, rank, world_size, offset))
        for rank in range(world_size)
    ]
    # As many steps on each worker: a collective waits for all of them.
    assert len({len(steps) for steps in shares}) == 1
    for step in zip(*shares, strict=True):
        assert max(map(len, step)) <= batch_size
        assert max(map(len, step)) - min(map(len, step)) <= 1
    together = [index for step in zip(*shares, strict=True) for share in step for index in share]
    assert together == order[offset:].tolist()


def test_order_is_another_one_in_each_epoch_and_for_each_seed():
    orders = {tuple(data.epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    np.testing.assert_array_equal(data.epoch_order(50, 1, 2), data.epoch_order(50, 1, 2))


def test_digits_are_split_once_for_all():
    images = data.load(compose(Config, "tf_train.conf").data)
    sizes = {name: split.images.shape for name, split in images.splits.items()}
    assert sizes == {"train": (1258, 8, 8, 1), "val": (270, 8, 8, 1), "test": (269, 8, 8, 1)}
    again = data.load(compose(Config, "tf_train.conf").data)
    np.testing.assert_array_equal(images.splits["test"].images, again.splits["test"].images)
    assert images.mean == pytest.approx(images.splits["train"].images.mean())


def test_records_are_read_as_they_were_written(tmp_path: Path):
    write_splits(tmp_path, 30, numbered=True)
    options = ["data=tfrecord", f"data.path={tmp_path}"]
    config = compose(Config, "tf_train.conf", options).data
    data.check_files(config)
    train = data.load(config).splits["train"]
    # Of both files, in their order.
    assert train.images[:, 0, 0, 0].tolist() == list(range(60))
    assert train.labels.tolist() == [*range(10)] * 6
    assert train.images.dtype == np.uint8
