"""A real model on real data: start here for your own."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core_parameter_server.compression import Array
from core_parameter_server.config import DIGITS_CLASSES, DIGITS_PIXELS, Config
from core_parameter_server.problems import batch, batches_per_epoch, share

SPLIT_SEED = 0
SPLITS = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}


class Digits:
    """A network with one hidden layer on scikit-learn's 8x8 images of handwritten digits."""

    def __init__(self, config: Config, rank: int):
        from sklearn.datasets import load_digits

        torch.set_num_threads(1)  # A worker reserves a part of a core.
        digits = load_digits()
        order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
        self.splits = {}
        for name, (low, high) in SPLITS.items():
            rows = order[round(low * len(order)) : round(high * len(order))]
            # Pixels are 0 to 16.
            images = torch.tensor(digits.data[rows] / 8 - 1, dtype=torch.float32)
            self.splits[name] = (images, torch.tensor(digits.target[rows]))
        train, workers = config.train, config.scaling.num_workers
        num_samples = len(self.splits["train"][1])
        self.samples = share(num_samples, rank, workers)
        self.num_batches = batches_per_epoch(num_samples, workers, train.batch_size)
        self.seed = [train.seed, rank]

        torch.manual_seed(train.seed)
        width = config.problem.width
        hidden, out = nn.Linear(DIGITS_PIXELS, width), nn.Linear(width, DIGITS_CLASSES)
        self.model = nn.Sequential(hidden, nn.ReLU(), out)
        weights = nn.utils.parameters_to_vector(self.model.parameters()).detach()
        grad = torch.zeros_like(weights)
        self.weights, self.grad = weights.numpy(), grad.numpy()  # The same memory.
        # Parameters and gradients become windows into two flat vectors: nothing is gathered.
        position = 0
        for parameter in self.model.parameters():
            window = slice(position, position + parameter.numel())
            parameter.data = weights[window].view_as(parameter)
            parameter.grad = grad[window].view_as(parameter)
            position += parameter.numel()

    def gradient(self, clock: int) -> tuple[Array, float, int]:
        """Of the mean cross-entropy."""
        rows = torch.from_numpy(batch(self.samples, clock, self.num_batches, self.seed))
        images, labels = self.splits["train"]
        self.grad.fill(0)
        loss = F.cross_entropy(self.model(images[rows]), labels[rows])
        loss.backward()
        return self.grad, loss.item(), len(rows)

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """Mean cross-entropy, and the share of the images that are right."""
        images, labels = self.splits[split]
        logits = self.model(images)
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": accuracy}
