"""Tracking inside Ray Train: one run that ends well and one that fails, both for real."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray_shared import cluster, training
from ray_shared.cluster import Demand
from ray_shared.groups import TrackingConfig
from ray_shared.report import Report
from ray_shared.tracking import Event, Tracker

from .test_cluster_local import LOCAL

PARAMS = {"train": {"lr": 0.1, "clip_norm": None}, "action": "train"}


@dataclass
class Run:
    """What a run has left behind."""

    directory: Path
    events: list[Event]
    error: ray.train.TrainingFailedError | None
    shown: list[Event] = field(default_factory=list)

    def of(self, kind: str) -> list[Event]:
        return [e for e in self.events if e["event"] == kind]


@pytest.fixture(scope="module")
def connected(ray_tmpdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in training.DEFAULTS.items():
            patch.setenv(variable, value)
        report = Report("tiny-job", tmp_path_factory.mktemp("out"), {})
        with cluster.connect(LOCAL, Demand(2, 1, ray_train=True), report, "tiny_job"):
            yield


def train(directory: Path, backend: str, breaks: bool) -> Run:
    """Trains on two workers, in the way a project does."""
    loops = importlib.import_module("tiny_job.loops")  # By a name that the workers know too.
    uri = f"sqlite:///{directory}/mlflow.db"
    tracker = Tracker(TrackingConfig(backend, 0, uri), directory, "tiny-job", "mine")
    tracker._backends.append(loops.BrokenBackend())
    tracker.start(PARAMS)
    run = Run(directory, [], None)
    trainer = DataParallelTrainer(
        loops.loop,
        train_loop_config={"breaks": breaks},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name="mine", storage_path=str(directory / "runs"), callbacks=[tracker]
        ),
    )
    status = "ok"
    with tracker.follow(run.shown.append):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            status, run.error = "failed", error
        tracker.finish(status, {"accuracy": 0.9})
    run.events = tracker.events()
    return run


@pytest.fixture(scope="module")
def good(connected: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("good"), "tensorboard", breaks=False)


@pytest.fixture(scope="module")
def bad(connected: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("bad"), "mlflow", breaks=True)


def test_run_ends_well_although_a_backend_breaks(good: Run):
    assert good.error is None
    assert [e["event"] for e in good.events] == ["params", "start", *["epoch"] * 3, "end"]


def test_parameters_are_recorded_flat(good: Run):
    (params,) = good.of("params")
    assert params | {"time": 0} == {
        "time": 0,
        "event": "params",
        "train.lr": 0.1,
        "train.clip_norm": None,
        "action": "train",
    }


def test_what_differs_between_workers_is_kept_for_every_rank(good: Run):
    (start,) = good.of("start")
    assert "worker" not in start
    assert [w["rank"] for w in start["workers"]] == [0, 1]
    assert len({w["pid"] for w in start["workers"]}) == 2


def test_each_epoch_names_its_metrics_and_its_checkpoint(good: Run):
    assert [(e["epoch"], e["step"], e["loss"]) for e in good.of("epoch")] == [
        (1, 10, 1.0),
        (2, 20, 1 / 2),
        (3, 30, 1 / 3),
    ]
    paths = [Path(e["checkpoint"]) for e in good.of("epoch")]
    assert len(set(paths)) == 3
    for path in paths:
        assert {p.name for p in path.iterdir()} == {"rank0", "rank1"}
    times = [e["time"] for e in good.events]
    assert times == sorted(times)


def test_end_has_the_status_and_the_final_metrics(good: Run):
    (end,) = good.of("end")
    assert (end["status"], end["accuracy"]) == ("ok", 0.9)


def test_following_showed_each_event_once_in_order(good: Run, bad: Run):
    assert good.shown == good.events
    assert bad.shown == bad.events


def test_tensorboard_has_the_scalars_by_step_and_the_checkpoints(good: Run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    scalars: dict[str, dict[int, float]] = {}
    texts: dict[str, list[str]] = {}
    files = sorted((good.directory / "tensorboard").iterdir())
    for file in files:
        content = accumulator.EventAccumulator(str(file)).Reload()
        for tag in content.Tags()["scalars"]:
            for event in content.Scalars(tag):
                scalars.setdefault(tag, {})[event.step] = event.value
        for tag in content.Tags()["tensors"]:
            for event in content.Tensors(tag):
                texts.setdefault(tag, []).append(event.tensor_proto.string_val[0].decode())
    assert scalars["epoch/loss"] == pytest.approx({10: 1.0, 20: 1 / 2, 30: 1 / 3})
    assert scalars["end/accuracy"] == pytest.approx({0: 0.9})
    checkpoints = [e["checkpoint"] for e in good.of("epoch")]
    assert texts["checkpoint/text_summary"] == checkpoints
    assert texts["status/text_summary"] == ["ok"]
    assert '"train.lr": 0.1' in texts["params/text_summary"][0]


def test_failure_is_recorded_with_its_reason_and_the_status(bad: Run):
    assert bad.error is not None
    kinds = [e["event"] for e in bad.events]
    # Ray Train may drop what was reported just before a worker broke: the third epoch.
    assert kinds[:4] == ["params", "start", "epoch", "epoch"]
    assert kinds[-2:] == ["failure", "end"]
    (failure,) = bad.of("failure")
    assert failure["errors"] == {"1": "ValueError: rank 1 broke"}
    assert bad.of("end")[0]["status"] == "failed"


def test_mlflow_has_everything_of_the_run_that_failed(bad: Run):
    mlflow = pytest.importorskip("mlflow")
    client: Any = mlflow.MlflowClient(tracking_uri=f"sqlite:///{bad.directory}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny-job")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "mine"
    assert run.info.status == "FAILED"
    assert run.data.params == {"train.lr": "0.1", "train.clip_norm": "None", "action": "train"}
    assert run.data.tags["checkpoint"] == bad.of("epoch")[-1]["checkpoint"]
    history = client.get_metric_history(run.info.run_id, "epoch/loss")
    assert [(m.step, m.value) for m in history] == [(e["step"], e["loss"]) for e in bad.of("epoch")]
    assert len(history) >= 2
    assert run.data.metrics["end/accuracy"] == 0.9
