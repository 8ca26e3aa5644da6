"""Images: where they come from, how they are split, and who gets which in an epoch."""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ray_shared.errors import UserError

from tf_train.config import Config, DataConfig

if TYPE_CHECKING:
    import ray.data
    import tensorflow as tf

SPLITS = ("train", "val", "test")
DIGITS_FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
PARSE_BATCH = 1024
RECORD_SPEC = "'image' (bytes) and 'label' (one int64)"


@dataclass(frozen=True)
class Split:
    """Some images, as bytes: a quarter of the memory of floats."""

    images: np.ndarray
    """uint8 [N, H, W, C]."""
    labels: np.ndarray
    """int64 [N]."""


@dataclass(frozen=True)
class Images:
    """A data set."""

    splits: dict[str, Split]
    """`train`, `val` (ranks checkpoints) and `test` (looked at once, after training)."""
    mean: float
    """Mean of the bytes of the training images."""
    std: float
    """Their standard deviation; 1 if they are all the same."""


def load(config: DataConfig) -> Images:
    """Reads the whole data set into memory."""
    splits = {name: load_split(config, name) for name in SPLITS}
    # Of counts, because NumPy's own would need eight times the memory of the images.
    counts = np.bincount(splits["train"].images.ravel(), minlength=256)
    shades = np.arange(256)
    mean = float(counts @ shades / counts.sum())
    variance = float(counts @ (shades - mean) ** 2 / counts.sum())
    return Images(splits, mean, math.sqrt(variance) or 1.0)


def load_split(config: DataConfig, name: str) -> Split:
    """Reads one of the three splits into memory."""
    if config.name == "digits":
        return _load_digits(config.split_seed)[name]
    return _read(config, record_files(config, name))


