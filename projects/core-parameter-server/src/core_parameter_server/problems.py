"""What a worker minimizes: its share of the data, and the gradient of the loss on it.

Weights and gradients are flat vectors, float32 [num_parameters]: a server knows no layers.
"""

import math
import time
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core_parameter_server.compression import Array
from core_parameter_server.config import Config

Rows = NDArray[np.int64]


class Problem(Protocol):
    """What workers need to know."""

    num_batches: int
    """Gradients of one epoch."""
    weights: Array
    """float32 [num_parameters], for the caller to write into; at first the initial weights, the
    same on every worker."""

    def gradient(self, clock: int) -> tuple[Array, float, int]:
        """The gradient at `weights` for one batch.

        Args:
            clock: How many gradients this worker has computed before; decides the batch.

        Returns:
            The gradient of the mean loss, float32 [num_parameters], valid until the next call; that
            loss; the number of samples.
        """

    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics at `weights` on `val` or `test`."""


def make_problem(config: Config, rank: int) -> Problem:
    """The problem as one worker sees it."""
    problem: Problem
    if config.problem.name == "digits":
        # Here, because nothing else needs torch, which takes seconds to import.
        from core_parameter_server.digits import Digits

        problem = Digits(config, rank)
    else:
        problem = Quadratic(config, rank)
    at_least_s, factor = config.train.compute_s, 1.0
    if config.action == "straggler":
        at_least_s = max(at_least_s, config.straggler.compute_s)
        if rank == config.scaling.num_workers - 1:
            factor = config.straggler.factor
    return Slow(problem, at_least_s, factor) if at_least_s or factor > 1 else problem


class Slow:
    """Another problem, as a larger model or a slower machine would go about it."""

    def __init__(self, problem: Problem, at_least_s: float, factor: float):
        """Gradients take `factor` times as long, and so many times `at_least_s`, at least."""
        self.problem, self.at_least_s, self.factor = problem, at_least_s, factor
        self.weights, self.num_batches = problem.weights, problem.num_batches
        self.evaluate = problem.evaluate

    def gradient(self, clock: int) -> tuple[Array, float, int]:
        """That of the other problem."""
        started = time.perf_counter()
        found = self.problem.gradient(clock)
        compute_s = time.perf_counter() - started
        time.sleep(max(compute_s, self.at_least_s) * self.factor - compute_s)
        return found


def share(num_samples: int, rank: int, num_workers: int) -> Rows:
    """The samples of one worker: disjoint, together all, equal but for one; int64 [n]."""
    return np.arange(rank, num_samples, num_workers)


def batches_per_epoch(num_samples: int, num_workers: int, batch_size: int) -> int:
    """The same for every worker."""
    return max(1, math.ceil(math.ceil(num_samples / num_workers) / batch_size))


def batch(samples: Rows, clock: int, num_batches: int, seed: list[int]) -> Rows:
    """The samples of a worker's gradient number `clock`.

    Each epoch has an order of its own and is cut into `num_batches` parts that differ by at most
    one sample. It depends on the arguments alone, so that a gradient can be computed again.
    """
    epoch, index = divmod(clock, num_batches)
    order = np.random.default_rng([*seed, epoch]).permutation(samples)
    return np.array_split(order, num_batches)[index]


class Quadratic:
    """The mean of `(w - target)^2 / 2` over the parameters' entries, with noise in the gradient."""

    def __init__(self, config: Config, rank: int):
        problem, train, workers = config.problem, config.train, config.scaling.num_workers
        rng = np.random.default_rng(train.seed)
        self.target = rng.standard_normal(problem.size, dtype=np.float32)
        self.weights = np.zeros_like(self.target)
        self.noise = problem.noise
        self.samples = share(problem.num_samples, rank, workers)
        self.num_batches = batches_per_epoch(problem.num_samples, workers, train.batch_size)
        self.seed = [train.seed, rank]

    def gradient(self, clock: int) -> tuple[Array, float, int]:
        """Of the sum over the entries: else more parameters would need a larger learning rate."""
        rows = batch(self.samples, clock, self.num_batches, self.seed)
        rng = np.random.default_rng([*self.seed, clock, 1])
        gradient = self.weights - self.target
        loss = float(np.mean(gradient**2) / 2)
        if self.noise:
            noise = rng.standard_normal(len(gradient), dtype=np.float32)
            gradient += noise * np.float32(self.noise / math.sqrt(max(len(rows), 1)))
        return gradient, loss, len(rows)

    def evaluate(self, split: str) -> dict[str, float]:  # noqa: ARG002 - there is one set only
        """The loss without noise."""
        return {"loss": float(np.mean((self.weights - self.target) ** 2) / 2)}
