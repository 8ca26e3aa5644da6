"""The full training state on disk, and which checkpoint can be trusted.

The chief, rank 0, writes it: the variables are the same on every worker. A manifest holds the
SHA-256 of each file, so a truncated checkpoint is found before it is used. Nothing is unpickled.

Source: https://docs.ray.io/en/releases-2.60.0/train/user-guides/checkpoints.html
"""

import hashlib
import io
import json
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray.train import Checkpoint
from ray_shared.bundle import sha256
from ray_shared.errors import UserError
from ray_shared.runs import TRAIN_SNAPSHOT
from ray_shared.storage import Storage

from tf_train.backend import keras
from tf_train.config import Config
from tf_train.model import build_model

MODEL = "model.keras"
OPTIMIZER = "optimizer.npz"
POSITION = "position.json"
MANIFEST = "manifest.json"


@dataclass
class Position:
    """How far the run is; together with the seed it determines what comes next."""

    epoch: int = 0
    """Epochs completed."""
    offset: int = 0
    """Images of the current epoch that all workers together have had."""
    step: int = 0
    """Optimizer steps done."""
    best_metric: float | None = None
    """Best value of `checkpoint.metric` so far."""
    best_epoch: int = 0
    """The epoch that had it."""


def save(
    model: "keras.Model", optimizer: "keras.optimizers.Optimizer", position: Position
) -> Checkpoint:
    """Writes a checkpoint into a new local directory.

    The directory lies in the worker's own working directory, which Ray removes with the session;
    Ray Train deletes it after the upload.
    """
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=".")).absolute()
    model.save(directory / MODEL)
    state = {f"{i:04d}": variable.numpy() for i, variable in enumerate(optimizer.variables)}
    np.savez(directory / OPTIMIZER, **state)
    (directory / POSITION).write_text(json.dumps(asdict(position)))
    hashes = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps(hashes))
    return Checkpoint.from_directory(str(directory))


def restore(
    checkpoint: Checkpoint, model: "keras.Model", optimizer: "keras.optimizers.Optimizer"
) -> Position:
    """Loads what `save` wrote; the number of workers may have changed since."""
    with checkpoint.as_directory() as name:
        directory = Path(name)
        model.load_weights(directory / MODEL)
        with np.load(directory / OPTIMIZER, allow_pickle=False) as state:
            for i, variable in enumerate(optimizer.variables):
                variable.assign(state[f"{i:04d}"])
        return Position(**json.loads((directory / POSITION).read_text()))


def load_weights(checkpoint: Checkpoint, model: "keras.Model") -> None:
    """Loads only the weights."""
    with checkpoint.as_directory() as name:
        model.load_weights(Path(name) / MODEL)


def damage(checkpoint: Checkpoint, model: "keras.Model") -> str | None:
    """What is wrong with a checkpoint of `model`, in a few words; None if it can be loaded."""
    with checkpoint.as_directory() as name:
        directory = Path(name)
        try:
            hashes = json.loads((directory / MANIFEST).read_text())
        except (OSError, ValueError):
            return f"{MANIFEST} is missing or damaged"
        for file, expected in hashes.items():
            if not (directory / file).is_file():
                return f"{file} is missing"
            if sha256(directory / file) != expected:
                return f"{file} is damaged"
        if not _same_architecture((directory / MODEL).read_bytes(), model):
            return f"{MODEL} is a model of another architecture"
    return None


def check_newest(run_dir: Storage, config: Config) -> None:
    """Refuses to resume a run whose newest checkpoint is whole, but of another model.

    One that is damaged is passed over later, for the one before.

    Raises:
        UserError: Names the file.
    """
    committed = json.loads(run_dir.child(TRAIN_SNAPSHOT).read_bytes())
    name = (committed.get("latest_checkpoint_result") or {}).get("checkpoint_dir_name")
    if name is None:
        return
    newest = run_dir.child(str(name))
    if not newest.child(MODEL).exists() or not newest.child(MANIFEST).exists():
        return
    content = newest.child(MODEL).read_bytes()
    try:
        expected = json.loads(newest.child(MANIFEST).read_bytes()).get(MODEL)
    except (ValueError, AttributeError):
        return
    shape, num_classes = config.data.shape, config.data.num_classes
    train = config.train
    model = build_model(config.model, shape, num_classes, 0.0, 1.0, train.precision, train.seed)
    whole = hashlib.sha256(content).hexdigest() == expected
    if whole and not _same_architecture(content, model):
        raise UserError(
            f"{newest.child(MODEL).uri}: a model of another architecture than model={model.name}; "
            "put back what was there, or choose another run.name"
        )


def _same_architecture(file: bytes, model: "keras.Model") -> bool:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        saved = json.loads(archive.read("config.json"))
    return bool(_settings(saved) == _settings(json.loads(model.to_json())))


def _settings(described: Any) -> Any:
    """A model's description without what makes no other architecture.

    That is mean and spread of the data, and the numbers by which a file refers to what it holds
    twice.
    """
    if isinstance(described, dict):
        kept = described.keys() - {"shared_object_id"}
        if described.get("name") == "normalize":
            kept -= {"scale", "offset"}
        return {key: _settings(described[key]) for key in kept}
    if isinstance(described, list):
        return [_settings(part) for part in described]
    return described


def damaged_first(checkpoints: list[Checkpoint], model: "keras.Model") -> list[str]:
    """A line for each useless checkpoint before the first good one of `checkpoints`."""
    damaged: list[str] = []
    for checkpoint in checkpoints:
        wrong = damage(checkpoint, model)
        if wrong is None:
            break
        damaged.append(f"{Path(checkpoint.path).name}: {wrong}")
    return damaged
