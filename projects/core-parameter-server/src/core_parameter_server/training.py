"""The driver's loop: which gradients make an update, and what happens when an actor dies.

`sync_update` and `async_update` are the two ways to make the next version. Everything else is the
same for all modes: checkpoints, evaluation, recovery.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef
from ray_shared.errors import JobError
from ray_shared.storage import Storage

from core_parameter_server import checkpoint as ckpt
from core_parameter_server.config import Config
from core_parameter_server.consistency import Clocks
from core_parameter_server.parameter_server import LOST, Actors, ParameterServer

Event = dict[str, Any]


@dataclass
class InFlight:
    """A gradient that a worker is computing."""

    worker: int
    version: int
    """Of the weights that it reads."""
    staleness: int
    """By how many gradients the worker was ahead of the slowest when it started."""
    slices: list[ObjectRef]


@dataclass
class Counts:
    """What a run counts."""

    staleness: Counter[int] = field(default_factory=Counter)
    """How often an applied gradient had which staleness."""
    delay: Counter[int] = field(default_factory=Counter)
    """How many updates others had made between a gradient's read and its update."""
    bytes_sent: int = 0
    """Of gradients, to the shards."""
    bytes_read: int = 0
    """Of weights, by the workers."""
    num_dropped: int = 0
    """Gradients that came too late for their update (sync with backup workers)."""
    recoveries: int = 0
    updates_redone: int = 0
    worker_restarts: int = 0
    queued_s: list[list[float]] = field(default_factory=list)
    """For each shard, how long each update waited there."""


