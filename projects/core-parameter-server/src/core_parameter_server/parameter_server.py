"""A sharded parameter server on Ray Core: the file to read.

Two kinds of actors. Each `Shard` owns a contiguous slice of the parameters and the optimizer for
it. Each `Worker` computes gradients on its own share of the data. The driver holds the *references*
to weights and gradients and passes them on; the arrays themselves go from actor to actor through
the object store, where each version of the weights lies once for all workers of a node.

    python -m core_parameter_server server.mode=ssp server.max_staleness=2

Source: https://docs.ray.io/en/releases-2.60.0/ray-core/examples/plot_parameter_server.html and
https://docs.ray.io/en/releases-2.60.0/ray-core/fault_tolerance/actors.html
"""

import os
import time
from collections import deque
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_shared.storage import Storage

from core_parameter_server import checkpoint as ckpt
from core_parameter_server.compression import Array, Compressor, Packed
from core_parameter_server.config import Config, TrainConfig
from core_parameter_server.consistency import slices
from core_parameter_server.optimizer import Optimizer

MAX_PENDING_UPDATES = 4
"""Updates that the driver runs ahead of the slowest shard."""


class ForgottenStateError(Exception):
    """A shard has started anew, and knows neither weights nor version."""


# What Ray raises when an actor dies, or when an object went with the node that it was on.
# (A method's own exception comes as RayTaskError, and ends the job.)
LOST = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ForgottenStateError)


class Shard:
    """One slice of the parameters, and the optimizer's state for it.

    Ray starts it again when its process dies; but with nothing in it: then every call fails until
    `restore`.
    """

    def __init__(self, config: TrainConfig, index: int, start: int, stop: int):
        self.index, self.start, self.stop = index, start, stop
        self.optimizer = Optimizer(config, stop - start)
        self.weights: Array = np.empty(0, np.float32)
        self.version: int | None = None

    # Ray repeats this call if the actor dies meanwhile: it may be made any number of times.
    @ray.method(max_task_retries=-1)
    def load(self, weights: Array) -> int:
        """Starts with these weights, float32 [stop - start]; returns the process id."""
        # What comes from the object store is shared with every reader, and read-only.
        self.weights = weights.copy()
        self.optimizer.reset()
        self.version = 0
        return os.getpid()

    @ray.method(max_task_retries=-1)
    def restore(self, checkpoint: ckpt.Checkpoint) -> int:
        """Goes to the version of a checkpoint, forwards or back; returns the process id."""
        arrays, num_steps = checkpoint.read(self.start, self.stop)
        self.weights = arrays.pop("weights")
        self.optimizer.restore(arrays, num_steps)
        self.version = checkpoint.version
        return os.getpid()

    def publish(self, version: int) -> Array:
        """The weights of a version, float32 [stop - start].

        Ray copies what a method returns into the object store: once for all its readers.
        """
        self._expect(version)
        return self.weights

    def apply(
        self, version: int, sent_at: float, factors: list[float], *gradients: Packed
    ) -> dict[str, float]:
        """Makes version + 1 out of a weighted sum of gradients.

        Ray hands the gradients over as views into the object store: nothing is copied on this node.

        Returns:
            `squares` of the summed gradient; `bytes` that came; `queued_s` since the call was sent;
            `apply_s`.
        """
        self._expect(version)
        queued_s, started = time.time() - sent_at, time.perf_counter()
        squares = self.optimizer.step(self.weights, gradients, factors)
        self.version = version + 1
        return {
            "squares": squares,
            "bytes": sum(gradient.num_bytes for gradient in gradients),
            "queued_s": max(queued_s, 0.0),
            "apply_s": time.perf_counter() - started,
        }

    def save(self, version: int, directory: Storage) -> dict[str, Any]:
        """Writes the shard's file of a checkpoint; returns its entry in the manifest."""
        self._expect(version)
        arrays = {"weights": self.weights} | self.optimizer.slots
        return ckpt.write_shard(directory, self.index, self.start, arrays, self.optimizer.num_steps)

    def _expect(self, version: int) -> None:
        if self.version is None:
            raise ForgottenStateError(f"shard {self.index}")
        assert self.version == version, (self.version, version)


class Worker:
    """Computes gradients on its own share of the data.

    A gradient depends on the arguments alone: which weights, and the worker's clock. So Ray may
    compute it again, in another process, if this one dies (`max_task_retries`).
    """

    def __init__(self, config: Config, rank: int):
        # Here, because the shards need no torch, which takes seconds to import.
        from core_parameter_server.problems import make_problem

        self.config, self.rank = config, rank
        self.problem = make_problem(config, rank)
        self.bounds = slices(len(self.problem.weights), config.server.num_shards)
        self.initial = self.problem.weights.copy()
        self.compressor = Compressor(config.server.compression, config.server.topk_fraction)

    @ray.method(max_task_retries=-1)
    def first_weights(self, shard: int) -> Array:
        """One shard's slice of the initial weights, the same on every worker."""
        start, stop = self.bounds[shard]
        return self.initial[start:stop]

    @ray.method(max_task_retries=-1)
    def begin(self) -> dict[str, Any]:
        """Begins a run; returns `rank`, `pid`, `node`, and how many gradients are an epoch."""
        self.compressor.forget()
        node = ray.get_runtime_context().get_node_id()
        about = {"rank": self.rank, "pid": os.getpid(), "node": node}
        return about | {"num_batches": self.problem.num_batches}

    @ray.method(max_task_retries=-1)
    def gradient(self, clock: int, *weights: Array) -> list[Any]:
        """The gradient of batch number `clock`.

        Args:
            clock: How many of this worker's gradients the server has.
            weights: The slice of each shard.

        Returns:
            A `Packed` for each shard, then a dict with `loss`, `count` (samples), `pid`,
            `compute_s`. Each is an object of its own, so that a shard fetches its slice only.
        """
        started = time.perf_counter()
        self._read(weights)
        gradient, loss, count = self.problem.gradient(clock)
        packed = [
            self.compressor.pack(shard, gradient[start:stop])
            for shard, (start, stop) in enumerate(self.bounds)
        ]
        self._straggle(time.perf_counter() - started)
        stats = {"loss": loss, "count": count, "pid": os.getpid()}
        return [*packed, stats | {"compute_s": time.perf_counter() - started}]

    @ray.method(max_task_retries=-1)
    def evaluate(self, split: str, *weights: Array) -> dict[str, float]:
        """Metrics of these weights on `val` or `test`."""
        self._read(weights)
        return self.problem.evaluate(split)

    def _read(self, weights: tuple[Array, ...]) -> None:
        for (start, stop), part in zip(self.bounds, weights, strict=True):
            self.problem.weights[start:stop] = part

    def _straggle(self, compute_s: float) -> None:
        """`action=straggler`: every gradient takes a while, the last worker's a multiple of it."""
        straggler = self.config.straggler
        if self.config.action == "straggler":
            last = self.rank == self.config.scaling.num_workers - 1
            usual_s = max(compute_s, straggler.compute_s)
            time.sleep(usual_s * (straggler.factor if last else 1) - compute_s)


