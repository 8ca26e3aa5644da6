"""The driver's loop: which gradients make an update, and what happens when an actor dies.

`sync_update` and `async_update` are the two ways to make the next version. Everything else is the
same for all modes: checkpoints, evaluation, recovery.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray_shared.errors import JobError
from ray_shared.storage import Storage

from core_parameter_server import checkpoint as ckpt
from core_parameter_server.config import Config
from core_parameter_server.consistency import Clocks
from core_parameter_server.counts import Counts
from core_parameter_server.parameter_server import LOST, NotFiniteError, ParameterServer
from core_parameter_server.placement import Actors

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


class Training:
    """One run: from the initial weights, or the newest checkpoint, to the last update."""

    def __init__(
        self, config: Config, actors: Actors, run_dir: Storage, log: Callable[[Event], None]
    ):
        self.config, self.actors, self.run_dir, self.log = config, actors, run_dir, log
        self.server = ParameterServer(actors.shards, actors.get)
        self.counts = Counts()
        bound = config.server.max_staleness if config.server.mode == "ssp" else None
        self.workers = actors.get([worker.begin.remote() for worker in actors.workers])
        self.worker_pids = [worker["pid"] for worker in self.workers]
        self.num_batches: int = self.workers[0]["num_batches"]
        num_clocks = config.train.epochs * self.num_batches
        self.clocks = Clocks(config.scaling.num_workers, num_clocks, bound)
        self.in_flight: dict[ObjectRef, InFlight] = {}
        self.evaluations: deque[tuple[Event, ObjectRef]] = deque()
        self.saved: int | None = None
        self.first_version: int | None = None
        self.started = time.perf_counter()

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
            JobError: If the loss is not finite, an actor died too often, or the actors of a lost
                node find no room.
        """
        update = self.sync_update if self.config.server.mode == "sync" else self.async_update
        lost: Exception | None = None
        while True:
            try:
                self.begin(lost)
                ended = self.done  # The newest checkpoint may be that of the last version.
                while not ended:
                    update()
                    ended = self.after_update(until) or self.done
                self.finish()
                return
            except LOST as error:
                lost = error

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
        (ref,) = self.actors.wait(list(self.in_flight), num_returns=1)
        stats = ray.get(ref)
        gradient = self.in_flight.pop(ref)
        self.counts.bytes_read += stats["bytes_read"]
        if stats["pid"] != self.worker_pids[gradient.worker]:
            self.worker_pids[gradient.worker] = stats["pid"]
            self.counts.worker_restarts += 1
            event = {"event": "worker_restarted", "step": self.server.version}
            self.log(event | {"worker_rank": gradient.worker, "pid": stats["pid"]})
        self.check_finite("loss", stats["loss"])
        return gradient, stats

    def check_finite(self, what: str, value: float) -> None:
        """Ends a run that has diverged; checkpoints are finite, or are none (`Shard.save`)."""
        if not math.isfinite(value):
            raise JobError(
                f"the {what} is not finite at update {self.server.version}; a smaller train.lr may "
                f"help; the newest checkpoint is in {self.run_dir.uri}"
            )

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
        every = self.config.tracking.every_steps
        if every and self.server.version % every == 0:
            applied = [[g.worker, stats["clock"], g.staleness] for g, stats in gradients]
            loss = sum(f * stats["loss"] for f, (_, stats) in zip(factors, gradients, strict=True))
            event = {"event": "step", "step": self.server.version, "loss": loss}
            self.log(event | {"applied": applied})

    def count(self, said: list[dict[str, Any]]) -> None:
        """Adds up what the shards say about one update."""
        self.counts.hear(said)
        self.check_finite("gradient", self.counts.grad_norm)

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
            if not wait and not ray.wait([ref], timeout=0)[0]:
                break
            (found,), split = self.actors.get([ref]), event["split"]
            event |= {f"{split}_{name}": value for name, value in found.items()}
            new_updates = event["step"] - (self.first_version or 0)
            event |= {"grad_norm": self.counts.grad_norm}
            event |= {"updates_per_s": new_updates / event["seconds"]}
            self.evaluations.popleft()
            self.log(event)
            self.check_finite(f"{split} loss", found["loss"])
            done.append(event)
        return done

    def save(self, wait: bool = False) -> None:
        """Begins a checkpoint."""
        self.saved = self.server.version
        self.server.save(self.run_dir, self.clocks.clocks)
        self.commit(wait)

    def commit(self, wait: bool = False) -> None:
        """Completes checkpoints, and removes old ones."""
        try:
            versions = self.server.commit_saved(self.run_dir, wait)
        except NotFiniteError:
            self.check_finite("largest weight", math.inf)
            raise
        for version in versions:
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

    def begin(self, lost: Exception | None) -> None:
        """Takes all shards to the newest checkpoint, or to the initial weights, and says so.

        Workers need nothing of the kind: Ray starts them again and repeats what they were at.

        Args:
            lost: None at the start; else why the run has to go back.

        Raises:
            JobError: If an actor died too often, or no checkpoint is whole.
        """
        before, began = self.server.version, time.perf_counter()
        # What is under way was computed from versions that are no more.
        self.in_flight.clear()
        self.evaluations.clear()
        try:
            renewed = self.go_back()
            # So was what they have held back.
            held_back = self.actors.get([worker.forget.remote() for worker in self.actors.workers])
        except ray.exceptions.RayActorError as error:
            # These calls wait for actors that start again. Here is one that does not.
            allowed = self.config.failure.max_failures
            raise JobError(
                f"an actor died more than failure.max_failures={allowed} times: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if self.saved is None:
            self.save(wait=True)  # From here on there is always something to go back to.
        event: Event = {"step": self.server.version}
        if self.first_version is None:
            self.first_version = self.server.version
            shards = [{"index": i, "pid": pid} for i, pid in enumerate(self.server.pids)]
            start = {"event": "start", "num_workers": len(self.workers), "workers": self.workers}
            self.log(start | event | {"shards": shards, "done": self.done})
        if lost is not None:
            redone = before - self.server.version
            self.counts.recoveries += 1
            self.counts.updates_redone += redone
            event |= {"event": "recovery", "lost_at": before, "redone": redone, "shards": renewed}
            event |= {"pids": self.server.pids, "held_back": held_back}
            self.log(event | {"seconds": time.perf_counter() - began})
        self.evaluate("val")

    def go_back(self) -> list[int]:
        """Takes the shards to the newest whole checkpoint; returns which are in a new process."""
        damaged = []
        for checkpoint in reversed(ckpt.checkpoints(self.run_dir)):
            try:
                renewed = self.server.restore(checkpoint)
            except ckpt.DamagedCheckpointError as error:
                damaged.append(str(getattr(error, "cause", error)))
                self.log({"event": "damaged", "step": checkpoint.version, "reason": damaged[-1]})
                checkpoint.discard()
                continue
            self.saved = checkpoint.version
            self.clocks.clocks = list(checkpoint.clocks)
            return renewed
        if damaged:
            raise JobError(f"no whole checkpoint is left: {damaged[0]}")
        first = self.actors.workers[0].first_weights
        return self.server.load([first.remote(shard) for shard in range(len(self.actors.shards))])
