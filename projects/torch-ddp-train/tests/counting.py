"""What the fault tests count, and where it is found."""

import json
from pathlib import Path
from typing import Any

from ray_shared.testing import Job

CHECKPOINT_EVERY = 5
# 60 steps; a report after each slows them down to about ten a second.
COUNTED = [
    "train.epochs=3",
    f"checkpoint.every_steps={CHECKPOINT_EVERY}",
    "tracking.every_steps=1",
]
ALL_STEPS = set(range(1, 61))


def step_reached(step: int) -> Any:
    return lambda e: e["event"] == "step" and e["step"] >= step


def steps(job: Job) -> set[int]:
    return {e["step"] for e in job.events() if e["event"] == "step"}


def starts(job: Job) -> list[dict[str, Any]]:
    return [e for e in job.events() if e["event"] == "start"]


def snapshot(directory: Path, run: str) -> dict[str, Any]:
    """What Ray Train has committed of a run."""
    path = directory / "runs" / run / "checkpoint_manager_snapshot.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def newest_checkpoint(directory: Path, run: str) -> Path:
    name = snapshot(directory, run)["latest_checkpoint_result"]["checkpoint_dir_name"]
    return directory / "runs" / run / name
