"""One optimizer step, one evaluation, the learning rate: plain PyTorch, nothing of Ray."""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from torch_ddp_train.config import TrainConfig
from torch_ddp_train.data import Split
from torch_ddp_train.model import normalize

Batch = tuple[Tensor, Tensor]
"""Images uint8 [B, C, H, W] and labels int64 [B]."""
EVAL_BATCH = 1024


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of the bytes of the training images."""

    mean: float
    std: float


def learning_rate(config: TrainConfig, progress_epochs: float, world_size: int) -> float:
    """Linear warm-up, then cosine decay to 0 (https://arxiv.org/abs/1608.03983).

    A function of how much of the data has been seen, not of the number of steps: when workers
    come or go, the steps of an epoch change.

    Args:
        config: Peak rate, its scaling, epochs and warm-up.
        progress_epochs: Epochs done, with the fraction of the current one. In [0, epochs].
        world_size: Number of workers; matters for `lr_scaling`.
    """
    factor = world_size * config.accumulate_steps
    peak = config.lr * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[config.lr_scaling]
    if progress_epochs < config.warmup_epochs:
        return peak * progress_epochs / config.warmup_epochs
    decay_epochs = max(config.epochs - config.warmup_epochs, 1e-9)
    done = min((progress_epochs - config.warmup_epochs) / decay_epochs, 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def micro_batches(batches: Iterable[Batch], accumulate_steps: int) -> Iterator[list[Batch]]:
    """Groups batches into the micro-steps of one optimizer step; the last group may be short."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, accumulate_steps)):
        yield group


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    group: list[Batch],
    config: TrainConfig,
    normalization: Normalization,
    device: torch.device,
) -> Tensor:
    """One optimizer step over the micro-batches in `group`.

    Only the last backward pass all-reduces: before it, DDP's `no_sync` lets gradients add up
    locally. Each micro-batch weighs by its images, so a short one does not count more.

    Returns:
        float32 [3] on `device`: sum of the losses, correct predictions, images.
    """
    num_images = sum(len(labels) for _, labels in group)
    sums = torch.zeros(3, device=device)
    for i, (images, labels) in enumerate(group):
        last = i == len(group) - 1
        with (
            model.no_sync()
            if isinstance(model, DistributedDataParallel) and not last
            else contextlib.nullcontext()
        ):
            x = normalize(images, normalization.mean, normalization.std, device)
            y = labels.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model(x)
            losses = F.cross_entropy(logits.float(), y, reduction="sum")
            (losses / num_images).backward()
        sums += torch.stack(
            [losses.detach(), (logits.argmax(1) == y).sum(), torch.tensor(len(y), device=device)]
        )
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return sums


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    normalization: Normalization,
    device: torch.device,
    rank: int,
    world_size: int,
) -> Tensor:
    """This worker's share of an evaluation; every image belongs to exactly one worker.

    Args:
        model: The bare module: DDP's forward pass would wait for workers with fewer batches.
        split: What to evaluate on.
        normalization: As in training.
        device: Where to compute.
        rank: This worker takes the images `rank`, `rank + world_size`, ...
        world_size: Number of workers.

    Returns:
        float32 [3] on `device`: sum of the losses, correct predictions, images.
    """
    images = torch.from_numpy(split.images)[rank::world_size]
    labels = torch.from_numpy(split.labels)[rank::world_size]
    sums = torch.zeros(3, device=device)
    model.eval()
    for x, y in zip(images.split(EVAL_BATCH), labels.to(device).split(EVAL_BATCH), strict=True):
        logits = model(normalize(x, normalization.mean, normalization.std, device))
        loss = F.cross_entropy(logits, y, reduction="sum")
        count = torch.tensor(len(y), device=device)
        sums += torch.stack([loss, (logits.argmax(1) == y).sum(), count])
    model.train()
    return sums
