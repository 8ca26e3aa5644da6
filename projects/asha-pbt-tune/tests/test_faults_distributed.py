"""What can go wrong in trials of several workers: who frees their place, and who goes on."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util import placement_group_table
from ray_shared.cluster import Demand, connect
from ray_shared.report import Report
from ray_shared.testing import many_nodes, wait_for

from .conftest import StartJob
from .counting import configuration, epochs_of, trained

pytestmark = pytest.mark.fault


def controllers(cluster: Any) -> int:
    """How many of Ray Train's controllers run on this cluster now."""
    title, count = "ray::TrainController", 0
    for node in cluster.list_all_nodes():
        (raylet,) = node.all_processes["raylet"]
        for process in psutil.Process(raylet.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                count += title in " ".join(process.cmdline())
    return count


def test_killed_distributed_trial_goes_on_from_its_checkpoint(start: StartJob):
    study = ["experiment=distributed", "tune.num_trials=2", "search=random", "scheduler=none"]
    study += ["train.epochs=12", "checkpoint.every_epochs=1", "run.name=torn"]
    study += ["objective.hyperparameters.batch_size=8", "~space.batch_size"]
    with start(*study) as job:
        os.kill(job.wait_for_event(trained(4))["pid"], signal.SIGKILL)
        assert job.wait() == 0, job.output()
    metrics, events = job.result()["metrics"], job.events()
    assert (metrics["num_retries"], metrics["num_failed"]) == (1, 0)
    assert metrics["num_finished"] == 2
    # Its workers had gone ahead by a few epochs, which nobody has counted.
    for epochs in epochs_of(events).values():
        assert epochs[-1] == 12
        assert len(epochs) >= 8


def test_stopped_distributed_trials_leave_room_and_no_process(start: StartJob, tmp_path: Path):
    # One trial at a time has room: the second could not begin if the first left anything.
    study = ["experiment=distributed", "tune.num_trials=5", "search=random", "train.epochs=9"]
    study += ["scheduler.grace_epochs=1", "scheduler.reduction_factor=3"]
    seen = []
    # A cluster of its own, which can be asked after the job, and asks for a token.
    with many_nodes([2]) as cluster:
        with start("cluster=existing", f"cluster.address={cluster.address}", *study) as job:
            for done in range(5):
                wait_for(lambda done=done: len(epochs_of(job.events())) > done, "next trial")
                wait_for(lambda: controllers(cluster) <= 1, "one controller", 60)
                seen.append(controllers(cluster))
            assert job.wait() == 0, job.output()
        assert os.environ["RAY_AUTH_MODE"] == "token"
        joined = configuration("cluster=existing", f"cluster.address={cluster.address}").cluster
        report = Report("asha-pbt-tune", tmp_path, {})
        with connect(joined, Demand(1, 0.1), report, "asha_pbt_tune"):
            groups = placement_group_table().values()
            assert [g for g in groups if g["state"] != "REMOVED"] == []
            wait_for(lambda: ray.available_resources().get("CPU") == 2, "free CPUs", 30)
    job.wait_until_gone()
    metrics = job.result()["metrics"]
    assert metrics["num_trials"] == 5
    assert metrics["num_pruned"] >= 1
    assert metrics["num_failed"] == 0
    assert max(seen) <= 1
    assert metrics["test_accuracy"] > 0.5
