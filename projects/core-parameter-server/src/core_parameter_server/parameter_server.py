"""A sharded parameter server on Ray Core: the file to read.

Two kinds of actors. Each `Shard` owns a contiguous slice of the parameters and the optimizer for
it. Each `Worker` computes gradients on its own share of the data. The driver holds the *references*
to weights and gradients and passes them on; the arrays themselves go from actor to actor through
the object store, where each version of the weights lies once for all workers of a node. (Only what
has less than 100 kB travels through the driver, inside the replies and calls.)

    python -m core_parameter_server server.mode=ssp server.max_staleness=2

Source: https://docs.ray.io/en/releases-2.60.0/ray-core/examples/plot_parameter_server.html and
https://docs.ray.io/en/releases-2.60.0/ray-core/fault_tolerance/actors.html
"""

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray_shared.storage import Storage

from core_parameter_server import checkpoint as ckpt
from core_parameter_server.compression import Array, Compressor, Packed
from core_parameter_server.config import Config, TrainConfig
from core_parameter_server.consistency import slices
from core_parameter_server.optimizer import Optimizer
from core_parameter_server.problems import make_problem

MAX_PENDING_UPDATES = 4
"""Updates that the driver runs ahead of the slowest shard."""


class ForgottenStateError(Exception):
    """A shard has started anew, and knows neither weights nor version."""


class NotFiniteError(Exception):
    """Weights, or what the optimizer keeps, are not numbers any more."""


# What Ray raises when an actor dies, when its node has no memory left, or when an object went with
# the node that it was on. (A method's own exception comes as RayTaskError, and ends the job.)
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ForgottenStateError,
)


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

        Ray copies what a method returns into the object store: once for all its readers, who get
        it read-only.
        """
        self._expect(version)
        return self.weights

    def apply(
        self, version: int, sent_at: float, factors: list[float], *gradients: Packed
    ) -> dict[str, float]:
        """Makes version + 1 out of a weighted sum of gradients.

        Ray hands the gradients over as views into the object store: nothing is copied on this node.

        Returns:
            `squares` of the summed gradient; `bytes` that came; `queued_s` since the call was sent,
            by the clocks of two machines, unless the shard is on the driver's.
        """
        self._expect(version)
        queued_s = time.time() - sent_at
        squares = self.optimizer.step(self.weights, gradients, factors)
        self.version = version + 1
        return {
            "squares": squares,
            "bytes": sum(gradient.num_bytes for gradient in gradients),
            "queued_s": queued_s,
        }

    def save(self, version: int, directory: Storage) -> dict[str, Any]:
        """Writes the shard's file of a checkpoint; returns its entry in the manifest.

        The shard does nothing else meanwhile: its next update waits.
        """
        self._expect(version)
        arrays = {"weights": self.weights} | self.optimizer.slots
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise NotFiniteError(f"shard {self.index}, version {version}")
        name, num_steps = self.optimizer.config.optimizer, self.optimizer.num_steps
        return ckpt.write_shard(directory, self.index, self.start, arrays, name, num_steps)

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
        self.rank = rank
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
    def forget(self) -> float:
        """Forgets what top-k has held back of gradients that are no more; returns its norm."""
        return self.compressor.forget()

    @ray.method(max_task_retries=-1)
    def gradient(self, clock: int, *weights: Array) -> list[Any]:
        """The gradient of batch number `clock`.

        Args:
            clock: How many of this worker's gradients the server has.
            weights: The slice of each shard.

        Returns:
            A `Packed` for each shard, then a dict with `clock`, `loss`, `count` (samples), `pid`,
            `bytes_read`. Each is an object of its own, so that a shard fetches its slice only.
        """
        self._read(weights)
        gradient, loss, count = self.problem.gradient(clock)
        packed = [
            self.compressor.pack(shard, gradient[start:stop])
            for shard, (start, stop) in enumerate(self.bounds)
        ]
        stats = {"clock": clock, "loss": loss, "count": count, "pid": os.getpid()}
        return [*packed, stats | {"bytes_read": sum(part.nbytes for part in weights)}]

    @ray.method(max_task_retries=-1)
    def evaluate(self, split: str, *weights: Array) -> dict[str, float]:
        """Metrics of these weights on `val` or `test`."""
        self._read(weights)
        return self.problem.evaluate(split)

    def _read(self, weights: tuple[Array, ...]) -> None:
        for (start, stop), part in zip(self.bounds, weights, strict=True):
            self.problem.weights[start:stop] = part


class ParameterServer:
    """The driver's end of the shards: it moves references, not arrays.

    All shards get the same calls in the same order, so that they go through the same versions.
    """

    def __init__(self, shards: list[Any], get: Callable[[list[ObjectRef]], list[Any]] = ray.get):
        """With a `get` of its own, so that somebody may decide how long to wait."""
        self.shards, self._get = shards, get
        self.version = 0
        self.pids: list[int] = []
        self._published: list[ObjectRef] = []
        self._pending: deque[list[ObjectRef]] = deque()
        self._saves: deque[tuple[int, list[int], list[ObjectRef]]] = deque()

    def load(self, weights: list[ObjectRef]) -> list[int]:
        """Begins at version 0 with these slices; returns which shards run in a new process."""
        loaded = [s.load.remote(part) for s, part in zip(self.shards, weights, strict=True)]
        return self._begin(0, loaded)

    def restore(self, checkpoint: ckpt.Checkpoint) -> list[int]:
        """Takes all shards to one checkpoint; returns which of them run in a new process."""
        # Waits until Ray has started the dead ones again.
        return self._begin(
            checkpoint.version, [shard.restore.remote(checkpoint) for shard in self.shards]
        )

    def _begin(self, version: int, begun: list[ObjectRef]) -> list[int]:
        before, self.pids = self.pids, self._get(begun)
        self.version = version
        self._published = []
        self._pending.clear()
        self._saves.clear()
        return [i for i, (a, b) in enumerate(zip(before, self.pids, strict=False)) if a != b]

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
        said = []
        if len(self._pending) == MAX_PENDING_UPDATES:
            said = self._get(self._pending.popleft())
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
        return said

    def wait(self) -> list[list[dict[str, Any]]]:
        """Waits for the updates under way; returns what the shards said about each."""
        said = [self._get(refs) for refs in self._pending]
        self._pending.clear()
        return said

    def save(self, run_dir: Storage, clocks: list[int]) -> None:
        """Begins a checkpoint of this version; driver and workers go on meanwhile."""
        directory = ckpt.directory_of(run_dir, self.version)
        refs = [shard.save.remote(self.version, directory) for shard in self.shards]
        self._saves.append((self.version, list(clocks), refs))

    def commit_saved(self, run_dir: Storage, wait: bool = False) -> list[int]:
        """Completes the checkpoints whose files are written; returns their versions."""
        versions = []
        while self._saves:
            version, clocks, refs = self._saves[0]
            if not wait and ray.wait(refs, num_returns=len(refs), timeout=0)[1]:
                break
            ckpt.commit(run_dir, version, clocks, self._get(refs))
            self._saves.popleft()
            versions.append(version)
        return versions
