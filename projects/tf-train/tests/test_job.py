"""The job from end to end, and its headline fault: a worker killed in mid-epoch."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ray_shared.config import compose
from ray_shared.testing import steps_done_twice
from tf_train import data
from tf_train.backend import tf
from tf_train.config import Config

from .conftest import StartJob
from .counting import CHECKPOINT_EVERY, optimizer_state, weights

EXACT = [
    "train.epochs=2",
    f"checkpoint.every_steps={CHECKPOINT_EVERY}",
    "tracking.every_steps=1",
    "failure.max_failures=1",
]
# Without Ray and without this project: what a server would do.
LOAD = """
import sys
import keras, numpy as np, tensorflow as tf
bundle, saved_model, out = sys.argv[1:]
images = np.load(out + "/images.npy")
model = keras.models.load_model(bundle + "/model.keras")
serve = tf.saved_model.load(saved_model).signatures["serving_default"]
(served,) = serve(tf.constant(images)).values()
np.savez(out + "/predicted.npz", bundle=model(images).numpy(), served=served.numpy())
assert not [name for name in sys.modules if name.split(".")[0] in ("ray", "tf_train")]
"""


def test_job_trains_exports_and_says_where_everything_is(start: StartJob, tmp_path: Path):
    with start("train.epochs=5") as job:
        job.wait_for_event(lambda e: e["event"] == "epoch")
        assert job.wait() == 0, job.output()
    assert job.survivors() == []

    result = job.result()
    metrics = result["metrics"]
    assert result["status"] == "ok"
    assert metrics["accuracy"] >= 0.96
    assert {"accuracy", "loss", "samples_per_s", "epochs", "restarts"} <= metrics.keys()
    assert metrics["restarts"] == 0
    assert metrics["reloaded_max_difference"] < 1e-4
    assert result["versions"]["keras"].startswith("3.")

    # One line an epoch, nothing twice, no warning; the path of the result comes last.
    lines = job.output().strip().splitlines()
    epochs = [int(m[1]) for line in lines if (m := re.match(r"epoch +(\d+) ", line))]
    assert epochs == [1, 2, 3, 4, 5]
    assert not [line for line in lines if re.search("warning|error|traceback|pid=", line, re.I)]
    assert lines[-1] == f"result: {job.output_dir / 'result.json'}"
    assert (job.output_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    test = data.load(compose(Config, "tf_train.conf").data).splits["test"]
    np.save(tmp_path / "images.npy", test.images)
    artifacts = result["artifacts"]
    command = [sys.executable, "-c", LOAD, artifacts["bundle"], artifacts["saved_model"]]
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True, timeout=100)
    predicted = np.load(tmp_path / "predicted.npz")
    for probabilities in (predicted["bundle"], predicted["served"]):
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        hits = (probabilities.argmax(axis=1) == test.labels).mean()
        assert hits == pytest.approx(metrics["accuracy"])


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
    assert {e["step"] for e in events if e["event"] == "step"} == set(range(1, 41))


@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="needs a GPU")
def test_gpus_train_with_nccl(start: StartJob):
    workers = f"scaling.num_workers={len(tf.config.list_physical_devices('GPU'))}"
    with start("experiment=gpu", workers, "train.epochs=20") as job:
        assert job.wait() == 0, job.output()
    assert "on GPU" in job.output()
    assert job.result()["metrics"]["accuracy"] >= 0.9


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
    calm, hurt = weights(tmp_path, "undisturbed"), weights(tmp_path, "disturbed")
    for got, wanted in zip(hurt, calm, strict=True):
        np.testing.assert_array_equal(got, wanted)
    state = optimizer_state(tmp_path, "undisturbed")
    for name, value in optimizer_state(tmp_path, "disturbed").items():
        np.testing.assert_array_equal(value, state[name])
    assert job.result()["metrics"]["accuracy"] == undisturbed["accuracy"]
