"""Where a run writes: attempts, a journal of finished units, and the manifest that makes it count.

    <storage.path>/<run.name>/
        manifest.json             written last: which attempt is the output, and what is in it
        attempt-0001/
            plan.json             the units of work; a killed run goes on where the plan is the same
            scan/  quarantine/    what the first pass found
            preprocessor.json
            features/split=train/ the second pass's Parquet, a few files for each unit
            done/                 the second pass's journal
            predictions/ scored/  instead of all that: what `action=score` writes, and its journal

A file's name depends on the unit and chunk that it is made of, and it is moved into place whole: a
unit that is done twice writes the same files again. The manifest lists every file, so that one
that somebody else left there does not count. The old output stays until a new one is whole.
"""

import errno
import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from ray_shared.bundle import BundleError, read_bundle
from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage

from data_preprocessing.config import Config
from data_preprocessing.features import LABEL, add_up
from data_preprocessing.reading import InputFile, Unit

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
ATTEMPT = "attempt-"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Attempt:
    """One try to make the output of a run."""

    run_dir: Storage
    name: str

    @property
    def directory(self) -> Storage:
        """Everything that the attempt writes is below this directory."""
        return self.run_dir.child(self.name)

    def finished(self, stage: str) -> set[str]:
        """Names of the units that a stage (`scan`, `done` or `scored`) has finished."""
        names = self.directory.child(stage).names()
        return {name.partition(".")[0] for name in names if not name.endswith(".part")}

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the attempt."""
        return json.loads(self.directory.child(name).read_bytes())

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file of the attempt."""
        self.directory.child(name).write_atomically(json.dumps(content, indent=1).encode())


def open_attempt(run_dir: Storage, plan: dict[str, Any]) -> tuple[Attempt, bool]:
    """The attempt to work on, and whether it goes on with one that was interrupted.

    An interrupted attempt at something else (other files, other settings) is removed.
    """
    committed = (read_manifest(run_dir) or {}).get("attempt")
    numbers = [0]
    for name in run_dir.names():
        if not name.startswith(ATTEMPT):
            continue
        attempt = Attempt(run_dir, name)
        numbers.append(int(name.removeprefix(ATTEMPT)))
        if name == committed:
            continue
        if attempt.directory.child("plan.json").exists() and attempt.read_json("plan.json") == plan:
            return attempt, True
        attempt.directory.delete()
    attempt = Attempt(run_dir, f"{ATTEMPT}{max(numbers) + 1:04d}")
    attempt.write_json("plan.json", plan)
    return attempt, False


def plan_of(files: list[InputFile], units: list[Unit], settings: dict[str, Any]) -> dict[str, Any]:
    """What an attempt is about, as JSON: equal plans give equal output."""
    plan = {
        "settings": settings,
        "files": [asdict(file) for file in files],
        "units": [[u.index, u.file.index, u.first_row, u.row_groups] for u in units],
    }
    content: dict[str, Any] = json.loads(json.dumps(plan))
    return content


def write_parquet(file: Storage, table: pl.DataFrame) -> dict[str, Any]:
    """Writes a file whole; returns its `rows`, `bytes` and `sha256`."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="lz4")
    content = buffer.getvalue()
    file.write_atomically(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return {"rows": table.height, "bytes": len(content), "sha256": sha256}


def read_parquet(file: Storage, columns: list[str] | None = None) -> pl.DataFrame:
    """Reads a file, or some of its columns."""
    return pl.read_parquet(io.BytesIO(file.read_bytes()), columns=columns)


def told(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs a task's work; a full disk comes back as a row, which Ray does not wrap or repeat."""
    try:
        return {**work(), "failed": None}
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return {"unit": -1, "rows": 0, "bad": 0, "failed": str(error)}
        raise


def collect(units: list[Unit], attempt: Attempt) -> tuple[pl.DataFrame, dict[int, str]]:
    """The statistics of all units, and the files that turned out to be damaged, with the reason."""
    directory = attempt.directory.child("scan")
    names = set(directory.names())
    damaged = {
        unit.file.index: str(attempt.read_json(f"scan/{unit.name}.json")["unreadable"])
        for unit in units
        if f"{unit.name}.json" in names
    }
    good = [unit for unit in units if unit.file.index not in damaged]
    found = [read_parquet(directory.child(f"{unit.name}.parquet")) for unit in good]
    return add_up(found), damaged


