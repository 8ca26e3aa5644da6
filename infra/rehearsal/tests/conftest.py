import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rehearsal.namespaces import check_possible

from .leftovers import Namespaces, traces


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where nobody could make them; an error where root on Linux cannot."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs Linux and root")
    check_possible()


class Command:
    """A running `python -m rehearsal`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, output: Path):
        self.process, self.log, self.output = process, log, output

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text()


@pytest.fixture
def rehearse(namespaces, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts the command; afterwards nothing of it may be there."""
    mark = uuid.uuid4().hex
    before = traces(mark)
    commands, seen = [], []

    @contextmanager
    def start(manifest: str, *arguments: str) -> Iterator[Command]:
        log, output = tmp_path / "log.txt", tmp_path / "out"
        command = [sys.executable, "-m", "rehearsal", manifest, f"--output={output}"]
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            # As in whatever a shell starts with `&`; the command would miss every Ctrl-C.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, f"--env=MARK={mark}", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                env=os.environ | {"COLUMNS": "200"},
            )
        commands.append(process)
        seen.append(Namespaces(process.pid))
        try:
            yield Command(process, log, output)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(60)

    yield start
    for process in commands:
        assert process.poll() is not None
    for each in seen:
        assert each.left() == []
    after = traces(mark)
    assert after == before