class Actors:
    """All actors of a job, each in a bundle of one placement group.

    The group reserves everything at once: a job gets all its actors or none. When a node goes, Ray
    looks for a new place for its bundles, and starts their actors again there.
    """

    def __init__(self, config: Config):
        server, scaling = config.server, config.scaling
        cpus = [server.cpus_per_shard] * server.num_shards
        cpus += [scaling.cpus_per_worker] * scaling.num_workers
        group = placement_group([{"CPU": each} for each in cpus], strategy=server.placement)

        def actor(kind: type, bundle: int) -> Any:
            return ray.remote(
                num_cpus=cpus[bundle],
                max_restarts=config.failure.max_failures,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
            )(kind)

        bounds = slices(config.problem.num_parameters, server.num_shards)
        self.shards = [
            actor(Shard, index).remote(config.train, index, start, stop)
            for index, (start, stop) in enumerate(bounds)
        ]
        self.workers = [
            actor(Worker, server.num_shards + rank).remote(config, rank)
            for rank in range(scaling.num_workers)
        ]


class ParameterServer:
    """The driver's end of the shards: it moves references and never an array.

    All shards get the same calls in the same order, so that they go through the same versions.
    """

    def __init__(self, shards: list[Any]):
        self.shards = shards
        self.version = 0
        self.pids: list[int] = []
        self._published: list[ObjectRef] = []
        self._pending: deque[list[ObjectRef]] = deque()
        self._saves: deque[tuple[int, list[int], list[ObjectRef]]] = deque()

    def load(self, weights: list[ObjectRef]) -> None:
        """Begins at version 0 with these slices."""
        loaded = [s.load.remote(part) for s, part in zip(self.shards, weights, strict=True)]
        self._begin(0, ray.get(loaded))

    def restore(self, checkpoint: ckpt.Checkpoint) -> list[int]:
        """Takes all shards to one checkpoint; returns which of them run in a new process."""
        before = self.pids
        # Waits until Ray has started the dead ones again.
        pids = ray.get([shard.restore.remote(checkpoint) for shard in self.shards])
        self._begin(checkpoint.version, pids)
        return [i for i, (a, b) in enumerate(zip(before, pids, strict=False)) if a != b]

    def _begin(self, version: int, pids: list[int]) -> None:
        self.version, self.pids = version, pids
        self._published = []
        self._pending.clear()
        self._saves.clear()

    def pull(self) -> list[ObjectRef]:
        """References to the newest weights, a slice each; the same ones until the next update."""
        if not self._published:
            self._published = [shard.publish.remote(self.version) for shard in self.shards]
        return self._published

    def push(self, gradients: list[list[ObjectRef]], factors: list[float]) -> list[dict[str, Any]]:
        """Makes the next version of a weighted sum of gradients.

        Args:
            gradients: For each, the references to its slices.
            factors: The weight of each.

        Returns:
            What the shards said about an earlier update, once there are a few under way.
        """
        now = time.time()
        self._pending.append(
            [
                shard.apply.remote(self.version, now, factors, *parts)
                for shard, parts in zip(self.shards, zip(*gradients, strict=True), strict=True)
            ]
        )
        self.version += 1
        # Objects that nobody has a reference to are freed: the old weights, the gradients.
        self._published = []
        return ray.get(self._pending.popleft()) if len(self._pending) > MAX_PENDING_UPDATES else []

    def wait(self) -> list[list[dict[str, Any]]]:
        """Waits for the updates under way; returns what the shards said about each."""
        said = [ray.get(refs) for refs in self._pending]
        self._pending.clear()
        return said

    def save(self, run_dir: Storage, clocks: list[int]) -> None:
        """Begins a checkpoint of this version, while updates go on."""
        directory = ckpt.directory_of(run_dir, self.version)
        refs = [shard.save.remote(self.version, directory) for shard in self.shards]
        self._saves.append((self.version, list(clocks), refs))

    def commit_saved(self, run_dir: Storage, wait: bool = False) -> list[int]:
        """Completes the checkpoints whose files are written; returns their versions."""
        versions = []
        while self._saves:
            version, clocks, refs = self._saves[0]
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=None if wait else 0)
            if len(ready) < len(refs):
                break
            ckpt.commit(run_dir, version, clocks, ray.get(refs))
            self._saves.popleft()
            versions.append(version)
        return versions
