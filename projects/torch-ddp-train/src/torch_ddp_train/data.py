"""Images: where they come from, how they are split, and who gets which in an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ray_shared.errors import UserError

from torch_ddp_train.config import Config, DataConfig

if TYPE_CHECKING:
    import ray.data
    from torch import Tensor
    from torch.utils.data import DataLoader

# A record of a CIFAR-10 binary file: one label byte, then 3x32x32 image bytes.
# https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR_SHAPE = (3, 32, 32)
CIFAR_RECORD = 1 + 3 * 32 * 32
CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR_FILES = {
    "train": [f"data_batch_{i}.bin" for i in (1, 2, 3, 4)],
    "val": ["data_batch_5.bin"],
    "test": ["test_batch.bin"],
}
DIGITS_FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


@dataclass(frozen=True)
class Split:
    """Some images, as bytes: a quarter of the memory of floats."""

    images: np.ndarray
    """uint8 [N, C, H, W]."""
    labels: np.ndarray
    """int64 [N]."""


@dataclass(frozen=True)
class Images:
    """A data set."""

    splits: dict[str, Split]
    """`train`, `val` (ranks checkpoints) and `test` (looked at once, after training)."""
    classes: list[str]
    mean: float
    """Mean of the bytes of the training images."""
    std: float
    """Their standard deviation."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.splits["train"].images.shape[1:]


