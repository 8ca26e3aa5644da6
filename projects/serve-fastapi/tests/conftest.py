"""Fixtures of all tests of this project."""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray_shared.testing import Job, ray_tmpdir, start_job, wait_for
from serve_fastapi import builtin

__all__ = ["ray_tmpdir"]

StartJob = Callable[..., AbstractContextManager[Job]]
StartServer = Callable[..., AbstractContextManager["Server"]]


@dataclass
class Server:
    """A job with `serve.block=true` that answers."""

    job: Job
    address: str

    def pids(self, title: str) -> list[int]:
        """Processes of the job whose title has this in it, oldest first."""
        found = []
        for process in psutil.Process(self.job.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    found.append((process.create_time(), process.pid))
        return [pid for _, pid in sorted(found)]

    def kill(self, title: str) -> int:
        """SIGKILLs the oldest process of this title; its pid."""
        pid = self.pids(title)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def listening(self) -> list[tuple[str, str, int]]:
        """Process, address and port of everything at which the job listens."""
        self.job.remember_family()
        found = []
        for pid in self.job.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [
                    (psutil.Process(pid).name(), c.laddr.ip.removeprefix("::ffff:"), c.laddr.port)
                    for c in psutil.Process(pid).net_connections("inet")
                    if c.status == psutil.CONN_LISTEN
                ]
        return found

    def open_sockets(self) -> list[str]:
        """Addresses beyond the loopback interface at which the job listens."""
        found = self.listening()
        return [f"{name} {ip}:{port}" for name, ip, port in found if not ip.startswith("127.")]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small models: name to directory."""
    return builtin.ensure(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def models(bundles: dict[str, str]) -> list[str]:
    """The overrides that name them."""
    return [f"+models.bundles.{name}={path}" for name, path in bundles.items()]


@pytest.fixture
def start(tmp_path: Path, ray_tmpdir: Path, models: list[str]) -> StartJob:
    """Starts `python -m serve_fastapi` in the test's own directory, on a port of its own."""

    def begin(*overrides: str, env: dict[str, str] | None = None) -> AbstractContextManager[Job]:
        return start_job("serve_fastapi", [*models, "serve.port=0", *overrides], tmp_path, env)

    return begin


@contextlib.contextmanager
def serving(job: AbstractContextManager[Job]) -> Iterator[Server]:
    """A job with `serve.block=true`, once it answers."""
    with job as running:

        def address() -> str | None:
            assert running.process.poll() is None, running.output()
            found = re.search(r"^serving .* at (\S+)$", running.output(), re.MULTILINE)
            return found and found[1]

        yield Server(running, wait_for(address, "address", 90))


@pytest.fixture
def serve(start: StartJob) -> StartServer:
    """Starts the application, for one test."""

    def begin(*overrides: str, env: dict[str, str] | None = None) -> AbstractContextManager[Server]:
        return serving(start("serve.block=true", *overrides, env=env))

    return begin


@pytest.fixture(scope="session")
def served(
    tmp_path_factory: pytest.TempPathFactory, ray_tmpdir: Path, models: list[str]
) -> Iterator[Server]:
    """The application, for all tests that leave it as it is."""
    overrides = [*models, "serve.port=0", "serve.block=true", "log.requests=all"]
    env = {"RAY_metrics_report_interval_ms": "1000"}  # As often as Ray can.
    directory = tmp_path_factory.mktemp("served")
    with serving(start_job("serve_fastapi", overrides, directory, env)) as one:
        yield one
