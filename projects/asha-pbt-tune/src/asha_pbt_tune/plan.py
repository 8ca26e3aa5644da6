"""How the cluster is divided between trials. Nothing here needs Ray."""

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


def make_plan(config: Config, cluster: dict[str, float]) -> Plan:
    """Divides the cluster between trials.

    As many trials as possible run side by side, each on one CPU: trials do not talk to each other,
    workers of one trial do. A trial of several workers is a Ray Train run with a placement group of
    its own; there are as many at a time as whole groups have room, because half a group would wait
    for ever for its other half.

    Args:
        config: Which trials.
        cluster: Ray's resources: `CPU`, `GPU`.
    """
    total, trial = cluster.get("CPU", 1), config.trial
    if trial.num_workers > 1:
        cpus = trial.cpus
        if cpus is None:
            groups = max(int(total // trial.num_workers), 1)
            share = (total / groups - COORDINATOR_CPUS) / trial.num_workers
            cpus = int(share * 100) / 100
        group = trial.num_workers * cpus + COORDINATOR_CPUS
        groups = int((total + 1e-6) // group)
        if trial.use_gpu:
            groups = min(groups, int(cluster.get("GPU", 0) // trial.num_workers))
        groups = max(groups, 1)
        at_once = min(groups, config.tune.max_concurrent or groups)
        return Plan(cpus, {"cpu": COORDINATOR_CPUS}, at_once, at_once)
    cpus = trial.cpus or 1.0
    places = int((total + 1e-6) // cpus)
    if trial.use_gpu:
        places = min(places, int(cluster.get("GPU", 0)))
    limit = config.tune.max_concurrent
    resources = {"cpu": cpus, "gpu": 1.0 if trial.use_gpu else 0.0}
    return Plan(cpus, resources, min(places, limit or places, config.num_trials), limit)
