"""Optimizers against torch's, compression against what it promises."""

import numpy as np
import pytest
import torch
from core_parameter_server.compression import Array, Compressor
from core_parameter_server.config import Config, TrainConfig
from core_parameter_server.digits import Digits
from core_parameter_server.optimizer import CHUNK, Optimizer
from core_parameter_server.problems import batch, make_problem, share
from ray_shared.config import compose

SIZE = CHUNK + 1000  # More than one chunk.


def configured(*overrides: str) -> Config:
    return compose(Config, "core_parameter_server.conf", overrides)


def train_config(optimizer: str) -> TrainConfig:
    return configured(f"train.optimizer={optimizer}", "train.lr=0.1").train


def random(seed: int, size: int = SIZE) -> Array:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def torch_optimizer(name: str, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam([parameter], lr=0.1)
    return torch.optim.SGD([parameter], lr=0.1, momentum=0.9 if name == "momentum" else 0)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_optimizer_does_what_torchs_does(name: str):
    weights = random(0)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    ours, theirs = Optimizer(train_config(name), SIZE), torch_optimizer(name, parameter)
    compressor = Compressor("none", 1)
    for step in range(5):
        gradients = [random(10 * step + i) for i in range(1, 4)]
        factors = [0.5, 0.3, 0.2]
        total = sum(f * g for f, g in zip(factors, gradients, strict=True))
        squares = ours.step(weights, [compressor.pack(0, g) for g in gradients], factors)
        parameter.grad = torch.from_numpy(total)
        theirs.step()
        assert squares == pytest.approx(float(total @ total), rel=1e-4)
    np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-3, atol=1e-5)


def test_restored_optimizer_goes_on_as_if_nothing_had_been():
    weights = random(0)
    first = Optimizer(train_config("adam"), SIZE)
    pack = Compressor("none", 1).pack
    first.step(weights, [pack(0, random(1))], [1.0])
    copy = weights.copy()
    second = Optimizer(train_config("adam"), SIZE)
    second.restore({k: v.copy() for k, v in first.slots.items()}, first.num_steps)
    for optimizer, values in ((first, weights), (second, copy)):
        optimizer.step(values, [pack(0, random(2))], [1.0])
    np.testing.assert_array_equal(weights, copy)


def unpacked(packed, size: int = SIZE) -> Array:
    target = np.zeros(size, np.float32)
    packed.add_to(target, 0, 0.25)
    first = target.copy()
    packed.write_to(target, 0, 0.75)
    target += first
    return target


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_fp16_keeps_three_digits_at_any_size_and_halves_the_bytes(size: float):
    gradient = random(0) * np.float32(size)
    packed = Compressor("fp16", 1).pack(0, gradient)
    assert packed.num_bytes == gradient.nbytes / 2
    np.testing.assert_allclose(unpacked(packed), gradient, rtol=1e-3, atol=1e-6 * size)


def test_fp16_of_zeros_is_zeros():
    assert not unpacked(Compressor("fp16", 1).pack(0, np.zeros(SIZE, np.float32))).any()


def test_topk_sends_the_largest_and_loses_nothing():
    compressor = Compressor("topk", 0.01)
    sent, given = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    for step in range(300):
        gradient = random(step)
        packed = compressor.pack(0, gradient)
        assert len(packed.values) == round(0.01 * SIZE)
        assert packed.num_bytes == 8 * len(packed.values)
        if step == 0:
            smallest = np.abs(packed.values).min()
            rest = np.delete(gradient, packed.indices)
            assert np.abs(rest).max() <= smallest
        sent += unpacked(packed)
        given += gradient
    # What is still missing is what the worker keeps, and that stays bounded.
    kept = given - sent
    np.testing.assert_allclose(kept, compressor._residuals[0], atol=1e-3)
    assert np.abs(kept).max() < np.abs(given).max()


def test_topk_keeps_a_residual_for_each_shard():
    compressor = Compressor("topk", 0.1)
    compressor.pack(0, np.ones(10, np.float32))
    packed = compressor.pack(1, np.arange(10, dtype=np.float32))
    assert packed.values.tolist() == [9.0]


def test_chunks_of_a_sparse_slice_find_their_entries():
    gradient = np.zeros(SIZE, np.float32)
    gradient[[0, CHUNK - 1, CHUNK, SIZE - 1]] = [1, 2, 3, 4]
    packed = Compressor("topk", 4 / SIZE).pack(0, gradient)
    weights = np.zeros(SIZE, np.float32)
    Optimizer(train_config("sgd"), SIZE).step(weights, [packed], [1.0])
    np.testing.assert_allclose(weights, -0.1 * gradient)


def test_an_epoch_has_every_sample_once_in_batches_of_nearly_one_size():
    for rank in range(3):
        samples = share(1258, rank, 3)
        batches = [batch(samples, clock, 14, [0, rank]) for clock in range(14)]
        assert sorted(np.concatenate(batches)) == sorted(samples)
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        again = [batch(samples, clock, 14, [0, rank]) for clock in range(14, 28)]
        assert sorted(np.concatenate(again)) == sorted(samples)
        assert np.concatenate(again).tolist() != np.concatenate(batches).tolist()
    everything = np.concatenate([share(1258, rank, 3) for rank in range(3)])
    assert sorted(everything) == list(range(1258))


def test_gradient_of_the_digits_is_torchs_and_can_be_computed_again():
    config = configured()
    problem = Digits(config, rank=1)
    gradient, loss, count = problem.gradient(clock=3)
    first = gradient.copy()
    rows = torch.from_numpy(batch(problem.samples, 3, problem.num_batches, problem.seed))
    images, labels = problem.splits["train"]
    parameters = [p.detach().clone().requires_grad_() for p in problem.model.parameters()]
    hidden = torch.relu(images[rows] @ parameters[0].T + parameters[1])
    logits = hidden @ parameters[2].T + parameters[3]
    expected = torch.nn.functional.cross_entropy(logits, labels[rows])
    expected.backward()
    flat = torch.cat([p.grad.flatten() for p in parameters]).numpy()
    np.testing.assert_allclose(first, flat, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert count == len(rows)
    problem.gradient(clock=4)
    np.testing.assert_array_equal(problem.gradient(clock=3)[0], first)


def test_configuration_knows_the_number_of_parameters():
    for overrides in ([], ["problem.width=7"], ["problem=quadratic", "problem.size=12"]):
        config = configured(*overrides)
        assert len(make_problem(config, 0).weights) == config.problem.num_parameters
