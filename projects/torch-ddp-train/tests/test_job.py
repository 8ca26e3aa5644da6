"""The job from end to end, and its headline fault: a worker killed in mid-epoch."""

import json
import re
from pathlib import Path

import pytest
import torch
from ray_shared.bundle import read_bundle
from ray_shared.testing import steps_done_twice
from safetensors.torch import load_file
from torch_ddp_train import data
from torch_ddp_train.config import DataConfig, ModelConfig
from torch_ddp_train.model import build_model
from torch_ddp_train.steps import Normalization, evaluate

from .cifar import write_cifar10
from .conftest import StartJob

CHECKPOINT_EVERY = 5
EXACT = [
    "train.epochs=2",
    f"checkpoint.every_steps={CHECKPOINT_EVERY}",
    "tracking.every_steps=1",
    "failure.max_failures=1",
]


def newest_weights(directory: Path, run: str) -> dict[str, torch.Tensor]:
    """The weights of the run's newest checkpoint."""
    root = directory / "runs" / run
    snapshot = json.loads((root / "checkpoint_manager_snapshot.json").read_text())
    name = snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]
    return load_file(root / name / "model.safetensors")


def test_default_job_trains_to_high_accuracy_and_says_where_everything_is(start: StartJob):
    with start() as job:
        job.wait_for_event(lambda e: e["event"] == "epoch")
        assert job.wait() == 0, job.output()
    assert job.survivors() == []

    result = job.result()
    assert result["status"] == "ok"
    assert result["metrics"]["accuracy"] >= 0.97
    assert {"accuracy", "loss", "samples_per_s", "epochs", "restarts"} <= result["metrics"].keys()
    assert result["metrics"]["restarts"] == 0
    assert {"startup_s", "job_s", "shutdown_s"} <= result["timings"].keys()
    assert result["versions"]["torch"].startswith("2.13")

    # One line an epoch, nothing twice, no warning; the path of the result comes last.
    lines = job.output().strip().splitlines()
    epochs = [int(m[1]) for line in lines if (m := re.match(r"epoch +(\d+) ", line))]
    assert epochs == list(range(1, result["metrics"]["epochs"] + 1))
    assert not [line for line in lines if re.search("warning|error|traceback|pid=", line, re.I)]
    assert lines[-1] == f"result: {job.output_dir / 'result.json'}"
    assert (job.output_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    # The bundle alone is enough to predict, and as well as the result says.
    directory = Path(result["artifacts"]["bundle"])
    bundle = read_bundle(directory)
    model = build_model(ModelConfig(**bundle.model), 1, len(bundle.classes))
    model.load_state_dict(load_file(directory / "model.safetensors"))
    test = data.load(DataConfig("digits", None, "torch", 2, 0)).splits["test"]
    normalization = Normalization(**bundle.preprocessor)
    sums = evaluate(model, test, normalization, torch.device("cpu"), 0, 1)
    assert sums[1] / sums[2] == pytest.approx(result["metrics"]["accuracy"])


def test_killed_worker_costs_few_steps_and_leaves_none_out(start: StartJob):
    with start(*EXACT) as job:
        # In the middle of the second epoch, between two checkpoints.
        job.wait_for_event(lambda e: e["event"] == "step" and e["step"] >= 28)
        job.kill_worker(rank=1)
        assert job.wait() == 0, job.output()
    metrics, events = job.result()["metrics"], job.events()
    assert (metrics["restarts"], metrics["failures"]) == (1, 1)
    assert steps_done_twice(events) <= CHECKPOINT_EVERY + 1
    resumed = [e["step"] for e in events if e["event"] == "start"][1]
    assert resumed > 20, "it resumed from the beginning of an epoch, not from inside"
    assert f"resume after step {resumed}" in job.output()
    # Every step was done, none was left out.
    assert {e["step"] for e in events if e["event"] == "step"} == set(range(1, 41))


@pytest.mark.fault
def test_killed_worker_changes_no_weight(start: StartJob, tmp_path: Path):
    with start("run.name=undisturbed", *EXACT) as job:
        assert job.wait() == 0, job.output()
    undisturbed = job.result()["metrics"]
    with start("run.name=disturbed", *EXACT) as job:
        job.wait_for_event(lambda e: e["event"] == "step" and e["step"] >= 28)
        job.kill_worker(rank=0)
        assert job.wait() == 0, job.output()
    assert job.result()["metrics"]["restarts"] == 1
    for name, weight in newest_weights(tmp_path, "undisturbed").items():
        assert torch.equal(weight, newest_weights(tmp_path, "disturbed")[name]), name
    assert job.result()["metrics"]["accuracy"] == undisturbed["accuracy"]


@pytest.mark.fault  # No fault, but half a minute; test_shares.py has the shares.
def test_streamed_images_reach_every_worker_once_an_epoch(start: StartJob, tmp_path: Path):
    write_cifar10(tmp_path, num_records=40)
    with start(
        "experiment=[cifar10,streaming]",
        f"data.path={tmp_path}",
        "train.epochs=2",
        "train.batch_size=16",
        "train.warmup_epochs=0",
        "train.precision=bf16",
        "train.accumulate_steps=2",
        "model.width=8",
    ) as job:
        assert job.wait() == 0, job.output()
    epochs = [e for e in job.events() if e["event"] == "epoch"]
    # 160 images, 2 workers, 2 micro-batches of 16 a step.
    assert [e["step"] for e in epochs] == [3, 6]
    assert [e["num_images"] for e in epochs] == [160, 160]
    assert job.result()["metrics"]["epochs"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpus_train_with_nccl(start: StartJob):
    workers = f"scaling.num_workers={torch.cuda.device_count()}"
    with start("experiment=gpu", workers, "train.epochs=20") as job:
        assert job.wait(120) == 0, job.output()
    assert "on GPU" in job.output()
    assert job.result()["metrics"]["accuracy"] >= 0.9
