"""A simulated cluster that the doctor looks at from the test's own process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_doctor.__main__ import NOTHING
from ray_doctor.check import Check
from ray_doctor.examination import examine
from ray_shared import cluster
from ray_shared.report import Report

from .conftest import by_name, configured, wrong


@dataclass
class SimulatedCluster:
    """The cluster, and what the doctor finds in it."""

    cluster: Any
    usual: dict[str, str] = field(default_factory=dict)
    """Problems while nothing has been broken: that the disk is nearly full, say."""

    @contextmanager
    def extra_node(self, env: dict[str, str] | None = None, **options: Any) -> Iterator[Any]:
        """Another node for the length of the block; `shown_as` is how the doctor names it.

        Args:
            env: Environment variables of its raylet, and so of its workers.
            options: Of `ray start`.
        """
        options = {"num_cpus": 1, "env_vars": env, **options}
        node = self.cluster.add_node(node_ip_address="127.0.0.1", **options)
        node.shown_as = f"127.0.0.1/{node.node_id[:6]}"
        try:
            yield node
        finally:
            self.cluster.remove_node(node)

    def examine(self, *overrides: str, collective: bool = False) -> dict[str, Check]:
        doctor = f"doctor.collective={str(collective).lower()}"
        return by_name(examine(configured("cluster=simulated", doctor, *overrides)))

    def problems(self, checks: dict[str, Check]) -> dict[str, str]:
        """What is not as usual. That nodes of earlier tests are gone is."""
        found = wrong(list(checks.values())).items()
        return {n: s for n, s in found if self.usual.get(n) != s and n != "lost nodes"}


@contextmanager
def simulate(output: Path, *overrides: str) -> Iterator[SimulatedCluster]:
    """A cluster for some tests, looked at once as it is."""
    config = configured("cluster=simulated", *overrides).cluster
    with cluster.connect(config, NOTHING, Report("doctor", output, {}), "ray_doctor") as handle:
        simulated = SimulatedCluster(handle)
        simulated.usual = wrong(list(simulated.examine().values()))
        assert "failed" not in simulated.usual.values()
        yield simulated
