"""For tests: jobs as real processes, clusters of many nodes, and things that kill parts of them.

Everything here stops only processes that it started itself. A `conftest.py` imports the fixtures it
needs: `from ray_shared.testing import ray_tmpdir`.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from ray_shared.cluster import ensure_token, start_nodes

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

    from ray_shared.tracking import Event

DEADLINE_S = 240.0


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Waits until `condition` is true and returns its value.

    Raises:
        TimeoutError: If it is not true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s still no {what}")
        time.sleep(0.05)
    return value


@dataclass
class Job:
    """A job of a project, in a process of its own."""

    process: subprocess.Popen[bytes]
    output_dir: Path
    log: Path
    """What it wrote to stdout and stderr."""
    family: dict[int, float] = field(default_factory=dict)
    """Process id to start time of every process that was seen below the job."""

    def events(self) -> "list[Event]":
        """What the run has reported so far (`metrics.jsonl`)."""
        from ray_shared.tracking import read_events  # Here: it needs Ray Train.

        return read_events(self.output_dir / "metrics.jsonl")

    def wait_for_event(
        self, match: "Callable[[Event], bool]", timeout_s: float = DEADLINE_S
    ) -> "Event":
        """Waits for the first event that matches; fails at once if the job ends without it."""

        def look() -> "Event | None":
            ended = self.process.poll() is not None
            found = next((e for e in self.events() if match(e)), None)
            if ended and found is None:
                raise AssertionError(f"the job ended before the event:\n{self.output()}")
            self.remember_family()
            return found

        try:
            event: Event = wait_for(look, "such event", timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the job's output:\n{self.output()}") from None
        return event

    def workers(self) -> list[dict[str, Any]]:
        """Rank, pid and node of the newest worker group."""
        starts = [e for e in self.events() if e["event"] == "start"]
        return list(starts[-1]["workers"])

    def kill_worker(self, rank: int) -> None:
        """SIGKILLs the process of one training worker."""
        os.kill(self.workers()[rank]["pid"], signal.SIGKILL)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Waits for the end and returns the exit code.

        Raises:
            TimeoutError: If it does not end in time, with what its threads are doing.
        """
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            py_spy = Path(sys.executable).with_name("py-spy")  # A dependency of Ray's.
            command = [str(py_spy), "dump", "--pid", str(self.process.pid)]
            stacks = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            message = f"after {timeout_s:g} s the job still runs:\n{stacks}\n{self.output()}"
            raise TimeoutError(message) from None

    def result(self) -> dict[str, Any]:
        """The job's `result.json`."""
        content: dict[str, Any] = json.loads((self.output_dir / "result.json").read_text())
        return content

    def output(self) -> str:
        """Its console output so far."""
        return self.log.read_text()

    def remember_family(self) -> None:
        """Notes which processes belong to the job, while they can still be told by their parent."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.family[child.pid] = child.create_time()

    def survivors(self) -> list[psutil.Process]:
        """Those of its processes that still run; to be asked after the job has ended."""
        alive = []
        for pid, created in self.family.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive

    def refusal(self) -> str:
        """Waits for a job that is the user's mistake; its sentence.

        Raises:
            AssertionError: If it does anything else than to say one sentence and leave nothing.
        """
        self.remember_family()
        assert self.wait(60) == 2, self.output()
        lines = self.output().strip().splitlines()
        assert len(lines) == 1, self.output()
        assert lines[0].startswith("error: ")
        assert not self.output_dir.exists()
        assert self.survivors() == []
        return lines[0].removeprefix("error: ")

    def wait_until_gone(self, timeout_s: float = 30) -> None:
        """Waits for the end of all its processes, once the job itself has ended.

        Raises:
            AssertionError: If some still run then; says which.
        """
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not self.survivors(), "end of the job's processes", timeout_s)
        assert not self.survivors(), [str(process) for process in self.survivors()]

    def survivors_but_agents(self) -> list[str]:
        """The names of its survivors, without Ray's two agents.

        After a driver was killed those stay for some time: first they try to report to the dead
        cluster.
        """
        names = []
        for process in self.survivors():
            with contextlib.suppress(psutil.NoSuchProcess):  # Or a zombie by now.
                names.append(" ".join(process.cmdline()).strip())
        return [n for n in names if n not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]


@contextlib.contextmanager
def start_job(
    package: str,
    overrides: Sequence[str],
    directory: Path,
    env: dict[str, str] | None = None,
) -> Iterator[Job]:
    """Runs `python -m package overrides...` in `directory`; ends it with the block.

    Args:
        package: Import package of the project.
        overrides: Hydra overrides.
        directory: Working directory. The job's run directory is made below it.
        env: Additional environment variables.
    """
    output_dir = directory / f"out-{secrets.token_hex(4)}"
    log = directory / f"{output_dir.name}.log"
    command = [sys.executable, "-m", package, f"hydra.run.dir={output_dir}", *overrides]
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As in whatever a shell starts with `&`; the job would inherit it and miss every Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    job = Job(process, output_dir, log)
    try:
        yield job
    finally:
        if process.poll() is None:
            job.remember_family()
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for leftover in job.survivors():
            with contextlib.suppress(psutil.NoSuchProcess):
                leftover.kill()


def steps_done_twice(events: "list[Event]") -> int:
    """How many optimizer steps a run did again; needs `tracking.every_steps=1`."""
    counts = Counter(e["step"] for e in events if e["event"] == "step")
    return sum(count - 1 for count in counts.values())


@pytest.fixture(scope="session")
def ray_tmpdir() -> Iterator[Path]:
    """A short directory for Ray's sessions and its processes' other files, removed at the end.

    Short, because the paths of Unix sockets below it may have 107 characters.
    """
    directory = Path(tempfile.mkdtemp(prefix="r-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(directory))
        patch.setenv("TMPDIR", str(directory))
        yield directory
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def many_nodes(num_cpus: Sequence[int]) -> Iterator["Cluster"]:
    """A running cluster of several nodes that jobs join with `cluster=existing`.

    Its token is one that this process has, or is put into its environment; jobs inherit it.

    Args:
        num_cpus: The logical CPUs of each node; the first is the head, where the job's driver runs.
    """
    ensure_token()
    cluster = start_nodes(num_cpus)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def drain_node(cluster: "Cluster", node_id: str, deadline_s: int) -> None:
    """Announces a preemption, as a cloud does before it takes a spot machine away.

    The same call as `ray drain-node`, which would not find a cluster on the loopback interface.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + deadline_s) * 1000)
    client = GcsClient(address=cluster.address)
    accepted, why = client.drain_node(node_id, reason, "taken away by a test", deadline_ms)
    assert accepted, why


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on.

    Not one that the system gives to whoever asks for any, as Ray's processes do while they start:
    such a port may be taken until it is used.
    """
    while True:
        port = 20000 + secrets.randbelow(10000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
