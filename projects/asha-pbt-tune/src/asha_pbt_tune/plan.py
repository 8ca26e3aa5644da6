"""How the cluster is divided between trials."""

from collections.abc import Sequence
from dataclasses import dataclass

from asha_pbt_tune.config import Config

COORDINATOR_CPUS = 0.1
"""What a trial of several workers reserves beside them: it only waits for them."""


@dataclass(frozen=True)
class Plan:
    """How the cluster is divided."""

    cpus: float
    """Of a trial, or of each worker of a trial."""
    resources: dict[str, float]
    """What Tune reserves for a trial; its workers, if it has some, reserve their own."""
    max_concurrent: int
    """Trials that have room at the same time."""
    limit: int | None
    """How many Tune may start; None: what `resources` allow."""


def nodes() -> list[dict[str, float]]:
    """The resources of each node of the connected cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def make_plan(config: Config, nodes: Sequence[dict[str, float]]) -> Plan:
    """Divides the cluster between trials.

    As many trials as possible run side by side, each on one CPU: trials do not talk to each other,
    workers of one trial do. A trial of several workers is a Ray Train run with a placement group of
    its own; there are as many at a time as whole groups have room, because half a group would wait
    for ever for its other half.

    Args:
        config: Which trials.
        nodes: The resources of each node, with Ray's keys `CPU` and `GPU`.
    """
    trial = config.trial
    per_node = [node.get("CPU", 0.0) for node in nodes if node.get("CPU", 0.0) > 0] or [1.0]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if trial.num_workers > 1:
        cpus, groups = _groups(trial.num_workers, trial.cpus, per_node)
        if trial.use_gpu:
            groups = max(min(groups, gpus // trial.num_workers), 1)
        at_once = min(groups, config.tune.max_concurrent or groups)
        return Plan(cpus, {"cpu": COORDINATOR_CPUS}, at_once, at_once)
    cpus = trial.cpus or 1.0
    places = sum(int((cpu + 1e-6) // cpus) for cpu in per_node)
    if trial.use_gpu:
        places = min(places, gpus)
    limit = config.tune.max_concurrent
    resources = {"cpu": cpus, "gpu": 1.0 if trial.use_gpu else 0.0}
    return Plan(cpus, resources, min(places, limit or places, config.num_trials), limit)


def _groups(num_workers: int, cpus: float | None, per_node: list[float]) -> tuple[float, int]:
    """CPUs of a worker, and how many groups of them have room at the same time.

    A worker lies on one node, and beside it may lie coordinators: Ray does not spread them evenly,
    so there is room on each node for twice their mean number.
    """

    def left(cpu: float, groups: int) -> float:
        coordinators = min(groups, 2 * -(-groups // len(per_node)))
        return cpu - coordinators * COORDINATOR_CPUS

    if cpus is None:
        groups = max(sum(int(cpu) for cpu in per_node) // num_workers, 1)
        at_most = groups * num_workers
        shares = [left(cpu, groups) / min(int(cpu), at_most) for cpu in per_node if cpu >= 1]
        # Less than a CPU each where there are fewer CPUs than workers.
        fewest = sum(left(cpu, groups) for cpu in per_node) / num_workers
        cpus = int(min([*shares, fewest]) * 100 + 1e-6) / 100
    groups = int(sum(per_node) // (num_workers * cpus)) or 1
    while groups > 1:
        room = sum(int((left(cpu, groups) + 1e-6) // cpus) for cpu in per_node)
        if room >= groups * num_workers:
            break
        groups -= 1
    return cpus, groups
