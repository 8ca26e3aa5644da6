"""Small TFRecord files for tests."""

from pathlib import Path

import numpy as np
from tf_train import data


def write_splits(directory: Path, num_images: int, numbered: bool = False) -> None:
    """Writes two training files, and one of each other split.

    Args:
        directory: Where to.
        num_images: In each file.
        numbered: Whether the first pixel of each training image is its number in the split.
    """
    for first, name in enumerate(("train-0", "train-1", "val", "test")):
        rng = np.random.default_rng(first)
        images = rng.integers(0, 16, (num_images, 8, 8, 1), np.uint8)
        labels = np.arange(num_images) % 10
        if numbered:
            images[:, 0, 0, 0] = np.arange(num_images) + first * num_images
        data.write_records(directory / f"{name}.tfrecord", images, labels)
