"""A small torch network on digits as an objective, on one process or on several."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray_shared.bundle import Bundle
from ray_shared.report import versions
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from asha_pbt_tune import data
from asha_pbt_tune.config import PROJECT, Config

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def perceptron(num_inputs: int, width: int, num_layers: int, num_classes: int) -> nn.Sequential:
    """A multilayer perceptron: float32 [B, num_inputs] to logits [B, num_classes]."""
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [nn.Linear(num_inputs, width), nn.ReLU(), nn.Dropout(0.0)]
        num_inputs = width
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_classes))


class Network:
    """A perceptron, AdamW and the rows. See `objectives.Objective`.

    With several workers each has an equal slice of every batch, and `wrap` makes their gradients
    one; all the rest is the same on each of them.
    """

    def __init__(
        self,
        config: Config,
        hyperparameters: dict[str, Any],
        num_threads: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ):
        torch.set_num_threads(num_threads)
        self.rank, self.world_size = rank, world_size
        self.device = device or torch.device("cuda" if config.trial.use_gpu else "cpu")
        objective = config.objective
        self.table = data.load(objective.dataset, None, objective.split_seed)
        train = self.table.splits["train"].features
        self.mean, self.std = float(train.mean()), float(train.std())
        self.rows = {
            name: (
                torch.from_numpy((rows.features - self.mean) / self.std).to(self.device),
                torch.from_numpy(rows.labels).to(self.device),
            )
            for name, rows in self.table.splits.items()
        }
        self.seed, self.epoch = config.train.seed, 0
        torch.manual_seed(self.seed)
        self.module = perceptron(
            train.shape[1],
            int(hyperparameters["width"]),
            int(hyperparameters["num_layers"]),
            len(self.table.classes),
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(self.module.parameters())
        self.model = wrap(self.module)
        self.set(hyperparameters)

    def set(self, hyperparameters: dict[str, Any]) -> None:
        """From the next epoch on. `width` and `num_layers` are what they were."""
        self.hyperparameters = hyperparameters
        for group in self.optimizer.param_groups:
            group["lr"] = hyperparameters["lr"]
            group["weight_decay"] = hyperparameters["weight_decay"]
        for layer in self.module:
            if isinstance(layer, nn.Dropout):
                layer.p = hyperparameters["dropout"]

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training rows, in an order that seed and epoch decide."""
        inputs, labels = self.rows["train"]
        self.model.train()
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(labels))
        torch.manual_seed((self.seed * 100_003 + self.epoch) * 64 + self.rank)
        loss_sum = torch.zeros((), device=self.device)
        batch_size = int(self.hyperparameters["batch_size"])
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            # Slices of one size, because the mean of the workers' gradients is taken: at most
            # `world_size - 1` rows are left out, others in each epoch.
            share = len(batch) // self.world_size
            if share == 0:
                continue
            mine = torch.from_numpy(batch[self.rank * share : (self.rank + 1) * share])
            mine = mine.to(self.device)
            loss = cross_entropy(
                self.model(inputs[mine]),
                labels[mine],
                label_smoothing=self.hyperparameters["label_smoothing"],
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.detach() * share
        self.epoch += 1
        return {"train_loss": float(loss_sum) * self.world_size / len(order)} | self.evaluate("val")

    def save(self, directory: Path) -> None:
        """Writes weights, the optimizer's moments and the epoch."""
        save_file(self.module.state_dict(), directory / MODEL)
        moments: dict[str, Tensor] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            moments |= {f"{index}.{name}": value for name, value in state.items()}
        save_file(moments, directory / OPTIMIZER)
        (directory / STATE).write_text(json.dumps({"epoch": self.epoch}))

    def load(self, directory: Path) -> None:
        """Takes over weights, moments and epoch."""
        self.module.load_state_dict(load_file(directory / MODEL, device=str(self.device)))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(directory / OPTIMIZER, device=str(self.device)).items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.epoch = int(json.loads((directory / STATE).read_text())["epoch"])

    def test(self) -> dict[str, float]:
        """Metrics on the test rows."""
        return self.evaluate("test")

    def bundle(self, directory: Path) -> Bundle:
        """Writes the weights."""
        save_file(self.module.state_dict(), directory / MODEL)
        shape = [self.rows["train"][0].shape[1]]
        return Bundle(
            framework="torch",
            task="classification",
            features=[{"name": "pixels", "dtype": "float32", "shape": shape}],
            classes=self.table.classes,
            model={
                "name": "perceptron",
                "num_inputs": shape[0],
                "width": int(self.hyperparameters["width"]),
                "num_layers": int(self.hyperparameters["num_layers"]),
            },
            preprocessor={"mean": self.mean, "std": self.std},
            metrics={},
            versions=versions(PROJECT),
        )

    @torch.inference_mode()
    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics on all rows of a split, also with several workers: the weights are the same."""
        inputs, labels = self.rows[split]
        self.module.eval()
        logits = self.module(inputs)
        return {
            f"{split}_logloss": float(cross_entropy(logits, labels)),
            f"{split}_accuracy": float((logits.argmax(1) == labels).float().mean()),
        }
