"""What a run counts."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Sums over a run; also of what a recovery made undone."""

    staleness: Counter[int] = field(default_factory=Counter)
    """How often an applied gradient had which staleness."""
    delay: Counter[int] = field(default_factory=Counter)
    """How many updates others had made between a gradient's read and its update."""
    bytes_sent: int = 0
    """Of gradients, as the shards got them."""
    bytes_read: int = 0
    """Of weights, as the workers got them."""
    num_dropped: int = 0
    """Gradients that came too late for their update (sync with backup workers)."""
    recoveries: int = 0
    updates_redone: int = 0
    worker_restarts: int = 0
    grad_norm: float = 0.0
    """Of the summed gradient of the newest update that all shards have answered."""
    queued_s: list[list[float]] = field(default_factory=list)
    """For each shard, how long each update waited there; by the clocks of two machines, unless the
    shard is on the driver's."""

    def hear(self, said: list[dict[str, Any]]) -> None:
        """Adds up what the shards say about one update."""
        self.bytes_sent += sum(shard["bytes"] for shard in said)
        self.grad_norm = math.sqrt(sum(shard["squares"] for shard in said))
        self.queued_s = self.queued_s or [[] for _ in said]
        for queued, shard in zip(self.queued_s, said, strict=True):
            queued.append(shard["queued_s"])

    def metrics(self, seconds: float) -> dict[str, Any]:
        """As they stand in `result.json`."""
        return {
            "max_staleness_seen": max(self.staleness, default=0),
            "staleness": histogram(self.staleness),
            "delay": histogram(self.delay),
            "bytes_sent": self.bytes_sent,
            "bytes_read": self.bytes_read,
            "bytes_per_s": (self.bytes_sent + self.bytes_read) / seconds,
            "queued_ms": [1000 * sum(q) / len(q) for q in self.queued_s],
            "grad_norm": self.grad_norm,
            "num_dropped": self.num_dropped,
            "recoveries": self.recoveries,
            "updates_redone": self.updates_redone,
            "worker_restarts": self.worker_restarts,
        }


def histogram(counts: Mapping[int, int]) -> dict[str, int]:
    """Counts by value, in order, as JSON wants its keys."""
    return {str(value): counts[value] for value in sorted(counts)}
