"""The full training state on disk, and which checkpoint can be trusted.

Every rank writes its own files into one checkpoint (Ray Train merges what the ranks report):
rank 0 the weights, the optimizer and the position, each rank its random generators. A manifest
for each rank holds the SHA-256 of its files, so a truncated checkpoint is found before it is used.
Tensors are safetensors or `torch.load(weights_only=True)`; nothing is unpickled.

Source: https://docs.ray.io/en/releases-2.60.0/train/user-guides/checkpoints.html
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from ray.train import Checkpoint
from ray_shared.bundle import sha256
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.pt"
POSITION = "position.json"


@dataclass
class Position:
    """How far the run is; together with the seed it determines what comes next."""

    epoch: int = 0
    """Epochs completed."""
    offset: int = 0
    """Images of the current epoch that all workers together have had."""
    step: int = 0
    """Optimizer steps done."""
    world_size: int = 0
    """Number of workers when it was saved: so many parts belong to the checkpoint."""
    best_metric: float | None = None
    """Best value of `checkpoint.metric` so far."""


def save(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    rank: int,
    device: torch.device,
) -> Checkpoint:
    """Writes this rank's part of a checkpoint into a new local directory.

    The directory lies in the worker's own working directory, which Ray removes with the session;
    Ray Train deletes it after the upload.
    """
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-", dir="."))
    if rank == 0:
        save_weights(model, directory)
        torch.save(optimizer.state_dict(), directory / OPTIMIZER)
        (directory / POSITION).write_text(json.dumps(asdict(position)))
    torch.save(_random_state(device), directory / f"random-{rank}.pt")
    hashes = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    (directory / f"manifest-{rank}.json").write_text(json.dumps(hashes))
    return Checkpoint.from_directory(str(directory.absolute()))


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    device: torch.device,
) -> Position:
    """Loads what `save` wrote; the number of workers may have changed since.

    A rank that did not exist when the checkpoint was written keeps its freshly seeded generators.
    """
    with checkpoint.as_directory() as name:
        directory = Path(name)
        model.load_state_dict(load_file(directory / WEIGHTS, device=str(device)))
        state = torch.load(directory / OPTIMIZER, map_location=device, weights_only=True)
        optimizer.load_state_dict(state)
        random_state = directory / f"random-{rank}.pt"
        if random_state.exists():
            _set_random_state(torch.load(random_state, weights_only=True), device)
        return Position(**json.loads((directory / POSITION).read_text()))


def save_weights(model: nn.Module, directory: Path) -> None:
    """Writes the weights alone, in the default layout: safetensors knows no channels last."""
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / WEIGHTS)


def load_weights(checkpoint: Checkpoint, model: nn.Module, device: torch.device) -> None:
    """Loads only the weights."""
    with checkpoint.as_directory() as name:
        model.load_state_dict(load_file(Path(name) / WEIGHTS, device=str(device)))


def damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is whole."""
    with checkpoint.as_directory() as name:
        directory = Path(name)
        num_parts = 1  # Rank 0's part says how many there are.
        rank = 0
        while rank < num_parts:
            manifest = directory / f"manifest-{rank}.json"
            if not manifest.is_file():
                return f"{manifest.name} is missing"
            try:
                hashes = json.loads(manifest.read_text())
            except ValueError:
                return f"{manifest.name} is damaged"
            for file, expected in hashes.items():
                if not (directory / file).is_file():
                    return f"{file} is missing"
                if sha256(directory / file) != expected:
                    return f"{file} is damaged"
            if rank == 0:
                num_parts = json.loads((directory / POSITION).read_text())["world_size"]
            rank += 1
    return None


def damaged_first(checkpoints: list[Checkpoint]) -> list[str]:
    """A line for each damaged checkpoint before the first whole one of `checkpoints`."""
    damaged: list[str] = []
    for checkpoint in checkpoints:
        wrong = damage(checkpoint)
        if wrong is None:
            break
        damaged.append(f"{Path(checkpoint.path).name}: {wrong}")
    return damaged


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
