"""What the fault tests count, and where it is found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ray_shared.testing import Job
from tf_train import checkpoint as ckpt

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


def committed(run: Path) -> list[dict[str, Any]]:
    """What Ray Train knows of the checkpoints of a run, the best last."""
    content = json.loads((run / "checkpoint_manager_snapshot.json").read_text())
    return list(content["checkpoint_results"])


def newest_checkpoint(directory: Path, run: str) -> Path:
    """As Ray Train has committed it."""
    root = directory / "runs" / run
    committed = json.loads((root / "checkpoint_manager_snapshot.json").read_text())
    return root / str(committed["latest_checkpoint_result"]["checkpoint_dir_name"])


def optimizer_state(directory: Path, run: str) -> dict[str, np.ndarray]:
    """The optimizer's variables of the newest checkpoint; AdamW's moments tell every step apart."""
    with np.load(newest_checkpoint(directory, run) / ckpt.OPTIMIZER) as state:
        return dict(state)


def weights(directory: Path, run: str) -> list[np.ndarray]:
    """The weights of the newest checkpoint."""
    from tf_train.backend import keras

    model = keras.models.load_model(newest_checkpoint(directory, run) / ckpt.MODEL)
    return [variable.numpy() for variable in model.variables]
