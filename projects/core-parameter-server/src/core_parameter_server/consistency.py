"""Which slice is whose, and who may start the next gradient.

Each worker has a clock: the number of its gradients that the server has applied. *Staleness* is by
how many a worker is ahead of the slowest one when it starts: so many gradients of the slowest are
missing from the weights it reads. Asynchronous training does not bound it; stale-synchronous
parallel training does: who is too far ahead waits.

Source: Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
Server", NIPS 2013.
"""

import itertools
from collections.abc import Iterable


def slices(size: int, num_shards: int) -> list[tuple[int, int]]:
    """Start and stop of each shard's slice of the vector; they differ by at most one entry."""
    cuts = [size * shard // num_shards for shard in range(num_shards + 1)]
    return list(itertools.pairwise(cuts))


class Clocks:
    """The workers' clocks, and the rule that bounds how far they may part."""

    def __init__(self, num_workers: int, end: int, max_staleness: int | None):
        """All clocks at 0.

        Args:
            num_workers: How many workers.
            end: The clock at which a worker is done.
            max_staleness: How far a worker may be ahead when it starts; None: no bound.
        """
        self.clocks = [0] * num_workers
        self.end = end
        self.max_staleness = max_staleness

    def staleness(self, worker: int) -> int:
        """By how many gradients the worker is ahead of the slowest."""
        return self.clocks[worker] - min(self.clocks)

    def may_start(self, workers: Iterable[int]) -> list[int]:
        """Those of the idle workers that may compute their next gradient now."""
        return [w for w in workers if self.clocks[w] < self.end and self._within_bound(w)]

    def tick(self, worker: int) -> None:
        """The server has applied the worker's gradient."""
        self.clocks[worker] += 1

    @property
    def done(self) -> bool:
        """Whether every worker has reached the end."""
        return min(self.clocks) >= self.end

    def _within_bound(self, worker: int) -> bool:
        return self.max_staleness is None or self.staleness(worker) <= self.max_staleness