def fingerprint(config: DataConfig) -> str | None:
    """A digest of the names and sizes of the files, which a resumed run must not change.

    Returns:
        12 hexadecimal digits; None for digits.

    Raises:
        UserError: If there are no such files.
    """
    if config.name == "digits":
        return None
    files = [path for name in SPLITS for path in record_files(config, name)]
    listed = "\n".join(f"{path.name} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def check_files(config: DataConfig) -> None:
    """Reads every record and refuses missing, truncated and wrong files.

    Raises:
        UserError: Names the file, what was found and what is allowed.
    """
    if config.name == "tfrecord":
        for name in SPLITS:
            _read(config, record_files(config, name))


def record_files(config: DataConfig, split: str) -> list[Path]:
    """The TFRecord files of a split, sorted.

    Raises:
        UserError: If there are none.
    """
    directory = Path(str(config.path))
    if not directory.is_dir():
        raise UserError(f"data.path={config.path}: must be a directory")
    files = sorted(directory.glob(f"{split}*.tfrecord"))
    if not files:
        raise UserError(f"data.path={config.path}: no file {split}*.tfrecord in it")
    return files


def write_records(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes images as a TFRecord file that `data=tfrecord` reads.

    Args:
        path: The file.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
    """
    from tf_train.backend import tf

    feature = tf.train.Feature
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image, label in zip(images, labels, strict=True):
            features = {
                "image": feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
                "label": feature(int64_list=tf.train.Int64List(value=[int(label)])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch, the same on every worker; int64 [N]."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def step_shares(
    order: np.ndarray, batch_size: int, rank: int, world_size: int, offset: int
) -> Iterator[np.ndarray]:
    """One worker's images for each step of an epoch, as indices.

    A step takes the next `world_size * batch_size` images, and each worker a slice of its own. In
    the last step of an epoch the slices are shorter, and differ by one image at most: none is left
    out, and none is taken twice.

    Args:
        order: The order of the epoch; int64 [N].
        batch_size: Images of one step of one worker.
        rank: This worker.
        world_size: Number of workers.
        offset: Images of the epoch that all workers together have had already.
    """
    for start in range(offset, len(order), world_size * batch_size):
        batch = order[start : start + world_size * batch_size]
        first, last = (len(batch) * r // world_size for r in (rank, rank + 1))
        yield batch[first:last]


def filled(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A share as indices and weights; int64 and float32 [B].

    TensorFlow has no gradient of a convolution over no image at all. A worker whose share is empty,
    at the end of an epoch, takes an image that does not count.
    """
    if len(share) == 0:
        return np.zeros(1, np.int64), np.zeros(1, np.float32)
    return share, np.ones(len(share), np.float32)


def ray_dataset(config: Config) -> "ray.data.Dataset":
    """The training images as a Ray Dataset with the columns `image`, `label` and `weight`.

    Ray Train gives every worker the same number of rows and drops what is left over. So there are
    rows of weight 0 at the end, as many as it takes to leave nothing over.
    """
    import ray.data

    data, world_size = config.data, config.scaling.num_workers
    if data.name == "digits":
        train = _load_digits(data.split_seed)["train"]
        num_images = len(train.labels)
        rows = ray.data.range(num_images, override_num_blocks=8)
        images = rows.map_batches(lambda batch: _taken(train, batch["id"]), num_cpus=1)
    else:
        files = [str(path) for path in record_files(data, "train")]
        num_images = _count(files)
        paths = ray.data.from_items([{"path": path} for path in files])
        decode = _Decode(data)
        images = paths.repartition(len(files)).map_batches(decode, batch_size=1, num_cpus=1)
    missing = -num_images % world_size
    if not missing:
        return images
    shape = (missing, *data.shape)
    filling = {
        "image": np.zeros(shape, np.uint8),
        "label": np.zeros(missing, np.int64),
        "weight": np.zeros(missing, np.float32),
    }
    return images.union(
        ray.data.from_numpy(np.arange(1)).map_batches(lambda _: filling, num_cpus=1)
    )


class _Decode:
    """Turns the path of a TFRecord file into its images."""

    def __init__(self, config: DataConfig):
        self.config = config

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return _weighted(_read(self.config, [Path(path) for path in batch["path"]]))


def _taken(split: Split, indices: np.ndarray) -> dict[str, np.ndarray]:
    return _weighted(Split(split.images[indices], split.labels[indices]))


def _weighted(split: Split) -> dict[str, np.ndarray]:
    weight = np.ones(len(split.labels), np.float32)
    return {"image": split.images, "label": split.labels, "weight": weight}


def _count(files: list[str]) -> int:
    from tf_train.backend import tf

    return sum(1 for _ in tf.data.TFRecordDataset(files))


def _read(config: DataConfig, files: list[Path]) -> Split:
    """All records of some TFRecord files.

    Raises:
        UserError: Names the file, the record, what was found and what is allowed.
    """
    splits = [_read_file(config, path) for path in files]
    images = np.concatenate([split.images for split in splits])
    return Split(images, np.concatenate([split.labels for split in splits]))


def _read_file(config: DataConfig, path: Path) -> Split:
    from tf_train.backend import tf

    spec = {"image": tf.io.FixedLenFeature([], tf.string)}
    spec["label"] = tf.io.FixedLenFeature([], tf.int64)
    size = int(np.prod(config.shape))
    images, labels, done = [], [], 0
    try:
        for records in tf.data.TFRecordDataset(str(path)).batch(PARSE_BATCH):
            try:
                parsed = tf.io.parse_example(records, spec)
            except tf.errors.InvalidArgumentError as error:
                raise UserError(f"{path}: a record is not {RECORD_SPEC}: {_why(error)}") from None
            lengths = tf.strings.length(parsed["image"]).numpy()
            if (lengths != size).any():
                record = int((lengths != size).argmax())
                raise UserError(
                    f"{path}: record {done + record} has {lengths[record]} bytes in 'image'; "
                    f"data.shape={config.shape} has {size}"
                )
            found = parsed["label"].numpy()
            wrong = (found < 0) | (found >= config.num_classes)
            if wrong.any():
                record = int(wrong.argmax())
                raise UserError(
                    f"{path}: record {done + record} has the label {found[record]}; "
                    f"data.num_classes={config.num_classes} allows 0 to {config.num_classes - 1}"
                )
            pixels = np.frombuffer(b"".join(parsed["image"].numpy()), np.uint8)
            images.append(pixels.reshape(-1, *config.shape))
            labels.append(found)
            done += len(found)
    except tf.errors.DataLossError as error:
        raise UserError(f"{path}: truncated or no TFRecord file: {_why(error)}") from None
    except tf.errors.OpError as error:
        raise UserError(f"{path}: cannot be read: {_why(error)}") from None
    if not done:
        raise UserError(f"{path}: there is no record in it")
    return Split(np.concatenate(images), np.concatenate(labels))


def _why(error: "tf.errors.OpError") -> str:
    """What TensorFlow says, without the operation that says it."""
    message = re.sub(r"\{\{.*?\}\} ", "", str(error.message))
    return message.split(" [Op:")[0].splitlines()[0]


def _load_digits(seed: int) -> dict[str, Split]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]  # values 0 to 16, [1797, 8, 8, 1]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    ends = np.cumsum([round(f * len(labels)) for f in DIGITS_FRACTIONS.values()])[:-1]
    parts = zip(DIGITS_FRACTIONS, np.split(order, ends), strict=True)
    return {name: Split(images[part], labels[part]) for name, part in parts}
