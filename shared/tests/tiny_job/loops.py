"""Training loops without training, and a backend that breaks."""

import os
import tempfile
from pathlib import Path
from typing import Any

import ray.train

NUM_EPOCHS = 3


def loop(config: dict[str, Any]) -> None:
    """Reports a start, three epochs, each with a checkpoint, and breaks if it is told to."""
    rank = ray.train.get_context().get_world_rank()
    worker = {"rank": rank, "pid": os.getpid()}
    ray.train.report({"event": "start", "step": 0, "worker": worker})
    for epoch in range(1, NUM_EPOCHS + 1):
        event = {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "loss": 1 / epoch}
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / f"rank{rank}").touch()
            ray.train.report(event, ray.train.Checkpoint.from_directory(directory))
    if config["breaks"] and rank == 1:
        raise ValueError("rank 1 broke")


class BrokenBackend:
    """A tracker that is out of order."""

    def start(self, params: dict[str, Any]) -> None:
        """Works."""

    def log(self, event: dict[str, Any]) -> None:
        """Does not work."""
        raise OSError("the disk is full")

    def finish(self, status: str) -> None:
        """Would work, but is not called once the backend is given up."""
        raise AssertionError("a backend that broke was called again")
