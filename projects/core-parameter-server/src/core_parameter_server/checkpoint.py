"""Checkpoints: one file for each shard, and a manifest that makes them count.

`checkpoint-00000120/` holds the shards' files of version 120 and, written last, `manifest.json`
with their hashes. Without a manifest a directory is no checkpoint: a crash in the middle leaves
the one before the newest. Arrays are npz without pickle.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray_shared.errors import UserError
from ray_shared.storage import Storage

from core_parameter_server.compression import Array

MANIFEST = "manifest.json"
LATEST = "latest.json"
"""In the run's directory, for people: which checkpoint is the newest."""
PREFIX = "checkpoint-"


class DamagedCheckpointError(Exception):
    """A file of a checkpoint is not what its manifest says."""


@dataclass
class Checkpoint:
    """A whole checkpoint."""

    directory: Storage
    version: int
    """Number of updates that the weights have seen."""
    clocks: list[int]
    """Of each worker: how many of its gradients are in the weights."""
    size: int
    """Length of the parameter vector."""
    shards: list[dict[str, Any]]
    """For each file: `file`, `start`, `stop`, `num_steps`, `sha256`."""

    def read(self, start: int, stop: int) -> tuple[dict[str, Array], int]:
        """Weights and optimizer state of any slice, however the vector was cut when it was saved.

        Args:
            start: First entry.
            stop: Entry after the last.

        Returns:
            Arrays, float32 [stop - start], by name; number of the optimizer's steps.

        Raises:
            DamagedCheckpointError: Names the file.
        """
        parts: dict[str, list[Array]] = {}
        for shard in self.shards:
            low, high = max(start, shard["start"]), min(stop, shard["stop"])
            if low >= high:
                continue
            window = slice(low - shard["start"], high - shard["start"])
            for name, array in self._load(shard).items():
                parts.setdefault(name, []).append(array[window])
        arrays = {name: np.concatenate(pieces) for name, pieces in parts.items()}
        return arrays, int(self.shards[0]["num_steps"])

    def _load(self, shard: dict[str, Any]) -> dict[str, Array]:
        file = self.directory.child(shard["file"])
        content = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(content).hexdigest() != shard["sha256"]:
            found = f"{len(content)} bytes, another SHA-256" if content else "missing or empty"
            raise DamagedCheckpointError(f"{file.uri}: damaged ({found})")
        with np.load(io.BytesIO(content)) as arrays:
            return dict(arrays)


def write_shard(
    directory: Storage, index: int, start: int, arrays: dict[str, Array], num_steps: int
) -> dict[str, Any]:
    """Writes one shard's file; called in the shard.

    Returns:
        Its entry in the manifest.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type] # None of them is called `allow_pickle`.
    content = buffer.getvalue()
    name = f"shard-{index:03d}.npz"
    directory.child(name).write_bytes(content)
    stop = start + len(arrays["weights"])
    entry = {"file": name, "start": start, "stop": stop, "num_steps": num_steps}
    return entry | {"sha256": hashlib.sha256(content).hexdigest()}


def commit(run_dir: Storage, version: int, clocks: list[int], shards: list[dict[str, Any]]) -> None:
    """Makes a checkpoint of files that are all written; called on the driver."""
    manifest = {"version": version, "clocks": clocks, "size": shards[-1]["stop"], "shards": shards}
    content = json.dumps(manifest, indent=2).encode()
    directory = directory_of(run_dir, version)
    directory.child(MANIFEST).write_atomically(content)
    run_dir.child(LATEST).write_atomically(json.dumps({"checkpoint": directory.uri}).encode())


def directory_of(run_dir: Storage, version: int) -> Storage:
    """Where a version's files lie."""
    return run_dir.child(f"{PREFIX}{version:08d}")


def checkpoints(run_dir: Storage) -> list[Checkpoint]:
    """Every whole checkpoint of a run, oldest first; only manifests are read.

    Raises:
        UserError: If a manifest is damaged.
    """
    found = []
    for name in run_dir.names():
        manifest = run_dir.child(name).child(MANIFEST)
        if not name.startswith(PREFIX) or not manifest.exists():
            continue
        try:
            found.append(Checkpoint(run_dir.child(name), **json.loads(manifest.read_bytes())))
        except (ValueError, TypeError):
            raise UserError(
                f"{manifest.uri}: damaged; remove its directory to do without"
            ) from None
    return sorted(found, key=lambda c: c.version)


def check_newest(run_dir: Storage, size: int) -> None:
    """Refuses a run whose newest checkpoint cannot be continued from.

    Raises:
        UserError: Names the damaged file, or both sizes.
    """
    newest = next(reversed(checkpoints(run_dir)), None)
    if newest is None:
        return
    if newest.size != size:
        raise UserError(
            f"{newest.directory.uri}: has {newest.size} parameters, the model has {size}"
        )
    try:
        newest.read(0, size)
    except DamagedCheckpointError as error:
        raise UserError(f"{error}; remove {newest.directory.uri} to do without it") from None


def prune(run_dir: Storage, num_to_keep: int) -> None:
    """Removes all but the newest checkpoints, the manifest of each first."""
    for old in checkpoints(run_dir)[:-num_to_keep]:
        old.directory.child(MANIFEST).delete()
        old.directory.delete()
