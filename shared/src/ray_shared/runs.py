"""A run's name, and what a second start under the same name may change.

A run is a directory in the storage. `run.json` in it records the keys that decide what the weights
mean; to resume with other values is refused.
"""

import json
import time
from typing import Any

from ray_shared.errors import UserError
from ray_shared.groups import RunConfig
from ray_shared.report import flat
from ray_shared.storage import Storage

RECORD = "run.json"
# Ray Train writes it with the first checkpoint of a run.
TRAIN_SNAPSHOT = "checkpoint_manager_snapshot.json"


def run_name(run: RunConfig, project: str) -> str:
    """The given name, or project and time."""
    return run.name or f"{project}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"


def check_run(
    run: RunConfig, storage: Storage, locked: dict[str, Any], snapshot: str = TRAIN_SNAPSHOT
) -> None:
    """Refuses a start that `run.resume` forbids, or that resumes something else.

    Args:
        run: Name and resume mode.
        storage: The directory of all runs.
        locked: The keys that must not change, with their values, nested as in the configuration.
        snapshot: The file of the run's directory that exists once there is a checkpoint.

    Raises:
        UserError: Names the key, the value of the run and the value asked for.
    """
    if run.name is None:
        return
    directory = storage.child(run.name)
    if run.resume == "never" and directory.exists():
        raise UserError(
            f"run.resume=never: {directory.uri} exists already; choose another run.name"
        )
    if run.resume == "must" and not directory.child(snapshot).exists():
        raise UserError(f"run.resume=must: {directory.uri} has no checkpoint to resume from")
    _read(directory.child(snapshot))
    before, now = flat(_read(directory.child(RECORD)) or locked), flat(locked)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{key}={now.get(key)}: run {run.name!r} was started with {before.get(key)}; "
                "keep it, or choose another run.name"
            )


def check_unshared_name(config: object, names: set[object]) -> None:
    """Refuses a run's name that two jobs of a sweep share: one would continue the other.

    Args:
        config: The configuration of the next job.
        names: Those of the jobs before it; gets this one's.

    Raises:
        UserError: If the name is among them.
    """
    name = getattr(getattr(config, "run", None), "name", None)
    if name in names:
        hint = "leave it out, or put a swept value into it: 'run.name=mine-${train.seed}'"
        raise UserError(f"run.name={name}: several jobs of the sweep would share the run; {hint}")
    names |= {name} - {None}


def record_run(directory: Storage, locked: dict[str, Any]) -> None:
    """Writes the record of a new run; an existing one stays."""
    record = directory.child(RECORD)
    if not record.exists():
        record.write_atomically(json.dumps(locked, indent=2).encode())


def _read(file: Storage) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is none."""
    if not file.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError:
        raise UserError(
            f"{file.uri}: damaged, so the run cannot be resumed; choose another run.name"
        ) from None
    return content
