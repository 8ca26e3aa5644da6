"""Runs the driver's loop in the test's own process, and kills what a test names, when it says."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from core_parameter_server import checkpoint as ckpt
from core_parameter_server.config import Config
from core_parameter_server.placement import Actors
from core_parameter_server.training import Training
from ray.util.placement_group import remove_placement_group
from ray_shared.config import compose
from ray_shared.storage import Storage

SIZE, NUM_CLOCKS = 50, 24
Event = dict[str, Any]
React = Callable[[Training, Event], None]


def configured(*overrides: str) -> Config:
    """Two shards, two workers, two epochs of 12 gradients each."""
    tiny = ["problem=quadratic", f"problem.size={SIZE}", "problem.num_samples=240"]
    tiny += ["train.batch_size=10", "train.epochs=2", "train.optimizer=sgd", "train.lr=0.3"]
    tiny += ["scaling.num_workers=2", "scaling.cpus_per_worker=0.25", "failure.max_failures=-1"]
    tiny += ["checkpoint.every_updates=10", "tracking.every_steps=1"]
    return compose(Config, "core_parameter_server.conf", [*tiny, *overrides])


@contextmanager
def started(config: Config) -> Iterator[Actors]:
    actors = Actors(config)
    try:
        yield actors
    finally:
        remove_placement_group(actors.group)


def train(
    actors: Actors,
    config: Config,
    run_dir: Storage,
    react: React = lambda training, event: None,
    kind: type[Training] = Training,
) -> tuple[Training, list[Event]]:
    """Runs to the end; `react` is called with each event before anything else happens."""
    events: list[Event] = []

    def log(event: Event) -> None:
        events.append(event)
        react(training, event)

    training = kind(config, actors, run_dir, log)
    training.run()
    return training, events


def kill_shard(training: Training, index: int) -> None:
    process = psutil.Process(training.server.pids[index])
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)


def at(kind: str, step: int, action: Callable[[Training], None]) -> React:
    """Does it once, at the first such event."""
    left = [action]

    def react(training: Training, event: Event) -> None:
        if event["event"] == kind and event["step"] == step and left:
            left.pop()(training)

    return react


def of(events: list[Event], kind: str) -> list[Event]:
    return [e for e in events if e["event"] == kind]


def final_weights(run_dir: Storage) -> np.ndarray:
    newest = ckpt.checkpoints(run_dir)[-1]
    return newest.read(0, newest.size)[0]["weights"]


def files(run_dir: Storage, version: int) -> list[Path]:
    return list(Path(ckpt.directory_of(run_dir, version).path).glob("*.npz"))
