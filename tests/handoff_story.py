"""A hand-off as it goes on: its directory, its table, and the processes that it starts and ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

# Less than the 60 s that nox waits after Ctrl-C.
STOP_S = 50.0
STOPPED = 143
"""The exit code of a project's job that has got SIGTERM and has shut its Ray down."""
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


class StepError(Exception):
    """A step ended badly; the text says which, and shows the end of its log."""


class Story:
    """The directory of a hand-off, and what came of each step so far."""

    def __init__(self, directory: Path, programs: dict[str, Path]):
        self.directory, self.programs = directory, programs
        self.storage = directory / "storage"
        self.rows: list[tuple[str, str, str, str]] = []
        self.jobs: dict[str, tuple[str, list[str]]] = {}
        self.hyperparameters: dict[str, float] = {}
        self.live = Live(self.table(), console=Console(), auto_refresh=False)

    def table(self) -> Table:
        """What has been done."""
        table = Table("step", "project", "handed on", "s", title="handoff", title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def step(self, name: str, project: str, work: Callable[[], str]) -> None:
        """Does one step and shows it; `work` says what it hands on."""
        self.rows.append((name, project, "...", ""))
        self.live.update(self.table(), refresh=True)
        started = time.monotonic()
        told = work()
        self.rows[-1] = (name, project, told, f"{time.monotonic() - started:.0f}")
        self.live.update(self.table(), refresh=True)

    def job(self, project: str, name: str, overrides: list[str]) -> dict[str, Any]:
        """Runs a job to its end; its metrics. The step `render` makes a manifest of it.

        Raises:
            StepError: If it fails.
        """
        self.jobs[name] = (project, overrides)
        return self.run(project, name, [*overrides, f"storage.path={self.storage}"])

    def run(self, project: str, name: str, overrides: list[str]) -> dict[str, Any]:
        """Runs a project's command to its end; its metrics.

        Raises:
            StepError: If it fails.
        """
        with self.running(project, name, overrides) as process:
            code = process.wait()
        if code != 0:
            raise self.failure(name, f"ended with {code}")
        result = json.loads((self.directory / "results" / name / "result.json").read_text())
        metrics: dict[str, Any] = result["metrics"]
        return metrics

    @contextlib.contextmanager
    def running(
        self, project: str, name: str, overrides: list[str]
    ) -> "Iterator[subprocess.Popen[bytes]]":
        """A project's command, with a place of its own for results; it ends with the block.

        Raises:
            StepError: If it does not end in time once it is told to.
        """
        command = [*self.python(project), *overrides]
        with self.log(name).open("wb") as file:
            process = subprocess.Popen(
                [*command, f"hydra.run.dir={self.directory / 'results' / name}"],
                cwd=self.directory,
                env=self.environment(project),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # Ctrl-C comes to this process alone, which then tells the other one, once.
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None and not end(process):
                raise self.failure(name, f"did not stop in {STOP_S:g} s")

    def python(self, project: str) -> list[str]:
        """How a project's command begins."""
        return [str(self.programs[project] / "python"), "-m", project.replace("-", "_")]

    def environment(self, project: str) -> dict[str, str]:
        """The variables of a command: the programs of its own environment come first."""
        return os.environ | {"PATH": f"{self.programs[project]}{os.pathsep}{os.environ['PATH']}"}

    def log(self, name: str) -> Path:
        """Where a step's output is kept."""
        return self.directory / "logs" / f"{name}.log"

    def failure(self, name: str, what: str) -> StepError:
        """What to say about a step that ended badly."""
        log = self.log(name)
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        return StepError(f"{name} {what}; the end of {log}:\n{last}")


def end(process: "subprocess.Popen[bytes]") -> bool:
    """Ends a command, and Ray with it; False if it had to be killed."""
    # Without patience Ray's processes would be left behind.
    before = {each: signal.signal(each, signal.SIG_IGN) for each in INTERRUPTS}
    try:
        process.terminate()
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        this = psutil.Process(process.pid)
        for member in [this, *this.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        return False
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return True


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """Lets Ctrl-C or SIGTERM unwind the block; what comes after it must not hinder the cleaning."""

    def leave(signum: int, frame: object) -> NoReturn:
        for each in INTERRUPTS:
            signal.signal(each, signal.SIG_IGN)
        if signum == signal.SIGTERM:
            sys.exit(STOPPED)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, leave) for each in INTERRUPTS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
