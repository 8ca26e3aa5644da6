"""Rows to train on: scikit-learn's own sets, or what data-preprocessing has prepared."""

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage, reason_of

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


@dataclass(frozen=True)
class Rows:
    """Some rows."""

    features: np.ndarray
    """float32 [N, F]."""
    labels: np.ndarray
    """int64 [N], the class; or float32 [N]."""


@dataclass(frozen=True)
class Table:
    """A data set."""

    splits: dict[str, Rows]
    """`train`, `val` (what the search looks at) and `test` (looked at once, at the end)."""
    names: list[str]
    """Of the features."""
    classes: list[str]
    """Empty for regression."""
    preprocessor: dict[str, Any]
    """The fitted preprocessor, if there was one."""


@functools.cache
def load(dataset: str, path: str | None, split_seed: int) -> Table:
    """Reads a data set, once in each process.

    Args:
        dataset: One of scikit-learn's.
        path: A prepared run of data-preprocessing, instead.
        split_seed: Seed of the split; a prepared run is split already.

    Raises:
        UserError: If `path` holds no such run.
    """
    if path is not None:
        return _read_prepared(path)
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{dataset}")()
    regression = dataset == "diabetes"
    features = np.asarray(bunch.data, np.float32)
    labels = np.asarray(bunch.target, np.float32 if regression else np.int64)
    order = np.random.default_rng(split_seed).permutation(len(labels))
    ends = np.cumsum([round(len(labels) * fraction) for fraction in FRACTIONS.values()])
    parts = zip(FRACTIONS, np.split(order, ends[:-1]), strict=True)
    splits = {name: Rows(features[rows], labels[rows]) for name, rows in parts}
    classes = [] if regression else [str(name) for name in bunch.target_names]
    return Table(splits, [str(name) for name in bunch.feature_names], classes, {})


def check_prepared(path: str) -> dict[str, Any]:
    """The manifest of a prepared run.

    Raises:
        UserError: If there is none at `path`.
    """
    run = open_storage(path, retries=2, key="objective.path")
    try:
        manifest = json.loads(run.child("manifest.json").read_bytes())
        if manifest["kind"] == "features":
            return dict(manifest)
        found = f"the output of another action ({manifest['kind']})"
    except OSError as error:
        found = f"no manifest.json that can be read: {reason_of(error)}"
    except (ValueError, KeyError, TypeError):
        found = "a damaged manifest.json"
    allowed = "must be the directory of a prepared run of data-preprocessing"
    raise UserError(f"objective.path={path}: {allowed}; found {found}")


def _read_prepared(path: str) -> Table:
    manifest = check_prepared(path)
    attempt = open_storage(path, key="objective.path").child(manifest["attempt"])
    preprocessor = json.loads(attempt.child("preprocessor.json").read_bytes())
    names, label = manifest["features"], manifest["label"]
    files = sorted(file["path"] for file in manifest["files"])
    splits = {}
    for split in FRACTIONS:
        mine = [attempt.child(f) for f in files if f.startswith(f"features/split={split}/")]
        if not mine:
            raise UserError(f"objective.path={path}: its split {split} is empty")
        splits[split] = _read_rows(mine, names, label)
    return Table(splits, names, [], preprocessor)


def _read_rows(files: list[Storage], names: list[str], label: str) -> Rows:
    import pyarrow.parquet as pq

    parts = []
    for file in files:
        # Without the name of its directory, which pyarrow would take for a column.
        with file.filesystem.open_input_file(file.path) as stream:
            columns = pq.ParquetFile(stream).read([*names, label])
        parts.append(np.column_stack([c.to_numpy().astype(np.float32) for c in columns.columns]))
    rows = np.concatenate(parts)
    # In the order of the file, whatever the order asked for.
    order = {name: i for i, name in enumerate(columns.column_names)}
    return Rows(rows[:, [order[name] for name in names]], rows[:, order[label]])
