"""Failures, each injected into a running job, and what they cost."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray_shared.testing import Job, many_nodes, start_job, steps_done_twice, wait_for

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
    weights,
)

pytestmark = pytest.mark.fault
MOST_REDONE = 2 * CHECKPOINT_EVERY + AHEAD


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, ray_tmpdir: Path) -> tuple[np.ndarray, float]:
    """The weights and the loss of an undisturbed synchronous run."""
    directory = tmp_path_factory.mktemp("calm")
    with start_job("core_parameter_server", ["run.name=calm", *COUNTED], directory) as job:
        assert job.wait() == 0, job.output()
    return weights(directory, "calm"), job.result()["metrics"]["loss"]


def same_result(job: Job, directory: Path, calm: tuple[np.ndarray, float]) -> None:
    """Every gradient is in the weights once, and the result is that of the undisturbed run."""
    assert applied(job) == every_gradient_once(3, NUM_UPDATES)
    np.testing.assert_array_equal(weights(directory, "hurt"), calm[0])
    assert job.result()["metrics"]["loss"] == calm[1]


def as_good(metrics: dict[str, Any], calm: tuple[np.ndarray, float]) -> None:
    """The order of updates differs from run to run, so the weights do; not what they are worth."""
    assert metrics["loss"] == pytest.approx(calm[1], abs=0.04)
    assert metrics["accuracy"] >= 0.95


def test_killed_worker_is_replaced_and_none_of_its_data_is_lost(
    start: StartJob, tmp_path: Path, calm: Any
):
    with start("run.name=hurt", *COUNTED) as job:
        job.wait_for_event(step_reached(55))
        job.kill_worker(rank=1)
        assert job.wait() == 0, job.output()
    metrics = job.result()["metrics"]
    (restarted,) = events(job, "worker_restarted")
    assert restarted["worker_rank"] == 1
    assert metrics["worker_restarts"] == 1
    # Nothing is rolled back: Ray repeats the one gradient.
    assert metrics["recoveries"] == 0
    assert metrics["updates_redone"] == 0
    same_result(job, tmp_path, calm)


def test_killed_shard_leaves_the_result_of_an_undisturbed_run(
    start: StartJob, tmp_path: Path, calm: Any
):
    with start("run.name=hurt", *COUNTED) as job:
        job.wait_for_event(step_reached(55))
        kill(shard_pid(job, 1))
        assert job.wait() == 0, job.output()
    assert job.result()["metrics"]["recoveries"] == 1
    same_result(job, tmp_path, calm)


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_killed_shard_costs_no_gradient_in_the_other_modes(
    start: StartJob, tmp_path: Path, calm: Any, mode: str
):
    with start("run.name=hurt", f"server.mode={mode}", *COUNTED) as job:
        job.wait_for_event(step_reached(155))
        kill(shard_pid(job, 0))
        assert job.wait() == 0, job.output()
    metrics = job.result()["metrics"]
    assert metrics["recoveries"] == 1
    assert 0 < metrics["updates_redone"] <= MOST_REDONE + 20
    assert metrics["num_updates"] == 3 * NUM_UPDATES
    assert applied(job) == every_gradient_once(3, NUM_UPDATES)
    assert metrics["updates_redone"] == steps_done_twice(job.events())
    as_good(metrics, calm)
    assert metrics["max_staleness_seen"] <= 2 or mode == "async"


def test_killed_worker_costs_nothing_in_async_mode(start: StartJob, calm: Any):
    with start("run.name=hurt", "server.mode=async", *COUNTED) as job:
        job.wait_for_event(step_reached(155))
        job.kill_worker(rank=1)
        assert job.wait() == 0, job.output()
    metrics = job.result()["metrics"]
    assert (metrics["worker_restarts"], metrics["recoveries"]) == (1, 0)
    assert steps_done_twice(job.events()) == 0
    assert applied(job) == every_gradient_once(3, NUM_UPDATES)
    as_good(metrics, calm)


def test_every_shard_and_a_worker_killed_at_once(start: StartJob, tmp_path: Path, calm: Any):
    with start("run.name=hurt", *COUNTED) as job:
        job.wait_for_event(step_reached(55))
        for pid in (shard_pid(job, 0), shard_pid(job, 1), job.workers()[2]["pid"]):
            kill(pid)
        assert job.wait() == 0, job.output()
    assert job.result()["metrics"]["updates_redone"] <= 2 * MOST_REDONE
    before = {shard["pid"] for shard in events(job, "start")[0]["shards"]}
    assert before.isdisjoint(events(job, "recovery")[-1]["pids"])
    assert len(before) == 2
    assert job.result()["metrics"]["worker_restarts"] == 1
    same_result(job, tmp_path, calm)


def test_shard_that_dies_too_often_ends_the_job_and_leaves_its_checkpoint(
    start: StartJob, tmp_path: Path
):
    with start("run.name=hurt", "failure.max_failures=0", *COUNTED) as job:
        job.wait_for_event(step_reached(55))
        kill(shard_pid(job, 1))
        assert job.wait() == 1, job.output()
    assert job.result()["status"] == "failed"
    assert "more than failure.max_failures=0 times" in job.result()["error"]
    assert len(weights(tmp_path, "hurt")) == 4810


def test_killed_driver_resumes_at_the_next_start(start: StartJob, tmp_path: Path, calm: Any):
    with start("run.name=hurt", *COUNTED) as job:
        job.wait_for_event(step_reached(55))
        job.remember_family()
        job.process.kill()
        job.process.wait()
        wait_for(lambda: not job.survivors_but_agents(), "end of the killed driver's processes", 30)
        killed_at = max(e["step"] for e in events(job, "step"))
    with start("run.name=hurt", "run.resume=must", *COUNTED) as again:
        assert again.wait() == 0, again.output()
    resumed_at = events(again, "start")[0]["step"]
    assert killed_at - MOST_REDONE <= resumed_at <= killed_at
    done = {step for j in (job, again) for step in (e["step"] for e in events(j, "step"))}
    assert done == set(range(1, NUM_UPDATES + 1))
    np.testing.assert_array_equal(weights(tmp_path, "hurt"), calm[0])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_keeps_the_last_checkpoint(
    start: StartJob, tmp_path: Path, calm: Any, signum: signal.Signals, code: int
):
    with start("run.name=hurt", *COUNTED) as job:
        job.wait_for_event(step_reached(55))
        job.remember_family()
        job.process.send_signal(signum)
        assert job.wait(30) == code, job.output()
        job.wait_until_gone()
    assert "Traceback" not in job.output()
    with start("run.name=hurt", "run.resume=must", *COUNTED) as again:
        assert again.wait() == 0, again.output()
    np.testing.assert_array_equal(weights(tmp_path, "hurt"), calm[0])


@pytest.fixture
def cluster(ray_tmpdir: Path) -> Iterator[Any]:
    """A head that has room for nothing, and two nodes that have each room for everything."""
    with many_nodes([0, 2, 2]) as nodes:
        yield nodes


def node_of(pid: int, cluster: Any) -> Any:
    """The node of a worker process, which is a child of the node's raylet."""
    raylet = psutil.Process(pid).ppid()
    return next(n for n in cluster.worker_nodes if raylet in raylets(n))


