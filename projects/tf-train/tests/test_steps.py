"""The arithmetic of a step: as many workers as you like, and the same weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ray_shared.config import compose
from ray_shared.testing import free_port
from tf_train import data
from tf_train.backend import keras, tf
from tf_train.config import Config, TrainConfig
from tf_train.model import build_model
from tf_train.steps import Steps, learning_rate

Saved = dict[str, np.ndarray]
LR = 0.01


def started(world_size: int, directory: Path) -> list[subprocess.Popen[bytes]]:
    addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(world_size))
    script = Path(__file__).with_name("member.py")
    processes = []
    for rank in range(world_size):
        out = directory / f"{world_size}-{rank}.npz"
        command = [sys.executable, str(script), addresses, str(rank), str(out)]
        processes.append(subprocess.Popen(command, start_new_session=True))
    return processes


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """What each member of a group of one and of a group of two has saved."""
    directory = tmp_path_factory.mktemp("members")
    processes = started(1, directory) + started(2, directory)
    try:
        assert [process.wait(150) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {path.stem: dict(np.load(path)) for path in directory.glob("*.npz")}


@pytest.mark.parametrize(
    # AdamW divides by the size of the gradient, also where that is nearly 0, so what is rounded off
    # grows, on each machine differently, and from step to step. Plain descent has no such effect.
    ("call", "tolerance"),
    [
        ("one", 1e-5),
        ("full", 1e-5),
        ("last", 1e-5),
        ("padded", 1e-5),
        ("plain", 1e-6),
        ("single", 1e-6),
    ],
)
def test_two_workers_reach_the_weights_of_one_with_the_same_global_batch(
    members: dict[str, Saved], call: str, tolerance: float
):
    alone, first, second = members["1-0"], members["2-0"], members["2-1"]
    np.testing.assert_array_equal(first[call], second[call])
    np.testing.assert_allclose(first[call], alone[call], rtol=0, atol=tolerance)
    # They have moved, and further with each call.
    assert np.abs(alone["last"] - alone["full"]).max() > 1e-3


@pytest.mark.parametrize(
    ("sums", "count"),
    [
        ("one-sums", 64),
        ("full-sums", 128),
        ("last-sums", 22),
        ("padded-sums", 22),
        ("plain-sums", 64),
        ("single-sums", 1),
        ("test-sums", 269),
    ],
)
def test_sums_are_over_the_images_of_all_workers(members: dict[str, Saved], sums: str, count: int):
    for member in members.values():
        assert member[sums][2] == count
        np.testing.assert_allclose(member[sums], members["1-0"][sums], rtol=1e-4)


def made(clip_norm: float | None) -> Steps:
    config = compose(Config, "tf_train.conf", ["model=mlp", "model.width=8"])
    images = data.load(config.data)
    model = build_model(config.model, [8, 8, 1], 10, images.mean, images.std, "fp32", 0)
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    strategy, split = tf.distribute.get_strategy(), images.splits["train"]
    return Steps(strategy, model, optimizer, clip_norm, [8, 8, 1], split)


@pytest.fixture
def steps() -> Steps:
    return made(clip_norm=0.01)


def train(steps: Steps, indices: np.ndarray, *rates: float) -> np.ndarray:
    """Steps on these images, all of which count."""
    weights = np.ones(indices.shape, np.float32)
    sums: np.ndarray = steps.train_indices(indices, weights, np.float32(rates)).numpy()
    return sums


def test_gradient_is_that_of_the_mean_loss():
    steps = made(clip_norm=None)
    model, taken = steps.model, np.arange(32)
    split = data.load(compose(Config, "tf_train.conf").data).splits["train"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)  # The mean.
    with tf.GradientTape() as tape:
        mean = loss(split.labels[taken], model(split.images[taken]))
    expected = tape.gradient(mean, [v.value for v in model.trainable_variables])
    before = [v.numpy() for v in model.trainable_variables]
    train(steps, taken[None], 1.0)
    for variable, was, gradient in zip(model.trainable_variables, before, expected, strict=True):
        np.testing.assert_allclose(was - variable.numpy(), gradient.numpy(), atol=1e-6)


def test_gradient_is_clipped_to_its_norm_over_all_variables(steps: Steps):
    before = [v.numpy() for v in steps.model.trainable_variables]
    train(steps, np.arange(32)[None], 1.0)
    moved = [v.numpy() - b for v, b in zip(steps.model.trainable_variables, before, strict=True)]
    # Plain gradient descent with a rate of 1 moves by the gradient.
    norm = np.sqrt(sum(np.square(m).sum() for m in moved))
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_several_steps_in_a_call_are_the_same_steps(steps: Steps):
    together = np.arange(96).reshape(3, 32)
    start = [v.numpy() for v in steps.model.trainable_variables]
    rates = [0.5, 0.4, 0.3]
    sums = train(steps, together, *rates)
    reached = [v.numpy() for v in steps.model.trainable_variables]
    for variable, value in zip(steps.model.trainable_variables, start, strict=True):
        variable.assign(value)
    singly = [train(steps, part[None], rate) for part, rate in zip(together, rates, strict=True)]
    np.testing.assert_allclose(sums, np.sum(singly, axis=0), rtol=1e-6)
    for variable, value in zip(steps.model.trainable_variables, reached, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def configured(*overrides: str) -> TrainConfig:
    return compose(Config, "tf_train.conf", ["train.epochs=10", *overrides]).train


def test_learning_rate_warms_up_and_decays_to_nothing():
    config = configured(f"train.lr={LR}", "train.warmup_epochs=2")
    assert learning_rate(config, 0.0, 2) == 0
    assert learning_rate(config, 1.0, 2) == pytest.approx(LR / 2)
    assert learning_rate(config, 2.0, 2) == pytest.approx(LR)
    assert learning_rate(config, 6.0, 2) == pytest.approx(LR / 2)
    assert learning_rate(config, 10.0, 2) == pytest.approx(0)


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_learning_rate_grows_with_the_workers_only_on_request(scaling: str, factor: float):
    config = configured(f"train.lr={LR}", "train.warmup_epochs=0", f"train.lr_scaling={scaling}")
    assert learning_rate(config, 0.0, 4) == pytest.approx(factor * LR)


def test_bfloat16_computes_in_half_the_bits_and_answers_in_float32():
    config = compose(Config, "tf_train.conf", ["model.width=8"])
    model = build_model(config.model, [8, 8, 1], 10, 5.0, 6.0, "bf16", 0)
    try:
        assert model.get_layer("conv_1").compute_dtype == "bfloat16"
        assert model.get_layer("conv_1").variable_dtype == "float32"
        assert model(np.zeros((1, 8, 8, 1), np.uint8)).dtype == tf.float32
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
