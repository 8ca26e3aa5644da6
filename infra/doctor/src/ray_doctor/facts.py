"""What the doctor has found out, before anybody judges it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Node:
    """A node of the cluster, as the head lists it, and what it reports."""

    id: str
    name: str
    """Its address, with the start of its id where several nodes share one."""
    address: str
    alive: bool
    head: bool = False
    ports: dict[str, int] = field(default_factory=dict)
    """What listens there: port."""
    resources: dict[str, float] = field(default_factory=dict)
    """As Ray was told: `CPU`, `GPU`, `memory`, ..."""
    death: str = ""
    """Why it is gone; empty if it left as it should."""
    info: dict[str, Any] | None = None
    """The answer of `node.look`."""
    error: str = ""
    """Why there is no answer."""
    unreached: dict[str, str] = field(default_factory=dict)
    """Ports of others that it did not reach, and why."""
    clock_offset_s: float | None = None
    """Its clock minus the driver's, in seconds."""
    clock_error_s: float = 0.0
    """By how much that may be wrong: half the way there and back."""
    task_s: float | None = None
    """Seconds of a task that does nothing, the fastest of some."""
    write_error: str | None = None
    """Why it could not write to the storage."""
    read_errors: dict[str, str] = field(default_factory=dict)
    """Names of the nodes whose files it could not read, and why."""


@dataclass
class Collective:
    """An all-reduce with one process on each node."""

    skipped: str = ""
    """Why it was not tried."""
    errors: dict[str, str] = field(default_factory=dict)
    """By the node's name."""
    wrong: dict[str, float] = field(default_factory=dict)
    """Sums that are not what they should be, by the node's name."""
    seconds: float = 0.0
    """Of the all-reduce itself, on the slowest node."""


@dataclass
class Serve:
    """Ray Serve, if it runs."""

    skipped: str = ""
    """Why it was not looked at."""
    applications: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name to status and message."""
    proxies: dict[str, int | str] = field(default_factory=dict)
    """URL and node to the HTTP status of `/-/healthz`, or to why there was none."""


@dataclass
class Facts:
    """Everything about the cluster."""

    nodes: list[Node]
    driver: dict[str, Any] = field(default_factory=dict)
    """`python` and `packages` of the driver."""
    storage: str = ""
    """The storage's URI."""
    num_targets: int = 0
    """How many connections were tried."""
    without_token: dict[str, str] = field(default_factory=dict)
    """What a client without a token is told: `refused`, `answered`, or why nobody knows."""
    transfers: dict[str, float | str] = field(default_factory=dict)
    """Two nodes' names to the seconds for an object of `object_bytes`, or why it did not come."""
    object_bytes: int = 0
    gloo: Collective = field(default_factory=Collective)
    nccl: Collective = field(default_factory=Collective)
    serve: Serve = field(default_factory=Serve)

    @property
    def alive(self) -> list[Node]:
        """Nodes that the head takes for alive."""
        return [node for node in self.nodes if node.alive]

    @property
    def responding(self) -> list[Node]:
        """Nodes that have answered."""
        return [node for node in self.alive if node.info is not None]


def names(nodes: Sequence[Node]) -> str:
    """The names of nodes, in a line."""
    return ", ".join(node.name for node in nodes)
