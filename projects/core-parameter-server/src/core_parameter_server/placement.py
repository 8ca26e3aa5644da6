"""Where the actors live: one placement group for all of them, and what happens without room.

A placement group reserves resources for several actors at once, laid out over the nodes by a
strategy. What finds no room is *pending*, in silence and for ever: so somebody has to look.

Source: https://docs.ray.io/en/releases-2.60.0/ray-core/scheduling/placement-group.html
"""

import logging
import time
from typing import Any

import ray
from ray import ObjectRef
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_shared.errors import JobError, UserError

from core_parameter_server.config import Config
from core_parameter_server.consistency import slices
from core_parameter_server.parameter_server import Shard, Worker

logger = logging.getLogger(__name__)
ROOM_TIMEOUT_S = 10
LOOK_EVERY_S = 2.0


def reserve(config: Config) -> PlacementGroup:
    """A bundle for each actor.

    Raises:
        UserError: If there is no room; a cluster that can grow is waited for.
    """
    strategy, cpus = config.server.placement, config.bundles
    if not config.cluster.autoscaling:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        config.check_placement([node.get("CPU", 0) for node in nodes])
    group = placement_group([{"CPU": each} for each in cpus], strategy=strategy)
    while not group.wait(ROOM_TIMEOUT_S):
        free = ray.available_resources().get("CPU", 0)
        found = (
            f"no room for {len(cpus)} actors of {min(cpus):g} to {max(cpus):g} CPU within "
            f"{ROOM_TIMEOUT_S} s; {free:g} CPU of the cluster are free"
        )
        if not config.cluster.autoscaling:
            remove_placement_group(group)
            raise UserError(f"server.placement={strategy}: {found}")
        logger.warning("waiting for new nodes: %s", found)
    return group


class Actors:
    """All actors of a job, each in a bundle of one placement group.

    The group reserves everything at once: a job gets all its actors or none. When a node goes, Ray
    looks for a new place for its bundles, and starts their actors again there.
    """

    def __init__(self, config: Config):
        """Starts them; what it raises see `reserve`."""
        self.room_timeout_s = config.failure.room_timeout_s
        self.group = reserve(config)
        cpus, num_shards = config.bundles, config.server.num_shards

        def actor(kind: type, bundle: int) -> Any:
            return ray.remote(
                num_cpus=cpus[bundle],
                max_restarts=config.failure.max_failures,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, bundle),
            )(kind)

        bounds = slices(config.problem.num_parameters, num_shards)
        self.shards = [
            actor(Shard, index).remote(config.train, index, start, stop)
            for index, (start, stop) in enumerate(bounds)
        ]
        self.workers = [
            actor(Worker, num_shards + rank).remote(config, rank)
            for rank in range(config.scaling.num_workers)
        ]

    def wait(self, refs: list[ObjectRef], num_returns: int) -> list[ObjectRef]:
        """`ray.wait`, but not for ever if a node is gone and its actors find no room on another.

        Raises:
            JobError: After `failure.room_timeout_s`.
        """
        homeless_since: float | None = None
        while True:
            ready, _ = ray.wait(refs, num_returns=num_returns, timeout=LOOK_EVERY_S)
            if len(ready) == num_returns:
                return list(ready)
            if placement_group_table(self.group)["state"] == "CREATED":
                homeless_since = None  # Whatever takes so long, it has a place.
            elif homeless_since is None:
                homeless_since = time.monotonic()
                logger.warning("a node is lost; its actors wait for room on another one")
            elif time.monotonic() - homeless_since > self.room_timeout_s:
                raise JobError(
                    "a node is lost, and its actors found no room on another one within "
                    f"failure.room_timeout_s={self.room_timeout_s:g}"
                )

    def get(self, refs: list[ObjectRef]) -> list[Any]:
        """`ray.get`, likewise."""
        return list(ray.get(self.wait(refs, len(refs))))
