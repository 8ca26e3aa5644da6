"""Every failure that the README claims to survive, injected and counted."""

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import psutil
import pytest
from data_preprocessing import output
from ray_shared.storage import open_storage
from ray_shared.testing import Job, wait_for
from ray_shared.testing_s3 import S3Server

from .conftest import StartJob
from .counting import BEFORE, NUM_UNITS, SMALL, features, manifest_of, truth

pytestmark = pytest.mark.fault


def units_done(job: Job) -> int:
    return len([e for e in job.events() if e["event"] == "unit"])


def processes(job: Job, title: str) -> list[psutil.Process]:
    """Ray's processes below the job that are doing this."""
    found = []
    for child in psutil.Process(job.process.pid).children(recursive=True):
        try:
            if any(title in part for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def calm(start: StartJob, tmp_path: Path) -> pl.DataFrame:
    """The features of an undisturbed run."""
    with start(*SMALL, "run.name=calm") as job:
        assert job.wait() == 0, job.output()
    return features(tmp_path / "runs" / "calm")


@pytest.mark.timeout(600)
def test_driver_killed_at_three_random_points(start: StartJob, tmp_path: Path, calm: pl.DataFrame):
    points = sorted(random.sample(range(2 * NUM_UNITS), 3))
    print("killed after so many units:", points)  # noqa: T201 - shown if the test fails
    with contextlib.ExitStack() as jobs:  # So that nothing is cleared away between the starts.
        for point in points:
            job = jobs.enter_context(start(*SMALL, "run.name=hurt"))
            # Units of earlier starts are not done again, so they do not count here.
            goal = max(point - units_on_disk(tmp_path / "runs" / "hurt"), 0)
            wait_for(lambda j=job, g=goal: units_done(j) >= g and j.events(), "units", 60)
            job.remember_family()
            job.process.send_signal(signal.SIGKILL)
            assert job.process.wait() == -signal.SIGKILL
        before = units_on_disk(tmp_path / "runs" / "hurt")
        # The last kill may have come when everything was written: the next start is then a new run.
        whole = output.read_manifest(open_storage(str(tmp_path / "runs" / "hurt"))) is not None
        job = jobs.enter_context(start(*SMALL, "run.name=hurt"))
        assert job.wait() == 0, job.output()
    assert units_done(job) <= 2 * NUM_UNITS - (0 if whole else before)
    assert features(tmp_path / "runs" / "hurt").equals(calm)
    assert job.result()["metrics"]["quarantine_by_reason"] == truth()["reasons"]


def units_on_disk(run: Path) -> int:
    scanned = [p for p in run.glob("attempt-*/scan/*") if p.suffix != ".part"]
    written = [p for p in run.glob("attempt-*/done/*") if p.suffix != ".part"]
    return len(scanned) + len(written)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_job_and_the_next_start_goes_on(
    start: StartJob, tmp_path: Path, calm: pl.DataFrame, signum: signal.Signals, code: int
):
    with start(*SMALL, "run.name=hurt") as job:
        job.wait_for_event(lambda e: e["event"] == "unit")
        job.process.send_signal(signum)
        assert job.wait(30) == code, job.output()
        job.wait_until_gone()
    assert "Traceback" not in job.output()
    with start(*SMALL, "run.name=hurt") as again:
        assert again.wait() == 0, again.output()
    assert "resuming" in again.output()
    assert features(tmp_path / "runs" / "hurt").equals(calm)


def test_killed_task_is_repeated(start: StartJob, tmp_path: Path):
    # Units that take long enough to be caught at work.
    options = ["data.num_rows=4000000", "data.num_files=8", "run.name=hurt"]
    with start(*options) as job:
        victim, *_ = wait_for(lambda: processes(job, "ray::Map(scan)"), "task at work", 60)
        victim.kill()
        assert job.wait() == 0, job.output()
    metrics, expected = job.result()["metrics"], truth(4_000_000, 8)
    assert metrics["rows_in"] == expected["rows"]
    assert metrics["quarantine_by_reason"] == expected["reasons"]
    rows = features(tmp_path / "runs" / "hurt").select("file", "row")
    assert rows.height == metrics["rows_out"]
    assert rows.is_unique().all()


def test_rerun_replaces_and_never_appends(start: StartJob, tmp_path: Path):
    for _ in range(2):
        with start(*SMALL, "run.name=twice") as job:
            assert job.wait() == 0, job.output()
    run = tmp_path / "runs" / "twice"
    assert [p.name for p in run.glob("attempt-*")] == ["attempt-0002"]
    assert features(run).height == job.result()["metrics"]["rows_out"]
    named = {run / "attempt-0002" / file["path"] for file in manifest_of(run)["files"]}
    assert set(run.glob("attempt-*/features/**/*.parquet")) == named


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 12 MB; mounting one takes root."""
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        pytest.skip("only root on Linux can mount a small filesystem")
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    subprocess.run(mount, check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_full_disk_leaves_the_old_output_whole(start: StartJob, small_disk: Path):
    options = ["data.num_rows=60000", "data.num_files=4", "run.name=mine"]
    options += [f"storage.path={small_disk}"]
    with start(*options) as job:
        assert job.wait() == 0, job.output()
    before = features(small_disk / "mine")
    # What is left is less than a second output takes.
    taken = sum(p.stat().st_size for p in small_disk.rglob("*") if p.is_file())
    left = 12 * 2**20 - taken
    (small_disk / "ballast").write_bytes(b"\0" * max(left - 500_000, 0))
    with start(*options) as job:
        assert job.wait() == 2, job.output()
    assert "No space left on device" in job.output()
    assert "what was there before is still whole" in job.output()
    assert "Traceback" not in job.output()
    assert features(small_disk / "mine").equals(before)


def test_input_larger_than_the_object_store_in_memory_that_does_not_grow(
    start: StartJob, tmp_path: Path
):
    """80 MB of object store; 3 million trips are 430 MB in memory."""
    env = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(80 * 2**20)}
    peaks = []
    for millions in (1, 3):
        options = [f"data.num_rows={millions}000000", f"data.num_files={4 * millions}"]
        with start(*options, f"run.name=m{millions}", env=env) as job:
            assert job.wait(240) == 0, job.output()
        assert job.result()["resources"]["object_store_memory"] <= 80 * 2**20
        metrics = job.result()["metrics"]
        assert metrics["rows_in"] == truth(millions * 10**6, 4 * millions)["rows"]
        peaks.append(metrics["peak_rss_mb"])
    assert peaks[1] < 1.25 * peaks[0], peaks


def test_killed_actor_costs_no_prediction(start: StartJob, tmp_path: Path):
    model(start)
    options = ["action=score", "data.num_rows=400000", "data.num_files=16", "run.name=scores"]
    with start(*options) as job:
        first = job.wait_for_event(lambda e: e["event"] == "unit")
        os.kill(first["pid"], signal.SIGKILL)
        assert job.wait() == 0, job.output()
    pids = {e["pid"] for e in job.events() if e["event"] == "unit"}
    assert len(pids) >= 2
    metrics, run = job.result()["metrics"], tmp_path / "runs" / "scores"
    expected = truth(400_000, 16)
    assert metrics["rows_in"] == expected["rows"]
    assert metrics["quarantine_by_reason"] == {
        reason: n for reason, n in expected["reasons"].items() if reason in BEFORE
    }
    files = [run / manifest_of(run)["attempt"] / f["path"] for f in manifest_of(run)["files"]]
    scored = pl.concat(pl.read_parquet(file) for file in files)
    assert scored.height == metrics["rows_out"]
    assert scored.select("file", "row").is_unique().all()


def model(start: StartJob) -> None:
    for action in ("prepare", "train"):
        with start(*SMALL, f"action={action}", f"run.name={action}", "train.num_rounds=5") as job:
            assert job.wait() == 0, job.output()


def test_killed_training_worker_goes_on_and_stops_where_an_undisturbed_run_does(
    start: StartJob, tmp_path: Path
):
    with start(*SMALL, "run.name=trips") as job:
        assert job.wait() == 0, job.output()
    # Slow enough that the best round comes late.
    options = ["action=train", "train.lr=0.05", "train.num_rounds=400", "checkpoint.every_rounds=8"]
    with start(*options, "run.name=calm") as calm:
        assert calm.wait() == 0, calm.output()
    with start(*options, "run.name=hurt") as job:
        job.wait_for_event(lambda e: e["event"] == "round" and e["step"] >= 40)
        job.kill_worker(1)
        assert job.wait() == 0, job.output()
    metrics, expected = job.result()["metrics"], calm.result()["metrics"]
    assert metrics["restarts"] == 1
    starts = [e["step"] for e in job.events() if e["event"] == "start"]
    assert starts[0] == 0
    assert starts[1] >= 32  # One checkpoint may still have been on its way.
    assert starts[1] % 8 == 0
    assert metrics["rounds"] == expected["rounds"] < 400
    assert metrics["rmse"] == pytest.approx(expected["rmse"], rel=1e-5)
    # What is finished stays as it is.
    with start(*options, "run.name=hurt") as again:
        assert again.wait() == 0, again.output()
    assert again.result()["metrics"]["rounds"] == expected["rounds"]
    assert [e for e in again.events() if e["event"] == "round"] == []


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_text_files_are_prepared_with_every_reason_found(
    start: StartJob, tmp_path: Path, kind: str
):
    with start(*SMALL, f"data.format={kind}", "run.name=text") as job:
        assert job.wait() == 0, job.output()
    expected = truth(kind=kind)
    assert expected["reasons"]["wrong_type"] > 0
    assert job.result()["metrics"]["quarantine_by_reason"] == expected["reasons"]
    assert job.result()["metrics"]["rows_in"] == expected["rows"]


def test_input_and_output_in_s3(start: StartJob, s3_server: S3Server):
    s3_server.create_bucket("trips")
    with start(*SMALL, "run.name=trips", "storage.path=s3://trips/runs") as job:
        assert job.wait() == 0, job.output()
    run = open_storage("s3://trips/runs/trips")
    manifest = output.read_manifest(run)
    assert manifest is not None
    assert manifest["rows"]["quarantine_by_reason"] == truth()["reasons"]
    attempt = run.child(manifest["attempt"])
    rows = sum(output.read_parquet(attempt.child(f["path"])).height for f in manifest["files"])
    assert rows == manifest["rows"]["rows_out"]
