"""The peer: a DDP training script for `torchrun`, in the manner of PyTorch's tutorial.

Data, model, hyperparameters and number of steps are the project's; loop and default loader are the
tutorial's: a data set that answers image by image, normalized one by one and stacked by the
DataLoader's default collation.
It imports neither Ray nor Hydra; `compare.py` hands it the project's configuration as JSON.

    torchrun --nproc-per-node 2 torchrun_ddp.py --config config.json --out events.jsonl

Source: https://docs.pytorch.org/tutorials/beginner/ddp_series_fault_tolerance.html (torch 2.13)
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torch_ddp_train import data
from torch_ddp_train.config import DataConfig, ModelConfig, TrainConfig
from torch_ddp_train.model import build_model, normalize

Batch = tuple[Tensor, Tensor]
"""Normalized images, float32 [B, C, H, W], and labels, int64 [B]."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """One image at a time, made a float and normalized, as by torchvision's transforms."""

    def __init__(self, split: data.Split, mean: float, std: float):
        self.images = torch.from_numpy(split.images)
        self.labels = split.labels
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].float().sub_(self.mean).div_(self.std)
        return image, int(self.labels[index])


class Loader:
    """This process's batches of a split: with the tutorial's loader, or with the project's."""

    def __init__(
        self, kind: str, images: data.Images, split: str, config: TrainConfig, device: torch.device
    ):
        self.kind, self.images, self.config, self.device = kind, images, config, device
        self.split = images.splits[split]
        if kind == "tutorial":
            dataset = ImageDataset(self.split, images.mean, images.std)
            self.sampler: DistributedSampler[Any] = DistributedSampler(dataset, seed=config.seed)
            # Without worker processes: there is a process for each core already.
            self.loader = DataLoader(dataset, config.batch_size, sampler=self.sampler)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, in an order of its own."""
        if self.kind == "tutorial":
            self.sampler.set_epoch(epoch)
            for pixels, labels in self.loader:
                yield pixels.to(self.device), labels.to(self.device)
            return
        sampler = data.ShardSampler(
            num_samples=len(self.split.labels),
            batch_size=self.config.batch_size,
            accumulate_steps=1,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            seed=self.config.seed,
            epoch=epoch,
            offset=0,
        )
        mean, std = self.images.mean, self.images.std
        for images, labels in data.torch_loader(self.split, sampler):
            yield normalize(images, mean, std, self.device), labels.to(self.device)


class Trainer:
    """The model, what trains it, and how far it is."""

    def __init__(self, config: dict[str, Any], kind: str):
        self.config = TrainConfig(**config["train"])
        self.images = data.load(DataConfig(**config["data"]))
        self.device = torch.device("cuda" if config["scaling"]["use_gpu"] else "cpu")
        self.train_loader = Loader(kind, self.images, "train", self.config, self.device)
        self.val_loader = Loader(kind, self.images, "val", self.config, self.device)
        torch.manual_seed(self.config.seed)
        model = ModelConfig(**config["model"])
        self.module = build_model(model, self.images.shape[0], len(self.images.classes))
        self.module.to(self.device)
        self.model = DistributedDataParallel(self.module)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        share = math.ceil(len(self.images.splits["train"].labels) / dist.get_world_size())
        steps_per_epoch = math.ceil(share / self.config.batch_size)
        self.warmup_steps = self.config.warmup_epochs * steps_per_epoch
        self.num_steps = self.config.epochs * steps_per_epoch
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.lr_factor)
        self.step = 0
        self.first_step_at: float | None = None

    def autocast(self) -> torch.autocast:
        """What the forward pass runs in: bfloat16 where the project's does."""
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, then cosine decay, at the middle of `step`: in [0, 1]."""
        done = step + 0.5
        if done < self.warmup_steps:
            return done / self.warmup_steps
        progress = (done - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Trains for one epoch; `train_s` covers the loop alone, as in the project."""
        self.model.train()
        sums = torch.zeros(2, device=self.device)
        started = time.perf_counter()
        for images, labels in self.train_loader.epoch(epoch):
            with self.autocast():
                loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            if self.config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            sums += torch.tensor([loss.item() * len(labels), len(labels)], device=self.device)
            self.step += 1
            self.first_step_at = self.first_step_at or time.time()
        train_s = time.perf_counter() - started
        dist.all_reduce(sums)
        loss_sum, count = sums.tolist()
        return {
            "train_loss": loss_sum / count,
            "samples_per_s": count / train_s,
            "train_s": train_s,
        }

    @torch.no_grad()
    def validate(self) -> float:
        """The share of validation images that are right, over all processes."""
        self.model.eval()
        sums = torch.zeros(2, device=self.device)
        for images, labels in self.val_loader.epoch(0):
            right = self.module(images).argmax(1) == labels
            sums += torch.tensor([float(right.sum()), len(labels)], device=self.device)
        dist.all_reduce(sums)
        return float(sums[0] / sums[1])

    def save(self, path: Path) -> None:
        """A snapshot as in the tutorial, as often as the project's."""
        state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"step": self.step}, path)


def train(config: dict[str, Any], kind: str, out: Path) -> None:
    """Trains, and writes an event for each epoch with the project's keys."""
    trainer = Trainer(config, kind)
    for epoch in range(trainer.config.epochs):
        event = trainer.train_epoch(epoch) | {"val_accuracy": trainer.validate()}
        if dist.get_rank() == 0:
            if (epoch + 1) % max(config["checkpoint"]["every_epochs"], 1) == 0:
                trainer.save(out.with_name("snapshot.pt"))
            now = {"event": "epoch", "epoch": epoch + 1, "step": trainer.step, "time": time.time()}
            with out.open("a") as file:
                file.write(
                    json.dumps(now | event | {"first_step_at": trainer.first_step_at}) + "\n"
                )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Tutorial-style DDP training, under torchrun.")
    parser.add_argument("--config", type=Path, required=True, help="JSON: the project's keys")
    parser.add_argument("--loader", choices=("tutorial", "project"), default="tutorial")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one an epoch")
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    if config["scaling"]["use_gpu"]:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if config["scaling"]["use_gpu"] else "gloo")
    train(config, args.loader, args.out)
    dist.destroy_process_group()
    # gloo's threads outlive the group, and now and then one aborts the process while the
    # interpreter is being torn down (https://github.com/pytorch/pytorch/issues/190489).
    os._exit(0)


if __name__ == "__main__":
    main()
