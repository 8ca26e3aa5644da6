"""What the tiny job does, by `action`."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray_shared import cluster
from ray_shared.report import Report
from tiny_job.config import Config

logger = logging.getLogger(__name__)


@contextmanager
def connected(config: Config, report: Report) -> Iterator[None]:
    """Inside a cluster, with one idle actor."""
    with cluster.connect(config.cluster, cluster.Demand(1, 1), report, "tiny_job"):
        actor = ray.remote(num_cpus=0)(Actor).remote()
        ray.get(actor.ping.remote())
        yield


class Actor:
    """Something that lives in the cluster."""

    def ping(self) -> None:
        """Answers."""


def wait(config: Config, report: Report) -> None:
    """Waits to be stopped."""
    logger.info("the job waits")
    time.sleep(60)


def wait_connected(config: Config, report: Report) -> None:
    """Waits to be stopped, inside a cluster."""
    with connected(config, report):
        wait(config, report)


def raise_connected(config: Config, report: Report) -> None:
    """Fails inside a cluster."""
    with connected(config, report):
        logger.info("the job breaks")
        raise RuntimeError("the job broke")


def log(config: Config, report: Report) -> None:
    """Writes from a task."""
    with connected(config, report):
        ray.get(ray.remote(num_cpus=1)(speak).remote())


def speak() -> None:
    """A log line and a printed one."""
    logging.getLogger("tiny_job").warning("logged by the task")
    print("printed by the task")  # noqa: T201
