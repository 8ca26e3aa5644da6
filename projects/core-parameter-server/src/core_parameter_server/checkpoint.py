"""Checkpoints: one file for each shard, and a manifest that makes them count.

`checkpoint-00000120/` holds the shards' files of version 120 and, written last, `manifest.json`
with their hashes. Without a manifest a directory is no checkpoint: a crash in the middle leaves
the one before. Arrays are npz without pickle.
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
from core_parameter_server.config import Config

MANIFEST = "manifest.json"
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
    """For each file: `file`, `start`, `stop`, `optimizer`, `num_steps`, `bytes`, `sha256`."""

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

    def discard(self) -> None:
        """From now on it does not count; its files stay."""
        self.directory.child(MANIFEST).delete()


def write_shard(
    directory: Storage,
    index: int,
    start: int,
    arrays: dict[str, Array],
    optimizer: str,
    num_steps: int,
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
    entry = {"file": name, "start": start, "stop": stop}
    entry |= {"optimizer": optimizer, "num_steps": num_steps, "bytes": len(content)}
    return entry | {"sha256": hashlib.sha256(content).hexdigest()}


def commit(run_dir: Storage, version: int, clocks: list[int], shards: list[dict[str, Any]]) -> None:
    """Makes a checkpoint of files that are all written; called on the driver.

    Raises:
        UserError: If the driver does not see a file: nodes write to directories of their own.
    """
    directory = directory_of(run_dir, version)
    for shard in shards:
        file = directory.child(shard["file"])
        found = file.filesystem.get_file_info(file.path).size
        if found != shard["bytes"]:
            raise UserError(
                f"storage.path: a shard wrote {shard['bytes']} bytes to {file.uri}, the driver "
                f"sees {found or 'none'}: it must be a place that all nodes share"
            )
    manifest = {"version": version, "clocks": clocks, "size": shards[-1]["stop"], "shards": shards}
    directory.child(MANIFEST).write_atomically(json.dumps(manifest, indent=2).encode())


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


def check_newest(run_dir: Storage, config: Config) -> None:
    """Refuses a run whose newest checkpoint cannot be continued from.

    Raises:
        UserError: Names the damaged file, or what the checkpoint has and what was asked for.
    """
    newest = next(reversed(checkpoints(run_dir)), None)
    if newest is None:
        if config.run.resume == "must":
            raise UserError(f"run.resume=must: {run_dir.uri} has no checkpoint to resume from")
        return
    size = config.problem.num_parameters
    where, optimizer = newest.directory.uri, newest.shards[0]["optimizer"]
    if newest.size != size:
        raise UserError(f"{where}: has {newest.size} parameters, the model has {size}")
    # run.json holds these too; but a directory may have been copied without it.
    for key, found, wanted in (
        ("train.optimizer", optimizer, config.train.optimizer),
        ("scaling.num_workers", len(newest.clocks), config.scaling.num_workers),
    ):
        if found != wanted:
            raise UserError(f"{key}={wanted}: {where} was made with {found}")
    try:
        newest.read(0, size)
    except DamagedCheckpointError as error:
        raise UserError(f"{error}; remove {where} to do without it") from None


def prune(run_dir: Storage, num_to_keep: int) -> None:
    """Removes all but the newest checkpoints, the manifest of each first.

    And what never became one, because of a crash or a recovery in the middle.
    """
    whole = checkpoints(run_dir)
    kept = {directory_of(run_dir, c.version).path for c in whole[-num_to_keep:]}
    for old in whole[:-num_to_keep]:
        old.discard()
    newest = directory_of(run_dir, whole[-1].version).path if whole else ""
    for name in run_dir.names():
        directory = run_dir.child(name)
        # Newer ones are still being written.
        if name.startswith(PREFIX) and directory.path < newest and directory.path not in kept:
            directory.delete()
