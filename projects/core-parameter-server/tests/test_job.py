"""The job from end to end, and its headline fault: a shard killed in mid-run."""

from pathlib import Path

import pytest
from ray_shared.testing import steps_done_twice

from .conftest import StartJob
from .counting import (
    AHEAD,
    CHECKPOINT_EVERY,
    COUNTED,
    NUM_UPDATES,
    applied,
    events,
    every_gradient_once,
    kill,
    shard_pid,
    step_reached,
)


@pytest.mark.parametrize(
    "mode",
    [
        ["server.mode=sync"],
        # In the fast tier these two train in test_training.py only.
        pytest.param(["server.mode=ssp", "server.max_staleness=2"], marks=pytest.mark.fault),
        pytest.param(["server.mode=async", "server.compression=topk"], marks=pytest.mark.fault),
    ],
    ids=lambda mode: mode[0],
)
def test_job_learns_digits_in_every_mode(start: StartJob, mode: list[str]):
    with start(*mode, "tracking.every_steps=1") as job:
        job.wait_for_event(lambda e: e["event"] == "step")
        assert job.wait() == 0, job.output()
    job.wait_until_gone()
    result = job.result()
    metrics = result["metrics"]
    assert result["status"] == "ok"
    assert metrics["accuracy"] >= 0.95
    assert {"updates_per_s", "max_staleness_seen", "bytes_sent", "loss"} <= metrics.keys()
    sync, topk = "server.mode=sync" in mode, "server.compression=topk" in mode
    assert metrics["num_updates"] == (280 if sync else 840)
    assert applied(job) == every_gradient_once(3, 280)
    if "server.mode=ssp" in mode:
        assert 1 <= metrics["max_staleness_seen"] <= 2
    # 4,810 parameters; topk sends 5 % of them, with their indices.
    expected = 840 * 4810 * 4 * (0.1 if topk else 1)
    assert metrics["bytes_sent"] == pytest.approx(expected, rel=0.01)
    assert metrics["bytes_read"] == 840 * 4810 * 4
    moved_s = (metrics["bytes_sent"] + metrics["bytes_read"]) / metrics["bytes_per_s"]
    assert moved_s == pytest.approx(metrics["train_s"])
    assert metrics["num_updates"] / metrics["updates_per_s"] == pytest.approx(metrics["train_s"])
    assert len(metrics["queued_ms"]) == 2
    assert min(metrics["queued_ms"]) > 0
    assert 0 < metrics["grad_norm"] < 10
    assert Path(result["artifacts"]["plot"]).read_bytes().startswith(b"\x89PNG")
    assert "test accuracy" in job.output()
    assert "Traceback" not in job.output()


def test_killed_shard_comes_back_and_every_gradient_counts_once(start: StartJob):
    with start(*COUNTED) as job:
        job.wait_for_event(step_reached(55))
        kill(shard_pid(job, 1))
        assert job.wait() == 0, job.output()
    (recovery,) = events(job, "recovery")
    assert recovery["shards"] == [1]
    assert recovery["step"] % CHECKPOINT_EVERY == 0
    metrics = job.result()["metrics"]
    assert metrics["recoveries"] == 1
    # A checkpoint may still have been on its way.
    assert 0 < metrics["updates_redone"] <= 2 * CHECKPOINT_EVERY + AHEAD
    assert metrics["updates_redone"] == steps_done_twice(job.events())
    assert metrics["num_updates"] == NUM_UPDATES
    assert applied(job) == every_gradient_once(3, NUM_UPDATES)
    assert metrics["accuracy"] >= 0.95
    assert "all shards rolled back to version" in job.output()
    job.wait_until_gone()


@pytest.mark.fault  # Four variants, one after the other.
def test_comparison_reaches_the_target_in_every_mode(start: StartJob):
    options = ["action=straggler", "straggler.factor=3", "straggler.target_loss=0.3"]
    with start(*options, "train.eval_every_epochs=0.5") as job:
        assert job.wait() == 0, job.output()
    variants = job.result()["metrics"]["variants"]
    assert list(variants) == ["sync", "ssp 2", "async", "sync, 1 backup"]
    for name, row in variants.items():
        assert row["time_to_target_s"] > 0, name
        assert row["loss"] <= 0.45, name
    assert variants["ssp 2"]["max_staleness_seen"] == 2
    assert variants["async"]["max_staleness_seen"] > 2
    assert variants["sync"]["num_dropped"] == 0
    assert variants["sync, 1 backup"]["num_dropped"] > 0
    plot = Path(job.result()["artifacts"]["plot"])
    assert plot.name == "straggler.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
