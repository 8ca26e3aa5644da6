"""Nodes that vanish, are taken away with notice, and come back: on a real cluster of many nodes.

Run by `nox -s faults -- torch-ddp-train`.
"""

import time
from typing import Any

import pytest
from ray_shared.testing import Job, drain_node, many_nodes, steps_done_twice, wait_for

from .conftest import StartJob
from .counting import ALL_STEPS, CHECKPOINT_EVERY, COUNTED, starts, step_reached, steps

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]


def join(cluster: Any) -> list[str]:
    return ["cluster=existing", f"cluster.address={cluster.address}"]


def node_of_worker(cluster: Any, job: Job, rank: int) -> Any:
    node_id = job.workers()[rank]["node"]
    return next(node for node in cluster.worker_nodes if node.node_id == node_id)


def test_removed_node_costs_few_steps(start: StartJob):
    with many_nodes([0, 1, 1, 1]) as cluster, start(*join(cluster), *COUNTED) as job:
        job.wait_for_event(step_reached(28))
        before = {w["node"] for w in job.workers()}
        lost = node_of_worker(cluster, job, rank=1)
        cluster.remove_node(lost, allow_graceful=False)
        assert job.wait() == 0, job.output()
        assert job.survivors() == []
    metrics = job.result()["metrics"]
    assert metrics["restarts"] == 1
    assert len(before) == 2
    assert lost.node_id not in {w["node"] for w in job.workers()}
    assert steps_done_twice(job.events()) <= CHECKPOINT_EVERY + 1
    assert steps(job) == ALL_STEPS
    assert metrics["accuracy"] >= 0.9


def test_drained_node_gets_a_checkpoint_before_it_leaves(start: StartJob):
    # No regular checkpoint and no allowed failure: only the notice can save the run.
    options = [
        "train.epochs=8",
        "checkpoint.every_epochs=0",
        "tracking.every_steps=1",
        "failure.max_failures=0",
        "failure.preemption_check_s=0.5",
    ]
    with many_nodes([0, 1, 1, 1]) as cluster, start(*join(cluster), *options) as job:
        job.wait_for_event(step_reached(20))
        leaving = node_of_worker(cluster, job, rank=1)
        drain_node(cluster, leaving.node_id, deadline_s=4)
        drained = time.time()
        notice = job.wait_for_event(lambda e: e["event"] == "checkpoint" and e["preempted"])
        wait_for(lambda: time.time() > drained + 4, "end of the grace period")
        cluster.remove_node(leaving, allow_graceful=False)
        assert job.wait() == 0, job.output()
    first, second = starts(job)
    assert first["step"] == 0
    assert second["step"] >= notice["step"] >= 20
    assert leaving.node_id not in {w["node"] for w in second["workers"]}
    assert "a node is about to go: checkpoint at step" in job.output()
    # About half a second of steps between two looks.
    assert steps_done_twice(job.events()) <= 15
    assert job.result()["metrics"]["epochs"] == 8


def test_elastic_run_shrinks_and_grows_with_the_cluster(start: StartJob):
    options = [
        "train.epochs=25",
        f"checkpoint.every_steps={CHECKPOINT_EVERY}",
        "tracking.every_steps=1",
        "scaling.min_workers=1",
        "scaling.resize_check_s=3",
        "scaling.start_timeout_s=10",
    ]
    with many_nodes([0, 1, 1]) as cluster, start(*join(cluster), *options) as job:
        job.wait_for_event(step_reached(22))
        cluster.remove_node(node_of_worker(cluster, job, rank=1), allow_graceful=False)
        alone = job.wait_for_event(lambda e: e["event"] == "start" and e["num_workers"] == 1)
        job.wait_for_event(lambda e: e["event"] == "step" and e["step"] > alone["step"] + 10)
        cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
        job.wait_for_event(
            lambda e: e["event"] == "start" and e["num_workers"] == 2 and e["step"] > alone["step"]
        )
        assert job.wait(400) == 0, job.output()
    assert [e["num_workers"] for e in starts(job)] == [2, 1, 2]
    # The loss of the node and the resize redo at most what was not checkpointed.
    assert steps_done_twice(job.events()) <= 2 * (CHECKPOINT_EVERY + 1)
    metrics = job.result()["metrics"]
    assert metrics["restarts"] == 2
    assert metrics["epochs"] == 25
    assert metrics["accuracy"] >= 0.97
