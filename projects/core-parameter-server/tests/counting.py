"""What the tests count, and where it is found."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from core_parameter_server import checkpoint as ckpt
from core_parameter_server.compression import Array
from ray_shared.storage import open_storage
from ray_shared.testing import Job

CHECKPOINT_EVERY = 10
# 140 updates; each is recorded, and takes long enough to be met in the middle on any machine.
COUNTED = [
    "train.epochs=10",
    "train.compute_s=0.02",
    f"checkpoint.every_updates={CHECKPOINT_EVERY}",
    "tracking.every_steps=1",
]
NUM_UPDATES = 140
# The driver runs so many updates ahead before it hears of a loss.
AHEAD = 6


def step_reached(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda e: e["event"] == "step" and e["step"] >= step


def events(job: Job, kind: str) -> list[dict[str, Any]]:
    return [e for e in job.events() if e["event"] == kind]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def shard_pid(job: Job, index: int) -> int:
    pid: int = events(job, "start")[0]["shards"][index]["pid"]
    return pid


def applied(job: Job) -> Counter[tuple[int, int]]:
    """How often each gradient, by worker and clock, is in the final weights.

    What was done after the version to which a recovery went back is not in them.
    """
    history: list[tuple[int, tuple[int, int]]] = []
    for event in job.events():
        if event["event"] == "step":
            history += [(event["step"], (worker, clock)) for worker, clock, _ in event["applied"]]
        elif event["event"] == "recovery":
            history = [(step, gradient) for step, gradient in history if step <= event["step"]]
    return Counter(gradient for _, gradient in history)


def every_gradient_once(num_workers: int, num_clocks: int) -> Counter[tuple[int, int]]:
    return Counter((w, c) for w in range(num_workers) for c in range(num_clocks))


def weights(directory: Path, run: str) -> Array:
    """The newest checkpoint's parameter vector."""
    newest = ckpt.checkpoints(open_storage(str(directory / "runs" / run)))[-1]
    return np.asarray(newest.read(0, newest.size)[0]["weights"])
