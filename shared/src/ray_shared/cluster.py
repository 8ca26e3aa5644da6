"""Start, join or simulate a Ray cluster, and leave no process behind.

`connect` is the only place where a job meets `ray.init`. Token authentication is on in every mode
(`ray_shared` sets `RAY_AUTH_MODE` before Ray is imported).

Source: https://docs.ray.io/en/releases-2.60.0/ray-security/token-auth.html
"""

import importlib
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_shared import signals
from ray_shared.errors import UserError
from ray_shared.groups import ClusterConfig
from ray_shared.report import Report

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

PROBE_TIMEOUT_S = 5.0
WORKER_SETUP = "ray_shared.cluster.set_up_worker"
WORKER_SETUP_WITHOUT_DASHBOARD = "ray_shared.cluster.set_up_worker_without_dashboard"


@dataclass(frozen=True)
class Demand:
    """What a job needs to run at all: `num_workers` equal bundles, each on one node."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0
    extra_cpus: float = 0
    """CPUs beside the workers, anywhere in the cluster."""
    extra_for: str = "data tasks"
    """What those are for."""
    key: str = "scaling.num_workers"
    """The configuration key of `num_workers`."""
    ray_train: bool = False
    """Whether Ray Train runs in the job: its helpers must be told which cluster is theirs."""

    def check(self, nodes: Sequence[dict[str, float]], hint: str = "") -> None:
        """Refuses a demand that these nodes can never meet.

        Args:
            nodes: The resources of each node, with Ray's keys `CPU` and `GPU`.
            hint: What to do about workers without a place.

        Raises:
            UserError: If a worker or the extra CPUs find no place.
        """
        cpus = sum(node.get("CPU", 0) for node in nodes)
        gpus = sum(node.get("GPU", 0) for node in nodes)
        if self.gpus_per_worker and gpus == 0:
            raise UserError(f"{self.key.split('.')[0]}.use_gpu=true: the cluster has no GPU")
        places = sum(self._places(node) for node in nodes)
        if places < self.num_workers:
            needs = f"{self.cpus_per_worker:g} CPU" + (" and 1 GPU" if self.gpus_per_worker else "")
            raise UserError(
                f"{self.key}={self.num_workers}: each needs {needs}, and the cluster "
                f"({len(nodes)} node(s), {cpus:g} CPU, {gpus:g} GPU) has room for {places}{hint}"
            )
        if cpus < self.num_workers * self.cpus_per_worker + self.extra_cpus:
            raise UserError(
                f"{self.num_workers} worker(s) of {self.cpus_per_worker:g} CPU and "
                f"{self.extra_cpus:g} CPU for {self.extra_for} are more than the cluster's "
                f"{cpus:g} CPU: raise cluster.num_cpus or lower {self.key}"
            )

    def _places(self, node: dict[str, float]) -> int:
        # A little slack, because ten times 0.1 CPU is a little less than 1.
        places = (node.get("CPU", 0) + 1e-6) // self.cpus_per_worker
        if self.gpus_per_worker:
            places = min(places, node.get("GPU", 0) // self.gpus_per_worker)
        return int(places)


@contextmanager
def connect(
    config: ClusterConfig, demand: Demand, report: Report, package: str
) -> Iterator["Cluster | None"]:
    """Connects to the cluster of `config` for the length of a `with` block.

    Every worker process of a job with Ray Train runs a set-up function. Other jobs have none: with
    it, Ray does not use the processes that it has started beforehand, which costs some seconds.

    Args:
        config: Which cluster.
        demand: What the job needs; refused at once if it can never be met.
        report: Gets `startup_s`, `shutdown_s` and the cluster's resources.
        package: The project's import package, shipped to an existing cluster.

    Yields:
        The handle of a simulated cluster (to add and remove nodes), else None.

    Raises:
        UserError: If nothing answers at the address, the token is wrong, or the demand cannot be
            met. Where that is known beforehand, Ray is not started.
    """
    check_planned(config, demand)
    # Under `uv run`, Ray would start its workers through uv, in another environment.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # The behaviour that Ray announces for later, without its warning: no GPU asked for leaves
    # CUDA_VISIBLE_DEVICES alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray runs workers at niceness 15. Where there are as many workers as cores, its own processes
    # then interrupt them, and with them, at the next all-reduce, all the others.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ensure_token(config if config.mode == "existing" else None)

    import ray

    cluster: Cluster | None = None
    try:
        with report.timed("startup_s"):
            if config.mode == "existing":
                with signals.sigterm_stays_ours():
                    _join(config, package, demand.ray_train)
            else:
                with signals.wait_until_started():
                    if config.mode == "simulated":
                        cluster = _simulate(config, demand.ray_train)
                    else:
                        _start_local(config, demand.ray_train)
        report.resources = {k: v for k, v in ray.cluster_resources().items() if ":" not in k}
        if not config.autoscaling:
            demand.check([node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield cluster
    finally:
        with signals.wait_until_stopped(), report.timed("shutdown_s"):
            ray.shutdown()
            if cluster is not None:
                cluster.shutdown()


def check_planned(config: ClusterConfig, demand: Demand) -> None:
    """Refuses what a cluster that is yet to be started will have no room for.

    An existing cluster is asked when it is joined; whether there are GPUs is known to Ray alone.

    Raises:
        UserError: If a worker finds no place.
    """
    if config.mode == "existing" or demand.gpus_per_worker:
        return
    num_nodes = config.num_nodes if config.mode == "simulated" else 1
    hint = "; with a larger cluster.num_cpus they share CPUs"
    demand.check([{"CPU": config.num_cpus or available_cpus()}] * num_nodes, hint)


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_up_worker() -> None:
    """Runs in every worker process of the job.

    Ray's State API looks for a cluster among all processes of the machine, and gives up in Ray
    Train's helpers where it finds two, unless it is told which one is meant.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def set_up_worker_without_dashboard() -> None:
    """The same where no dashboard serves the State API.

    Its clients would take the dashboard of another Ray on this machine for theirs: this address
    answers nobody. Ray Train's placement group cleaner then warns every second; but a cluster that
    ends with the job needs no cleaning.
    """
    os.environ["RAY_API_SERVER_ADDRESS"] = "http://127.0.0.1:9"
    name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(name).setLevel(logging.ERROR)


