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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from ray_shared.errors import UserError
from ray_shared.storage import Storage

from data_preprocessing.features import add_up
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
        return {name.partition(".")[0] for name in names if not is_part(name)}

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the attempt."""
        return json.loads(self.directory.child(name).read_bytes())

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file of the attempt."""
        self.directory.child(name).write_atomically(json.dumps(content, indent=1).encode())


def is_part(name: str) -> bool:
    """Whether a file was being written when its writer died."""
    return name.endswith(".part")


def open_attempt(run_dir: Storage, plan: dict[str, Any]) -> tuple[Attempt, bool]:
    """The attempt to work on, and whether it goes on with one that was interrupted.

    An interrupted attempt at something else (other files, other settings) is removed.
    """
    committed = (read_manifest(run_dir) or {}).get("attempt")
    numbers = [0]
    for name in run_dir.names():
        number = name.removeprefix(ATTEMPT)
        if not name.startswith(ATTEMPT) or not number.isdecimal():
            continue
        attempt = Attempt(run_dir, name)
        numbers.append(int(number))
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
        "format_version": FORMAT_VERSION,
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


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def told(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs a task's work; a full disk comes back as a row, which Ray does not wrap or repeat."""
    try:
        return {**work(), "failed": None}
    except OSError as error:
        if is_full(error):
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
    total = add_up([])
    for unit in units:
        if unit.file.index not in damaged:
            total = add_up([total, read_parquet(directory.child(f"{unit.name}.parquet"))])
    return total, damaged


def quarantine_files(units: list[Unit], attempt: Attempt) -> list[dict[str, Any]]:
    """The quarantine files of these units, with the rows that are in each, by its own footer."""
    directory, names = attempt.directory.child("quarantine"), {unit.name for unit in units}
    found = []
    for name in directory.names():
        if name.rpartition("-")[0] in names and not is_part(name):
            with directory.filesystem.open_input_file(f"{directory.path}/{name}") as stream:
                rows = pq.read_metadata(stream).num_rows
            found.append({"path": f"quarantine/{name}", "rows": rows})
    return found


def commit(attempt: Attempt, content: dict[str, Any]) -> Storage:
    """Makes an attempt the run's output, and removes the one before.

    Args:
        attempt: Whose files are all written.
        content: Row counts, files, schema, lineage.

    Returns:
        The manifest.
    """
    head = {"format_version": FORMAT_VERSION, "attempt": attempt.name, "made": _now()}
    manifest = attempt.run_dir.child(MANIFEST)
    manifest.write_atomically(json.dumps(head | content, indent=1).encode())
    for name in attempt.run_dir.names():
        if name.startswith(ATTEMPT) and name != attempt.name:
            attempt.run_dir.child(name).delete()
    return manifest


def commit_model(run_dir: Storage, metrics: dict[str, Any]) -> None:
    """Says that a training run is complete, where `newest_run` looks for it."""
    head = {"format_version": FORMAT_VERSION, "kind": "model", "made": _now()}
    content = head | {"metrics": metrics}
    run_dir.child(MANIFEST).write_atomically(json.dumps(content, indent=1).encode())


def _now() -> str:
    """The time in UTC, such that later texts are greater."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


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
        version, _, _ = content["format_version"], content["kind"], content["made"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file.uri}: damaged; remove it to do without") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{file.uri}: format_version is {version}, this code reads 1")
    return content


def feature_files(run_dir: Storage, manifest: dict[str, Any], split: str) -> list[str]:
    """Paths, for the run's filesystem, of the Parquet files of a split."""
    prefix = f"features/split={split}/"
    base = f"{run_dir.path}/{manifest['attempt']}"
    return [
        f"{base}/{file['path']}" for file in manifest["files"] if file["path"].startswith(prefix)
    ]