def raylets(node: Any) -> list[int]:
    return [each.process.pid for each in node.all_processes["raylet"]]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_lost_node_costs_what_a_lost_shard_costs(
    start: StartJob, tmp_path: Path, calm: Any, cluster: Any, mode: str
):
    joined = ["cluster=existing", f"cluster.address={cluster.address}"]
    # Slow enough that the node is gone long before the end: to take it away needs seconds.
    slow = [*COUNTED, "train.compute_s=0.05"]
    with start("run.name=hurt", f"server.mode={mode}", *joined, *slow) as job:
        job.wait_for_event(step_reached(55))
        node = node_of(shard_pid(job, 0), cluster)
        workers = [w for w in job.workers() if w["node"] == node.node_id]
        cluster.remove_node(node, allow_graceful=False)
        assert job.wait(180) == 0, job.output()
    metrics = job.result()["metrics"]
    assert metrics["recoveries"] >= 1
    assert metrics["worker_restarts"] >= len(workers)
    if mode == "sync":
        same_result(job, tmp_path, calm)
    else:
        assert applied(job) == every_gradient_once(3, NUM_UPDATES)
        as_good(metrics, calm)


def test_lost_node_without_room_for_its_actors_elsewhere_ends_the_job(
    start: StartJob, tmp_path: Path, ray_tmpdir: Path
):
    with many_nodes([0, 1, 1]) as nodes:
        full = ["scaling.num_workers=2", "server.cpus_per_shard=0.5", "failure.room_timeout_s=3"]
        joined = ["cluster=existing", f"cluster.address={nodes.address}"]
        with start("run.name=hurt", *full, *joined, *COUNTED) as job:
            job.wait_for_event(step_reached(55))
            nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
            assert job.wait(180) == 1, job.output()
    assert "found no room on another one within failure.room_timeout_s=3" in job.result()["error"]
    assert len(weights(tmp_path, "hurt")) == 4810


def test_loss_that_is_not_finite_ends_the_job_and_keeps_the_last_checkpoint(
    start: StartJob, tmp_path: Path
):
    with start("run.name=hurt", "train.lr=1e30", "train.optimizer=sgd", *COUNTED) as job:
        assert job.wait() == 1, job.output()
    assert "the loss is not finite at update" in job.result()["error"]
    assert np.isfinite(weights(tmp_path, "hurt")).all()


def test_staleness_stays_within_its_bound_with_a_straggler_for_real(start: StartJob):
    options = ["action=straggler", "straggler.factor=10", "server.max_staleness=1"]
    with start(*options, "straggler.target_loss=0.5", "tracking.every_steps=1") as job:
        assert job.wait() == 0, job.output()
    variants = job.result()["metrics"]["variants"]
    assert variants["ssp 1"]["max_staleness_seen"] == 1
    assert variants["async"]["max_staleness_seen"] > 5
    seen = [
        staleness
        for e in events(job, "step")
        if e["variant"] == "ssp 1"
        for _, _, staleness in e["applied"]
    ]
    assert set(seen) == {0, 1}
