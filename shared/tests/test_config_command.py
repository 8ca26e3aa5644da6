"""The command: exit codes, what is printed, and what lies in the run directory afterwards."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray_shared import conf
from ray_shared.testing import wait_for

from .conftest import StartJob

CONF = Path(conf.__file__).parent


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m tiny_job` to its end."""
    command = [sys.executable, "-m", "tiny_job", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)


def result_of(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return content


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train.epohcs=3"], "unknown key 'train.epohcs': did you mean 'train.epochs'?"),
        (["train.epochs=0"], "train.epochs=0: must be >= 1"),
        (["action=no_file"], "data.path=none: must be a file"),
        (["--epochs=3"], "--epochs=3: no such option; a value is set without dashes: key=value"),
        (["--config-name", "none"], "Cannot find primary config 'none'."),
        # Bad only in the last of the combinations, and found before the first has run.
        (["-m", "train.epochs=2,1,0"], "train.epochs=0: must be >= 1"),
        (["-m", "train.epochs=2,1", "action=ok,no_file"], "data.path=none: must be a file"),
    ],
)
def test_users_mistake_exits_2_with_one_sentence_and_leaves_nothing(
    arguments: list[str], sentence: str, tmp_path: Path
):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_help_shows_the_groups_and_values_of_the_job_and_of_the_shared_package(tmp_path: Path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "model: large, small" in done.stdout
    assert "\ntrain:\n  epochs: 3\n" in done.stdout
    for group in ("cluster", "tracking"):
        choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        assert f"{group}: {', '.join(choices)}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_done_job_exits_0_and_prints_the_path_of_its_result_last(tmp_path: Path):
    done = run(tmp_path, "train.epochs=5", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"result: {tmp_path / 'out' / 'result.json'}"
    result = result_of(tmp_path / "out")
    assert result["status"] == "ok"
    assert result["error"] is None
    assert result["metrics"] == {"epochs": 5}
    assert result["config"]["train"] == {
        "epochs": 5,
        "lr": 0.1,
        "shuffle": True,
        "clip_norm": None,
        "eval_epochs": 5,
    }


def test_broken_job_exits_1_and_keeps_the_traceback_in_a_file_that_it_names(tmp_path: Path):
    done = run(tmp_path, "action=raise", "hydra.run.dir=out")
    assert done.returncode == 1
    log = tmp_path / "out" / "error.log"
    assert f"failed: RuntimeError: first line (traceback: {log})" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in log.read_text()
    assert "second line" in log.read_text()
    result = result_of(tmp_path / "out")
    assert result["status"] == "failed"
    assert result["error"].startswith("RuntimeError: first line")


def test_job_error_exits_1_with_its_sentence_and_no_traceback(tmp_path: Path):
    done = run(tmp_path, "action=job_error", "hydra.run.dir=out")
    assert done.returncode == 1
    assert "failed: the loss is not finite after step 7" in done.stdout
    assert not (tmp_path / "out" / "error.log").exists()
    result = result_of(tmp_path / "out")
    assert (result["status"], result["error"]) == ("failed", "the loss is not finite after step 7")


def test_user_error_inside_the_job_exits_2_with_its_sentence(tmp_path: Path):
    done = run(tmp_path, "action=user_error", "hydra.run.dir=out")
    assert done.returncode == 2
    sentence = "cluster.address=x: no cluster answers there"
    assert done.stdout == f"error: {sentence}\n"
    assert "Traceback" not in done.stdout + done.stderr
    result = result_of(tmp_path / "out")
    assert (result["status"], result["error"]) == ("failed", sentence)


def test_exit_0_inside_the_job_is_an_interruption_and_not_success(tmp_path: Path):
    done = run(tmp_path, "action=exit", "hydra.run.dir=out")
    assert done.returncode == 130
    assert result_of(tmp_path / "out")["status"] == "failed"


def test_multirun_runs_all_combinations(tmp_path: Path):
    done = run(tmp_path, "-m", "train.epochs=1,2", "model=small,large", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    results = [result_of(path.parent) for path in (tmp_path / "sweep").glob("*/result.json")]
    assert {r["status"] for r in results} == {"ok"}
    ran = sorted((r["config"]["train"]["epochs"], r["config"]["model"]["width"]) for r in results)
    assert ran == [(1, 8), (1, 64), (2, 8), (2, 64)]


def test_sweep_ends_with_a_table_of_what_was_swept_and_what_each_job_showed(tmp_path: Path):
    swept = ["action=ok,raise", "train.epochs=2,4"]
    done = run(tmp_path, "-m", *swept, "train.lr=0.5", "hydra.sweep.dir=sweep")
    *table, last = done.stdout[done.stdout.index("tiny-job: 4 jobs") :].splitlines()
    assert last == f"sweep: {tmp_path / 'sweep'}"
    rows = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in table if "│" in line]
    assert [row for row in rows if row[0]] == [
        ["0", "action=ok", "ok", "2"],
        ["1", "action=ok", "ok", "4"],
        ["2", "action=raise", "failed", ""],
        ["3", "action=raise", "failed", ""],
    ]
    values = [row[1] for row in rows if not row[0]]
    assert values == ["train.epochs=2", "train.epochs=4"] * 2


def test_jobs_of_a_sweep_may_not_share_a_run(tmp_path: Path):
    done = run(tmp_path, "-m", "train.epochs=1,2", "run.name=mine")
    assert done.returncode == 2
    assert done.stderr.startswith("error: run.name=mine: several jobs of the sweep")
    assert list(tmp_path.iterdir()) == []
    named = "run.name=mine-${train.epochs}"
    done = run(tmp_path, "-m", "train.epochs=1,2", named, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr


def test_multirun_exits_1_and_goes_on_when_one_job_fails(tmp_path: Path):
    done = run(tmp_path, "-m", "action=raise,ok", "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    statuses = [result_of(tmp_path / "sweep" / str(i))["status"] for i in range(2)]
    assert statuses == ["failed", "ok"]


def test_cfg_job_shows_the_configuration_and_runs_nothing(tmp_path: Path):
    done = run(tmp_path, "--cfg", "job", "--resolve", "train.epochs=6")
    assert done.returncode == 0
    assert "eval_epochs: 6" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_refuses_a_wrong_key_too(tmp_path: Path):
    done = run(tmp_path, "--cfg", "job", "train.epohcs=6")
    assert done.returncode == 2
    assert "did you mean 'train.epochs'?" in done.stderr


@pytest.mark.parametrize(
    ("signum", "code", "reason"),
    [
        (signal.SIGTERM, 143, "interrupted by SIGTERM"),
        (signal.SIGINT, 130, "interrupted by Ctrl-C"),
    ],
)
def test_signal_ends_the_job_with_its_exit_code_and_a_failed_result(
    start: StartJob, signum: signal.Signals, code: int, reason: str
):
    with start("action=wait") as job:
        wait_for(lambda: "the job waits" in job.output(), "start of the job", 30)
        job.process.send_signal(signum)
        assert job.wait(10) == code
    assert (job.result()["status"], job.result()["error"]) == ("failed", reason)
    assert job.output().splitlines()[-1] == f"result: {job.output_dir / 'result.json'}"


def test_signal_ends_the_whole_sweep(tmp_path: Path):
    command = [sys.executable, "-m", "tiny_job", "-m", "action=wait,ok", "hydra.sweep.dir=sweep"]
    log = tmp_path / "sweep" / "0" / "tiny_job.log"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: _has_text(log, "the job waits"), "start of the job", 30)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 143
        finally:
            process.kill()
    assert result_of(tmp_path / "sweep" / "0")["status"] == "failed"
    assert not (tmp_path / "sweep" / "1").exists()


def _has_text(path: Path, text: str) -> bool:
    return path.exists() and text in path.read_text()