class Training:
    """One run: from the initial weights, or the newest checkpoint, to the last update."""

    def __init__(
        self, config: Config, actors: Actors, run_dir: Storage, log: Callable[[Event], None]
    ):
        self.config, self.actors, self.run_dir, self.log = config, actors, run_dir, log
        self.server = ParameterServer(actors.shards)
        self.counts = Counts(queued_s=[[] for _ in actors.shards])
        bound = config.server.max_staleness if config.server.mode == "ssp" else None
        workers = ray.get([worker.begin.remote() for worker in actors.workers])
        self.worker_pids = [worker["pid"] for worker in workers]
        self.num_batches: int = workers[0]["num_batches"]
        num_clocks = config.train.epochs * self.num_batches
        self.clocks = Clocks(config.scaling.num_workers, num_clocks, bound)
        self.in_flight: dict[ObjectRef, InFlight] = {}
        self.grad_norm = 0.0
        self.evaluations: deque[tuple[Event, ObjectRef]] = deque()
        self.started = time.perf_counter()
        self.begin(workers)

    def begin(self, workers: list[dict[str, Any]]) -> None:
        """Loads the newest checkpoint, or the initial weights and makes a checkpoint of them."""
        newest = next(reversed(ckpt.checkpoints(self.run_dir)), None)
        if newest is not None:
            self.server.restore(newest)
            self.saved = newest.version
            self.clocks.clocks = list(newest.clocks)
        else:
            first = self.actors.workers[0].first_weights
            self.server.load([first.remote(shard) for shard in range(len(self.actors.shards))])
            self.save(wait=True)  # From here on there is always something to go back to.
        self.first_version = self.server.version
        shards = [{"index": i, "pid": pid} for i, pid in enumerate(self.server.pids)]
        event = {"event": "start", "step": self.server.version, "num_workers": len(workers)}
        self.log(event | {"workers": workers, "shards": shards, "done": self.done})
        self.evaluate("val")

    @property
    def done(self) -> bool:
        """Whether all gradients of all epochs are in the weights."""
        if self.config.server.mode == "sync":
            return self.server.version >= self.clocks.end
        return self.clocks.done

    @property
    def idle(self) -> set[int]:
        """The workers that compute no gradient."""
        busy = {gradient.worker for gradient in self.in_flight.values()}
        return set(range(self.config.scaling.num_workers)) - busy

    @property
    def epoch(self) -> float:
        """How many epochs of gradients are in the weights."""
        return sum(self.clocks.clocks) / len(self.clocks.clocks) / self.num_batches

    def run(self, until: Callable[[Event], bool] = lambda _: False) -> None:
        """Makes updates until the end.

        Args:
            until: Called with each evaluation; true ends the run early.

        Raises:
            JobError: If the loss is not finite, or actors died too often.
        """
        update = self.sync_update if self.config.server.mode == "sync" else self.async_update
        ended = self.done
        while True:
            try:
                while not ended:
                    update()
                    ended = self.after_update(until) or self.done
                self.finish()
                return
            except LOST as error:
                self.recover(error)
                ended = False

    def sync_update(self) -> None:
        """One update from the mean of the first gradients that are there, all at one version.

        With backup workers the slowest are not waited for; what they bring later is dropped.
        """
        num_needed = self.config.scaling.num_workers - self.config.server.num_backup
        fresh: list[tuple[InFlight, dict[str, Any]]] = []
        while len(fresh) < num_needed:
            for worker in self.idle - {gradient.worker for gradient, _ in fresh}:
                self.start(worker)
            gradient, stats = self.next_gradient()
            if gradient.version == self.server.version:
                fresh.append((gradient, stats))
            else:
                self.counts.num_dropped += 1
        fresh.sort(key=lambda found: found[0].worker)  # Sums of floats depend on the order.
        total = sum(stats["count"] for _, stats in fresh)
        self.push(fresh, [stats["count"] / total for _, stats in fresh])

    def async_update(self) -> None:
        """One update from one gradient, whichever is done first.

        It counts for one worker's share: as many of them as there are workers go as far as one
        synchronous update.
        """
        for worker in self.clocks.may_start(self.idle):
            self.start(worker)
        self.push([self.next_gradient()], [1 / self.config.scaling.num_workers])

    def start(self, worker: int) -> None:
        """Asks a worker for its next gradient, at the newest weights."""
        # One reference for each slice, and one for the numbers: the driver fetches only those.
        num_returns = len(self.actors.shards) + 1
        method = self.actors.workers[worker].gradient.options(num_returns=num_returns)
        *parts, stats = method.remote(self.clocks.clocks[worker], *self.server.pull())
        sync = self.config.server.mode == "sync"  # Then nothing is missing from the weights.
        staleness = 0 if sync else self.clocks.staleness(worker)
        self.in_flight[stats] = InFlight(worker, self.server.version, staleness, parts)

    def next_gradient(self) -> tuple[InFlight, dict[str, Any]]:
        """Waits for the gradient that is done first.

        Raises:
            JobError: If its loss is not finite.
        """
        (ref,), _ = ray.wait(list(self.in_flight), num_returns=1)
        stats = ray.get(ref)
        gradient = self.in_flight.pop(ref)
        if stats["pid"] != self.worker_pids[gradient.worker]:
            self.worker_pids[gradient.worker] = stats["pid"]
            self.counts.worker_restarts += 1
            event = {"event": "worker_restarted", "step": self.server.version}
            self.log(event | {"worker_rank": gradient.worker, "pid": stats["pid"]})
        if not math.isfinite(stats["loss"]):
            raise JobError(
                f"the loss is not finite at update {self.server.version}; a smaller train.lr may "
                f"help; the newest checkpoint is in {self.run_dir.uri}"
            )
        return gradient, stats

    def push(self, gradients: list[tuple[InFlight, dict[str, Any]]], factors: list[float]) -> None:
        """Makes the next version of these gradients."""
        version = self.server.version
        said = self.server.push([gradient.slices for gradient, _ in gradients], factors)
        if said:
            self.count(said)
        for gradient, _ in gradients:
            self.clocks.tick(gradient.worker)
            self.counts.staleness[gradient.staleness] += 1
            self.counts.delay[version - gradient.version] += 1
            self.counts.bytes_read += 4 * self.config.problem.num_parameters
        every = self.config.tracking.every_steps
        if every and self.server.version % every == 0:
            applied = [
                [g.worker, self.clocks.clocks[g.worker] - 1, g.staleness] for g, _ in gradients
            ]
            loss = sum(f * stats["loss"] for f, (_, stats) in zip(factors, gradients, strict=True))
            event = {"event": "step", "step": self.server.version, "loss": loss}
            self.log(event | {"applied": applied})

    def count(self, said: list[dict[str, Any]]) -> None:
        """Adds up what the shards say about one update."""
        self.counts.bytes_sent += sum(shard["bytes"] for shard in said)
        self.grad_norm = math.sqrt(sum(shard["squares"] for shard in said))
        for queued, shard in zip(self.counts.queued_s, said, strict=True):
            queued.append(shard["queued_s"])

    def after_update(self, until: Callable[[Event], bool]) -> bool:
        """Checkpoint and evaluation when they are due; whether to end early."""
        version = self.server.version
        every = self.config.checkpoint.every_updates
        if every and version % every == 0:
            self.save()
        self.commit()
        if self.epoch >= self.next_evaluation or self.done:
            self.evaluate("val")
        return any(until(event) for event in self.evaluated())

    def evaluate(self, split: str) -> None:
        """Begins an evaluation of the newest weights, while updates go on."""
        event = {"event": "eval", "split": split, "step": self.server.version, "epoch": self.epoch}
        event |= {"seconds": time.perf_counter() - self.started}
        every = self.config.train.eval_every_epochs
        self.next_evaluation = (self.epoch // every + 1) * every
        ref = self.actors.workers[0].evaluate.remote(split, *self.server.pull())
        self.evaluations.append((event, ref))

    def evaluated(self, wait: bool = False) -> list[Event]:
        """Logs the evaluations that are done, and returns them."""
        done = []
        while self.evaluations:
            event, ref = self.evaluations[0]
            if not ray.wait([ref], timeout=None if wait else 0)[0]:
                break
            split = event["split"]
            event |= {f"{split}_{name}": value for name, value in ray.get(ref).items()}
            event |= {
                "grad_norm": self.grad_norm,
                "updates_per_s": (event["step"] - self.first_version) / event["seconds"],
            }
            self.evaluations.popleft()
            self.log(event)
            done.append(event)
        return done

    def save(self, wait: bool = False) -> None:
        """Begins a checkpoint."""
        self.saved = self.server.version
        self.server.save(self.run_dir, self.clocks.clocks)
        self.commit(wait)

    def commit(self, wait: bool = False) -> None:
        """Completes checkpoints, and removes old ones."""
        for version in self.server.commit_saved(self.run_dir, wait):
            self.log({"event": "checkpoint", "step": version})
            ckpt.prune(self.run_dir, self.config.checkpoint.num_to_keep)

    def finish(self) -> None:
        """Waits for everything under way; the last version becomes a checkpoint."""
        for said in self.server.wait():
            self.count(said)
        if self.server.version != self.saved:
            self.save()
        self.commit(wait=True)
        self.evaluate("test")
        self.evaluated(wait=True)

    def recover(self, error: Exception) -> None:
        """Takes all shards back to the newest checkpoint after one of them was lost.

        Workers need nothing of the kind: Ray starts them again and repeats what they were at.

        Raises:
            JobError: If this happens too often.
        """
        allowed = self.config.failure.max_failures
        if 0 <= allowed <= self.counts.recoveries:
            raise JobError(
                f"actors died more than failure.max_failures={allowed} times: {error}"
            ) from error
        began = time.perf_counter()
        before = self.server.version
        newest = ckpt.checkpoints(self.run_dir)[-1]
        # What is under way was computed from versions that are no more.
        self.in_flight.clear()
        self.evaluations.clear()
        try:
            lost = self.server.restore(newest)
        except (*LOST, ckpt.DamagedCheckpointError) as reason:
            raise JobError(f"no way back to {newest.directory.uri}: {reason}") from reason
        self.saved = newest.version
        self.clocks.clocks = list(newest.clocks)
        self.counts.recoveries += 1
        self.counts.updates_redone += before - newest.version
        self.evaluate("val")
        event = {"event": "recovery", "step": newest.version, "lost_at": before, "shards": lost}
        event |= {"pids": self.server.pids, "redone": before - newest.version}
        self.log(event | {"seconds": time.perf_counter() - began})
