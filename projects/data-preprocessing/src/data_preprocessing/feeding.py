"""Prepared rows for trainers that learn from batches: three ways out of Ray Data.

What matters for speed, most first:

* *One column for all features.* Thirty columns are thirty tensors to convert and to stack for each
  batch; `stacked` does it once, while Ray Data reads.
* *Prefetch.* While the trainer works on a batch, the next ones are fetched: `prefetch_batches=2`.
* *Block size.* A batch that is cut out of two blocks is copied: files of a million rows, batches of
  some thousand.
* *Locality.* `streaming_split` takes the nodes of its readers as `locality_hints`, so that blocks
  are produced where they are read. Ray Train's `get_dataset_shard` gives them by itself.

Source: https://docs.ray.io/en/releases-2.60.0/data/iterating-over-data.html
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import ray.data
from ray_shared.storage import Storage

from data_preprocessing import output
from data_preprocessing.features import LABEL

if TYPE_CHECKING:
    import tensorflow as tf
    import torch

FEATURES = "features"


def stacked(dataset: Storage, manifest: dict[str, Any], split: str) -> "ray.data.Dataset":
    """The rows of a split, read lazily: `features`, float32 [F], and the label, float32.

    Args:
        dataset: Directory of a prepared run.
        manifest: Its manifest.
        split: `train`, `val` or `test`.
    """
    names = manifest["features"]

    def stack(table: pa.Table) -> dict[str, Any]:
        rows = pl.DataFrame(pl.from_arrow(table))
        return {FEATURES: rows.select(names).to_numpy(), LABEL: rows[LABEL].to_numpy()}

    files = output.feature_files(dataset, manifest, split)
    rows = ray.data.read_parquet(files, filesystem=dataset.filesystem, partitioning=None)
    return rows.select_columns([LABEL, *names]).map_batches(
        stack, batch_format="pyarrow", batch_size=None, num_cpus=1
    )


def torch_batches(
    rows: "ray.data.Dataset | ray.data.DataIterator", batch_size: int, prefetch: int = 2
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Batches for PyTorch: features, float32 [B, F], and labels, float32 [B]."""
    batches = rows.iter_torch_batches(batch_size=batch_size, prefetch_batches=prefetch)
    for batch in batches:
        yield batch[FEATURES], batch[LABEL]


def tensorflow_dataset(
    rows: "ray.data.Dataset | ray.data.DataIterator", batch_size: int, prefetch: int = 2
) -> "tf.data.Dataset":
    """The same as a `tf.data.Dataset`."""
    return rows.to_tf(FEATURES, LABEL, batch_size=batch_size, prefetch_batches=prefetch)


def streams(
    rows: "ray.data.Dataset", num_readers: int, nodes: list[str] | None = None
) -> list["ray.data.DataIterator"]:
    """A stream for each of several readers, which must all read at the same time.

    They get equally many rows, so that all can take equally many steps; what is left over, fewer
    rows than readers, is left out.

    Args:
        rows: What to share out.
        num_readers: How many there are.
        nodes: The id of the node on which each reader is.
    """
    return rows.streaming_split(num_readers, equal=True, locality_hints=nodes)
