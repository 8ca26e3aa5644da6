"""Fixtures of the tests of docs/debugging.md."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray_shared.testing import ray_tmpdir

from . import page

__all__ = ["ray_tmpdir"]

SCRIPTS = Path(__file__).parent / "errors"
TIMEOUT_S = 240


@dataclass
class Script:
    """One of the scripts in `errors/`, in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        """What it has written so far."""
        return page.COLOR.sub("", self.log.read_text(errors="replace"))

    def wait(self) -> int:
        """Waits for its end; the exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(TIMEOUT_S)
        raise AssertionError(f"still runs after {TIMEOUT_S} s:\n{self.output()}")


StartScript = Callable[..., AbstractContextManager[Script]]
RunScript = Callable[..., str]
Shown = Callable[[str], None]


@pytest.fixture(scope="session", autouse=True)
def _ray_settings(ray_tmpdir: Path) -> Iterator[None]:
    """The same as the projects' jobs have; and a token, so that no script makes one at home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_DEDUP_LOGS", "0")
        # Seconds; 2 is the default, and every report waits for it.
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@contextlib.contextmanager
def running(name: str, args: tuple[str, ...], env: dict[str, str], log: Path) -> Iterator[Script]:
    """Runs one of the scripts; ends it with the block."""
    command = [sys.executable, "-u", str(SCRIPTS / f"{name}.py"), *args]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Script(process, log)
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
            for left in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()


@pytest.fixture
def start(tmp_path: Path) -> StartScript:
    """Starts `python docs/tests/errors/NAME.py ARGS`; ends it with the block."""

    def begin(
        name: str, *args: str, env: dict[str, str] | None = None
    ) -> AbstractContextManager[Script]:
        log = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}.log"
        return running(name, args, env or {}, log)

    return begin


@pytest.fixture
def run(start: StartScript) -> RunScript:
    """Runs a script to its end; what it wrote."""

    def begin(name: str, *args: str, env: dict[str, str] | None = None, code: int = 0) -> str:
        with start(name, *args, env=env) as script:
            assert script.wait() == code, script.output()
            return script.output()

    return begin


@pytest.fixture
def shown(request: pytest.FixtureRequest) -> Iterator[Shown]:
    """Takes what a test has seen; in the end, all messages of its section must be in that."""
    missing = page.section_of(request.node.originalname).messages
    assert missing
    seen = []

    def look(text: str) -> None:
        seen.append(text)
        missing[:] = [m for m in missing if not page.is_shown_by(m, text)]

    yield look
    assert not missing, "\n".join(["not seen:", *missing, "but:", *seen])
