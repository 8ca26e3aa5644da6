"""One optimizer step, the learning rate, and what DDP sends."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from ray_shared.config import compose
from ray_shared.testing import free_port
from torch import nn
from torch_ddp_train.config import Config, TrainConfig
from torch_ddp_train.data import Split
from torch_ddp_train.model import build_model
from torch_ddp_train.steps import (
    Normalization,
    evaluate,
    learning_rate,
    micro_batches,
    train_step,
)

CPU = torch.device("cpu")
NORMALIZATION = Normalization(8.0, 4.0)


@pytest.fixture(scope="module")
def config() -> Config:
    return compose(Config, "torch_ddp_train.conf", ["model.dropout=0"])


@pytest.fixture(scope="module")
def train(config: Config) -> TrainConfig:
    return config.train


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def batch(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 17, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (size,), generator=generator)


def fresh(config: Config) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model(config.model, 1, 10)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_learning_rate_warms_up_and_decays_to_zero(train: TrainConfig):
    train = replace(train, epochs=10, warmup_epochs=2, lr=0.1)
    rates = [learning_rate(train, epoch, 2) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.05, 0])


def test_learning_rate_grows_with_workers_and_accumulation_only_on_request(train: TrainConfig):
    peak = {
        scaling: learning_rate(
            replace(train, lr=1.0, lr_scaling=scaling, accumulate_steps=2), train.warmup_epochs, 4
        )
        for scaling in ("none", "linear", "sqrt")
    }
    assert peak == pytest.approx({"none": 1.0, "linear": 8.0, "sqrt": math.sqrt(8)})


def test_accumulated_step_equals_one_step_over_all_images(config: Config, train: TrainConfig):
    images, labels = batch(40)
    # Not with AdamW, whose first step is the sign of the gradient: it blows rounding up.
    (whole, _), (parts, _) = fresh(config), fresh(config)
    optimizer = torch.optim.SGD(whole.parameters(), lr=1.0)
    train_step(whole, optimizer, [(images, labels)], train, NORMALIZATION, CPU)
    optimizer = torch.optim.SGD(parts.parameters(), lr=1.0)
    # The last micro-batch is short: images must weigh the same, not micro-batches.
    group = list(zip(images.split([16, 16, 8]), labels.split([16, 16, 8]), strict=True))
    sums = train_step(parts, optimizer, group, train, NORMALIZATION, CPU)
    assert torch.allclose(weights(whole), weights(parts), atol=1e-5)
    assert sums[2] == 40


def test_gradients_are_reduced_only_at_the_last_micro_step(
    config: Config, train: TrainConfig, process_group: None
):
    model, optimizer = fresh(config)
    ddp = nn.parallel.DistributedDataParallel(model)
    reductions = []

    def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        reductions.append(bucket.index())
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ddp.register_comm_hook(None, count)
    train_step(ddp, optimizer, [batch(8, 0)], train, NORMALIZATION, CPU)
    num_buckets = len(reductions)
    reductions.clear()
    train_step(ddp, optimizer, [batch(8, i) for i in range(4)], train, NORMALIZATION, CPU)
    assert len(reductions) == num_buckets >= 1


def test_gradient_is_clipped_to_the_norm(config: Config, train: TrainConfig):
    model, _ = fresh(config)
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    clipped = replace(train, clip_norm=0.001)
    train_step(model, optimizer, [batch(32)], clipped, NORMALIZATION, CPU)
    assert (weights(model) - before).norm() == pytest.approx(0.001, rel=1e-3)


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(config: Config, train: TrainConfig):
    model, optimizer = fresh(config)
    seen = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    train_step(model, optimizer, [batch(8)], replace(train, precision="bf16"), NORMALIZATION, CPU)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_every_image_once_for_any_number_of_workers(
    config: Config, world_size: int
):
    model, _ = fresh(config)
    images, labels = batch(100)
    split = Split(images.numpy(), labels.numpy())
    args = (model, split, NORMALIZATION, CPU)
    parts = sum(evaluate(*args, rank, world_size) for rank in range(world_size))
    assert torch.allclose(parts, evaluate(*args, 0, 1), rtol=1e-4)
    assert parts[2] == 100


def test_micro_batches_come_in_groups_with_a_short_last_one():
    groups = list(micro_batches([batch(1, i) for i in range(5)], 2))
    assert [len(group) for group in groups] == [2, 2, 1]


@pytest.mark.parametrize(("name", "shape"), [("cnn", (1, 8, 8)), ("resnet", (3, 32, 32))])
def test_models_map_images_to_logits(config: Config, name: str, shape: tuple[int, ...]):
    model = build_model(replace(config.model, name=name, width=8), shape[0], 10)
    assert model(torch.zeros(4, *shape)).shape == (4, 10)