def ensure_token(joined: ClusterConfig | None = None) -> None:
    """Makes a token for a fresh cluster, in this process's environment, unless there is one.

    Raises:
        UserError: If there is none for the cluster that is to be joined.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return  # The user switched it off.
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if given or (Path.home() / ".ray" / "auth_token").exists():
        return
    if joined is not None:
        raise UserError(
            f"cluster.address={joined.address}: no token to join with; set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH (or RAY_AUTH_MODE=disabled for a cluster that asks for none)"
        )
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start_local(config: ClusterConfig, ray_train: bool) -> None:
    import ray

    _use_loopback(True)
    # `address="local"`: without it Ray joins whatever cluster it finds on this machine.
    hook = WORKER_SETUP if config.dashboard else WORKER_SETUP_WITHOUT_DASHBOARD
    ray.init(
        address="local",
        num_cpus=config.num_cpus or available_cpus(),
        include_dashboard=config.dashboard,
        runtime_env={"worker_process_setup_hook": hook} if ray_train else None,
        logging_level=logging.WARNING,
    )


def _use_loopback(on: bool) -> None:
    """Keeps Ray's ports off the network, or not.

    Ray replaces `127.0.0.1`, wherever it is given, by the machine's address, and listens on all
    interfaces; not so where it takes clusters of many machines to be impossible, as on macOS.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = not on


def start_nodes(num_cpus: Sequence[int]) -> "Cluster":
    """Starts Ray nodes on this machine, without connecting to them.

    Args:
        num_cpus: The logical CPUs of each node; the first is the head.

    Returns:
        The cluster; its `shutdown` stops every process that was started.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for cpus in num_cpus:
            # The dashboard takes another port where Ray's usual one is in use.
            cluster.add_node(num_cpus=cpus, node_ip_address="127.0.0.1", dashboard_port=None)
    except BaseException:
        cluster.shutdown()
        raise
    return cluster


def _simulate(config: ClusterConfig, ray_train: bool) -> "Cluster":
    import ray

    _use_loopback(True)
    cluster = start_nodes([config.num_cpus or available_cpus()] * config.num_nodes)
    try:
        ray.init(
            address=cluster.address,
            runtime_env={"worker_process_setup_hook": WORKER_SETUP} if ray_train else None,
            logging_level=logging.WARNING,
        )
    except BaseException:
        cluster.shutdown()
        raise
    return cluster


def _join(config: ClusterConfig, package: str, ray_train: bool) -> None:
    import ray

    address = config.address or ""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"cluster.address={address}: must be host:port of a Ray cluster")
    try:
        # Ray itself would retry for a minute.
        socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cluster.address={address}: no cluster answers there ({reason})") from None
    # A cluster that listens on the loopback interface only is on this machine, and simulated.
    _use_loopback(host in ("127.0.0.1", "localhost") and not _open_to_network(int(port)))
    modules = [
        Path(str(importlib.import_module(m).__file__)).parent for m in (package, "ray_shared")
    ]
    runtime_env: dict[str, Any] = {"py_modules": [str(m) for m in modules]}
    if ray_train:
        runtime_env["worker_process_setup_hook"] = WORKER_SETUP
    if config.install:
        runtime_env["pip"] = _third_party(package)
    try:
        ray.init(address=address, runtime_env=runtime_env, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise UserError(
            f"cluster.address={address}: the cluster refused the connection: check its version "
            f"({ray.__version__} here), the token, and that this machine is one of its nodes"
        ) from error


def _open_to_network(port: int) -> bool:
    from ray._private.services import node_ip_address_from_perspective as outside

    try:
        socket.create_connection((outside(), port), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _third_party(package: str) -> list[str]:
    """What the project's distribution requires, but the packages of this repository."""
    required = metadata.requires(f"ray-ref-{package.replace('_', '-')}") or []
    return [r for r in required if "extra ==" not in r and not re.match("ray-ref-", r)]
