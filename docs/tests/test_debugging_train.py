"""Ray Train's errors on docs/debugging.md: made to happen, compared with the page, mended.

Run by `nox -s faults -- docs`.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray_shared.errors import UserError
from ray_shared.groups import RunConfig
from ray_shared.runs import check_run
from ray_shared.storage import open_storage
from ray_shared.testing import wait_for

from .conftest import RunScript, Shown, StartScript, running

PY_SPY = Path(sys.executable).with_name("py-spy")  # A dependency of Ray's.

pytestmark = pytest.mark.fault


def test_training_waits_for_gpus(run: RunScript, shown: Shown, tmp_path: Path):
    text = run("gpu_train", str(tmp_path))
    shown(text)
    # Tried twice, because the script allows one failure.
    assert text.count("[FailurePolicy] RETRY") == 1
    assert "trained, GPU: False\n" in text


def test_exception_in_the_loop(run: RunScript, shown: Shown, tmp_path: Path):
    text = run("loop_exception", str(tmp_path))
    shown(text)
    # Both, or the first that was seen to fail: the other was stopped then.
    assert re.search(r"^ranks: \[(0|1|0, 1)\]$", text, re.MULTILINE)
    assert "loss: 0.7\n" in text


def test_checkpoint_path_that_is_wrong(run: RunScript, shown: Shown):
    shown(run("checkpoint_gone", "path", code=1))


@dataclass
class Runs:
    """Where two runs were made, and what was written meanwhile."""

    directory: Path
    text: str


@pytest.fixture(scope="module")
def runs(ray_tmpdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run that lost its checkpoint and got it back, and another one."""
    directory = tmp_path_factory.mktemp("runs")
    with running("checkpoint_gone", ("run", str(directory)), {}, directory / "log") as script:
        assert script.wait() == 0, script.output()
        return Runs(directory, script.output())


def test_run_that_lost_its_checkpoint(runs: Runs, shown: Shown):
    shown(runs.text)
    # The checkpoint was put back.
    assert "same name: {'epoch': 2, 'started_after': 1}\n" in runs.text


def test_run_that_silently_starts_anew(runs: Runs, shown: Shown):
    shown(runs.text)
    storage = open_storage(str(runs.directory))
    with pytest.raises(UserError) as refused:
        check_run(RunConfig(name="mine2", resume="must"), storage, {})
    shown(f"error: {refused.value}")
    check_run(RunConfig(name="mine", resume="must"), storage, {})  # Not refused.


def test_hanging_collective(start: StartScript, run: RunScript, shown: Shown, tmp_path: Path):
    with start("hanging_collective", "broken", str(tmp_path)) as script:
        pid = wait_for(lambda: pid_of_rank_0(tmp_path), "process of rank 0", 90)

        def stack() -> str:
            assert script.process.poll() is None, script.output()
            command = [PY_SPY, "dump", "--pid", pid]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            return done.stdout if "all_reduce" in done.stdout else ""

        shown(wait_for(stack, "all_reduce in the stack", 60))
        assert script.wait() == 1, script.output()
        shown(script.output())
    assert "every rank took part\n" in run("hanging_collective", "mended", str(tmp_path))


def pid_of_rank_0(directory: Path) -> str:
    """Its process, once it is known."""
    file = directory / "pid0"
    return file.read_text() if file.exists() else ""


def test_report_that_a_rank_leaves_out(run: RunScript, shown: Shown, tmp_path: Path):
    text = run("hanging_collective", "report", str(tmp_path))
    shown(text)
    assert "every rank took part\n" in text
