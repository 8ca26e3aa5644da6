"""Which rows each training worker learns from."""

from typing import Any

import numpy as np
from ray_shared.errors import UserError
from ray_shared.storage import Storage

from data_preprocessing import output
from data_preprocessing.config import Config
from data_preprocessing.features import LABEL


def check_shares(config: Config, manifest: dict[str, Any]) -> None:
    """Refuses more workers than a split has rows.

    Raises:
        UserError: Then.
    """
    for split in output.SPLITS:
        rows = sum(stop - start for _, start, stop in share(manifest["files"], split, 0, 1))
        if rows < config.scaling.num_workers:
            raise UserError(
                f"scaling.num_workers={config.scaling.num_workers}: must be at most {rows}, the "
                f"rows of {split}"
            )


def share(
    files: list[dict[str, Any]], split: str, rank: int, world_size: int
) -> list[tuple[str, int, int]]:
    """A worker's share of a split: as many rows as each other worker's, give or take one.

    The same for the same files and number of workers, so that a resumed run goes on with its own.

    Returns:
        Path of a file, and of its rows the first and the one after the last.
    """
    chosen = [f for f in files if f["path"].startswith(f"features/split={split}/")]
    total = sum(file["rows"] for file in chosen)
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    found, before = [], 0
    for file in sorted(chosen, key=lambda f: str(f["path"])):
        start, stop = max(first - before, 0), min(last - before, file["rows"])
        if start < stop:
            found.append((file["path"], start, stop))
        before += file["rows"]
    return found


def read_slices(
    dataset: Storage, slices: list[tuple[str, int, int]], names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads slices of files, one after the other.

    Returns:
        Features, float32 [rows, features], and labels, float32 [rows].
    """
    size = sum(stop - start for _, start, stop in slices)
    features, labels = np.empty((size, len(names)), np.float32), np.empty(size, np.float32)
    filled = 0
    for path, start, stop in slices:
        rows = output.read_parquet(dataset.child(path), [LABEL, *names])[start:stop]
        here = slice(filled, filled + rows.height)
        features[here], labels[here] = rows.select(names).to_numpy(), rows[LABEL].to_numpy()
        filled += rows.height
    return features, labels