def check_files(config: DataConfig) -> None:
    """Refuses missing, truncated and wrong files. Reads one byte in each record.

    Raises:
        UserError: Names the file, what was found and what is allowed.
    """
    if config.name == "digits":
        return
    for path in [p for names in CIFAR_FILES.values() for p in _cifar_paths(config, names)]:
        try:
            _check_cifar(config, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _check_cifar(config: DataConfig, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"data.path={config.path}: {path.name} is missing there")
    size = path.stat().st_size
    if size == 0 or size % CIFAR_RECORD:
        raise UserError(
            f"{path}: {size} bytes: truncated or no CIFAR-10 binary file, whose size is a "
            f"multiple of {CIFAR_RECORD}"
        )
    labels = np.memmap(path, np.uint8, "r").reshape(-1, CIFAR_RECORD)[:, 0]
    if labels.max() > 9:
        record = int((labels > 9).argmax())
        raise UserError(
            f"{path}: record {record} has the label {labels[record]}: no CIFAR-10 binary "
            "file, whose labels are 0 to 9"
        )


def load(config: DataConfig) -> Images:
    """Reads the whole data set into memory."""
    if config.name == "digits":
        splits, classes = _load_digits(config.split_seed), [str(i) for i in range(10)]
    else:
        splits = {name: _load_cifar(config, names) for name, names in CIFAR_FILES.items()}
        classes = CIFAR_CLASSES
    train = splits["train"].images
    return Images(splits, classes, float(train.mean()), float(train.std()))


class ShardSampler:
    """Yields the indices of one worker's micro-batches for one epoch.

    All workers walk through the same random order of the images. An optimizer step takes the next
    `world_size * accumulate_steps * batch_size` of them, and each worker a slice of its own, so
    shares are disjoint, and a run that goes on with more or fewer workers neither repeats nor
    skips an image. Workers do the same number of steps of the same size (a collective would hang
    otherwise): at most `world_size - 1` images are left out, others in each epoch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        accumulate_steps: int,
        rank: int,
        world_size: int,
        seed: int,
        epoch: int,
        offset: int,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.accumulate_steps = accumulate_steps
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = epoch
        self.offset = offset
        """Images of the epoch that all workers together have had already."""

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        left = (self.num_samples - self.offset) // self.world_size
        start = self.offset
        while left > 0:
            share = min(left, self.accumulate_steps * self.batch_size)
            mine = order[start + self.rank * share : start + (self.rank + 1) * share]
            for i in range(0, share, self.batch_size):
                yield mine[i : i + self.batch_size].tolist()
            start += share * self.world_size
            left -= share


def torch_loader(split: Split, sampler: ShardSampler) -> "DataLoader":
    """Batches (uint8 [B, C, H, W], int64 [B]) for the indices that `sampler` yields.

    `batch_size=None` hands a whole list of indices to the data set, which answers with one tensor
    operation. The usual way fetches and stacks image by image.
    """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    dataset = TensorDataset(torch.from_numpy(split.images), torch.from_numpy(split.labels))
    # A generator of its own: the loader would draw from the global one at each start, and a run
    # resumed inside an epoch would see other dropout than one that went through.
    return DataLoader(dataset, sampler=sampler, batch_size=None, generator=torch.Generator())


def epoch_batches(
    config: Config, split: Split, rank: int, world_size: int, epoch: int, offset: int
) -> Iterator[tuple["Tensor", "Tensor"]]:
    """One worker's batches (uint8 [B, C, H, W], int64 [B]) of an epoch. Runs in a Train worker.

    Args:
        config: Loader, batch size, accumulation and seed.
        split: The training images; Ray Data reads them itself.
        rank: This worker.
        world_size: Number of workers.
        epoch: Which random order.
        offset: Images of the epoch that all workers together have had; 0 with Ray Data.
    """
    if config.data.loader == "ray":
        import ray.train

        # Ray Data reads, decodes and splits the images while training runs.
        shard = ray.train.get_dataset_shard("train")
        for batch in shard.iter_torch_batches(
            batch_size=config.train.batch_size,
            prefetch_batches=config.data.prefetch_batches,
            local_shuffle_buffer_size=16 * config.train.batch_size,
            local_shuffle_seed=config.train.seed + epoch,
        ):
            yield batch["image"], batch["label"]
        return
    sampler = ShardSampler(
        num_samples=len(split.labels),
        batch_size=config.train.batch_size,
        accumulate_steps=config.train.accumulate_steps,
        rank=rank,
        world_size=world_size,
        seed=config.train.seed,
        epoch=epoch,
        offset=offset,
    )
    yield from torch_loader(split, sampler)


def ray_dataset(config: DataConfig) -> "ray.data.Dataset":
    """The training images as a Ray Dataset with the columns `image` and `label`, read lazily."""
    import ray.data

    if config.name == "digits":
        train = _load_digits(config.split_seed)["train"]
        images = ray.data.range(len(train.labels), override_num_blocks=8)
        return images.map_batches(lambda rows: _take(train, rows["id"]), num_cpus=1)
    paths = [str(path) for path in _cifar_paths(config, CIFAR_FILES["train"])]
    files = ray.data.read_binary_files(paths, num_cpus=1)
    return files.map_batches(_decode_cifar, batch_size=1, num_cpus=1)


def _take(split: Split, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": split.images[indices], "label": split.labels[indices]}


def _decode_cifar(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    records = np.frombuffer(b"".join(batch["bytes"]), np.uint8).reshape(-1, CIFAR_RECORD)
    return {
        "image": records[:, 1:].reshape(-1, *CIFAR_SHAPE),
        "label": records[:, 0].astype(np.int64),
    }


def _load_digits(seed: int) -> dict[str, Split]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]  # values 0 to 16, [1797, 1, 8, 8]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    ends = np.cumsum([round(f * len(labels)) for f in DIGITS_FRACTIONS.values()])[:-1]
    parts = zip(DIGITS_FRACTIONS, np.split(order, ends), strict=True)
    return {name: Split(images[part], labels[part]) for name, part in parts}


def _load_cifar(config: DataConfig, names: list[str]) -> Split:
    content = [path.read_bytes() for path in _cifar_paths(config, names)]
    rows = _decode_cifar({"bytes": np.array(content, dtype=object)})
    return Split(np.ascontiguousarray(rows["image"]), rows["label"])


def _cifar_paths(config: DataConfig, names: list[str]) -> list[Path]:
    return [Path(str(config.path)) / name for name in names]
