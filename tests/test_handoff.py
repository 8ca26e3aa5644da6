"""The hand-off refuses what it cannot use, and ends with Ray where it is interrupted."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .repository import ROOT, run

PROJECTS = ("data-preprocessing", "asha-pbt-tune", "serve-fastapi", "kuberay-deploy")
ENVIRONMENTS = ROOT / ".nox"
COMMAND = [
    str(ENVIRONMENTS / "serve-fastapi" / "bin" / "python"),
    str(ROOT / "tests" / "handoff.py"),
    *(f"{name}={ENVIRONMENTS / name / 'bin'}" for name in PROJECTS),
]


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (["--help"], "found --help: must be one new directory"),
        (["one", "two"], "found one two: must be one new directory"),
        (["file"], "file: File exists: must be a new directory"),
        (["file/below"], "below: Not a directory: must be a new directory"),
    ],
)
def test_what_is_no_new_directory_is_refused_in_a_sentence(
    places: list[str], found: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = run([*COMMAND, *places], tmp_path, timeout_s=60)
    assert done.returncode == 2
    assert done.stdout.startswith("error: ")
    assert found in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_interrupted_hand_off_lets_its_job_stop_ray(
    signum: signal.Signals, code: int, tmp_path: Path
) -> None:
    log = tmp_path / "here" / "logs" / "prepare.log"
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(
            [*COMMAND, "here"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not (log.exists() and "generating" in log.read_text()):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signum)
            process.send_signal(signum)  # An impatient person's.
            assert process.wait(60) == code
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        output.seek(0)
        shown = output.read()
    assert "Traceback" not in shown
    if signum == signal.SIGINT:
        last = shown.strip().splitlines()[-1]
        assert last == f"interrupted by Ctrl-C; what was done is in {tmp_path / 'here'}"
    result = json.loads((tmp_path / "here/results/prepare/result.json").read_text())
    assert result["error"] == "interrupted by SIGTERM"
    assert result["timings"]["shutdown_s"] > 0
