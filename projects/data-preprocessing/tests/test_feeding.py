"""What trainers get out of a prepared run: every row, in the right shape."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import ray
from data_preprocessing import feeding, output, pipeline
from data_preprocessing.config import Config
from data_preprocessing.features import LABEL
from ray_shared import cluster
from ray_shared.cluster import Demand
from ray_shared.config import compose
from ray_shared.report import Report
from ray_shared.storage import Storage, open_storage

NUM_ROWS, BATCH = 5000, 512
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((NUM_ROWS, 3), dtype=np.float32)
    label = np.arange(NUM_ROWS, dtype=np.float32)  # So that a row can be told by its label.
    return pl.DataFrame(values, NAMES).with_columns(pl.Series(LABEL, label))


@pytest.fixture(scope="module")
def prepared(
    rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Storage, dict[str, Any]]:
    """A prepared run of two files, as its manifest describes it."""
    run_dir = open_storage(str(tmp_path_factory.mktemp("run")))
    files = []
    for number, part in enumerate((rows[:3000], rows[3000:])):
        path = f"features/split=train/unit-{number}.parquet"
        written = output.write_parquet(run_dir.child("attempt-0001").child(path), part)
        files.append({"path": path, **written})
    return run_dir, {"attempt": "attempt-0001", "features": NAMES, "files": files}


@pytest.fixture(scope="module")
def dataset(
    prepared: tuple[Storage, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    ray_tmpdir: Path,
) -> Iterator["ray.data.Dataset"]:
    config = compose(Config, "data_preprocessing.conf", ["cluster.num_cpus=3"])
    report = Report("test-feeding", tmp_path_factory.mktemp("report"), {})
    with cluster.connect(config.cluster, Demand(1, 1), report, "data_preprocessing"):
        pipeline.configure()
        yield feeding.stacked(*prepared, "train")


def check(rows: pl.DataFrame, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Every row once, its features beside its label."""
    features, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    order = np.argsort(labels)
    np.testing.assert_array_equal(labels[order], rows[LABEL].to_numpy())
    np.testing.assert_array_equal(features[order], rows.select(NAMES).to_numpy())


def test_torch_batches_hold_every_row_once(rows: pl.DataFrame, dataset: "ray.data.Dataset"):
    batches = [(x.numpy(), y.numpy()) for x, y in feeding.torch_batches(dataset, BATCH)]
    # The short one need not come last: Ray Data does not keep the order.
    whole, rest = divmod(NUM_ROWS, BATCH)
    assert Counter(x.shape for x, _ in batches) == {(BATCH, 3): whole, (rest, 3): 1}
    assert {x.dtype for x, _ in batches} == {np.dtype(np.float32)}
    check(rows, batches)


def test_tensorflow_dataset_holds_every_row_once(rows: pl.DataFrame, dataset: "ray.data.Dataset"):
    found = feeding.tensorflow_dataset(dataset, BATCH)
    assert found.element_spec[0].shape.as_list() == [None, 3]
    check(rows, [(x.numpy(), y.numpy()) for x, y in found])


def test_streams_share_the_rows_equally(rows: pl.DataFrame, dataset: "ray.data.Dataset"):
    @ray.remote(num_cpus=0.5)
    def labels(stream: "ray.data.DataIterator") -> np.ndarray:
        return np.concatenate([y.numpy() for _, y in feeding.torch_batches(stream, BATCH)])

    found = ray.get([labels.remote(stream) for stream in feeding.streams(dataset, 2)])
    assert [len(part) for part in found] == [NUM_ROWS // 2] * 2
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), rows[LABEL].to_numpy())