def commit(attempt: Attempt, content: dict[str, Any]) -> Storage:
    """Makes an attempt the run's output, and removes the one before.

    Args:
        attempt: Whose files are all written.
        content: Row counts, files, schema, lineage.

    Returns:
        The manifest.
    """
    made = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    head = {"format_version": FORMAT_VERSION, "attempt": attempt.name, "made": made}
    manifest = attempt.run_dir.child(MANIFEST)
    manifest.write_atomically(json.dumps(head | content, indent=1).encode())
    for name in attempt.run_dir.names():
        if name.startswith(ATTEMPT) and name != attempt.name:
            attempt.run_dir.child(name).delete()
    return manifest


def commit_model(run_dir: Storage, metrics: dict[str, Any]) -> None:
    """Says that a training run is complete, where `newest_run` looks for it."""
    made = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    content = {"format_version": FORMAT_VERSION, "kind": "model", "made": made, "metrics": metrics}
    run_dir.child(MANIFEST).write_atomically(json.dumps(content, indent=1).encode())


def read_manifest(run_dir: Storage) -> dict[str, Any] | None:
    """The manifest of a run, or None if it has none.

    Raises:
        UserError: If it is damaged or of another format.
    """
    file = run_dir.child(MANIFEST)
    if not file.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        version = content["format_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file.uri}: damaged; remove it to do without") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{file.uri}: format_version is {version}, this code reads 1")
    return content


def newest_run(storage: Storage, kind: str, key: str) -> Storage:
    """The run that was completed last.

    Args:
        storage: The directory of all runs.
        kind: What its manifest says it is: `features`, `model` or `predictions`.
        key: The configuration key that would name one.

    Raises:
        UserError: If there is none.
    """
    found = []
    for name in storage.names():
        manifest = read_manifest(storage.child(name))
        if manifest is not None and manifest["kind"] == kind:
            found.append((manifest["made"], name))
    if not found:
        action = {"features": "prepare", "model": "train"}[kind]
        raise UserError(f"{key}=null: no finished run of action={action} in {storage.uri}")
    return storage.child(max(found)[1])


def find_dataset(config: Config) -> tuple[Storage, dict[str, Any]]:
    """The prepared run to train on, and its manifest.

    Raises:
        UserError: If there is none.
    """
    if config.dataset is None:
        dataset = newest_run(open_storage(config.storage.path), "features", "dataset")
    else:
        dataset = open_storage(config.dataset)
    manifest = read_manifest(dataset)
    if manifest is None or manifest["kind"] != "features":
        raise UserError(f"dataset={config.dataset}: must be the directory of a prepared run")
    return dataset, manifest


def find_bundle(config: Config) -> Storage:
    """The bundle to score with: the one that is named, or the newest.

    Raises:
        UserError: If there is none, if it is damaged, or of another project.
    """
    if config.score.bundle is not None:
        bundle = open_storage(config.score.bundle)
    else:
        runs = open_storage(config.storage.path)
        bundle = newest_run(runs, "model", "score.bundle").child("bundle")
    try:
        with tempfile.TemporaryDirectory() as directory:
            bundle.download(Path(directory))
            described = read_bundle(Path(directory))
    except FileNotFoundError:
        raise UserError(f"score.bundle={bundle.uri}: no such directory") from None
    except BundleError as error:
        raise UserError(f"score.bundle: {error}") from None
    if described.framework != "xgboost" or described.model.get("label") != LABEL:
        raise UserError(f"score.bundle={bundle.uri}: not a model of trip durations")
    return bundle


def feature_files(run_dir: Storage, manifest: dict[str, Any], split: str) -> list[str]:
    """Paths, for the run's filesystem, of the Parquet files of a split."""
    prefix = f"features/split={split}/"
    base = f"{run_dir.path}/{manifest['attempt']}"
    return [
        f"{base}/{file['path']}" for file in manifest["files"] if file["path"].startswith(prefix)
    ]
