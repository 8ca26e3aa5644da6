"""The optimizers that run in the shards, in place.

A fresh array of 100 MB costs more than the arithmetic on it, because the system hands out its
pages one by one. So nothing here allocates: the vector is worked through in chunks that stay in a
core's cache, and every operation writes into an array that exists already.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.linalg.blas import saxpy

from core_parameter_server.compression import Array, Packed
from core_parameter_server.config import TrainConfig

CHUNK = 1 << 17
"""Entries that are worked on at a time: 512 kB an array."""
EPSILON = 1e-8
SLOTS = {"sgd": (), "momentum": ("velocity",), "adam": ("mean", "square")}


class Optimizer:
    """One slice of the parameters' optimizer, with its state."""

    def __init__(self, config: TrainConfig, size: int):
        self.config = config
        self.size = size
        self.reset()
        self._gradient = np.empty(CHUNK, np.float32)
        self._scratch = np.empty(CHUNK, np.float32)

    def reset(self) -> None:
        """Begins without a past."""
        self.slots: dict[str, Array] = {
            name: np.zeros(self.size, np.float32) for name in SLOTS[self.config.optimizer]
        }
        """State of the optimizer; float32 [size] each."""
        self.num_steps = 0

    def restore(self, slots: dict[str, Array], num_steps: int) -> None:
        """Continues from a saved state."""
        self.slots = {name: slots[name] for name in SLOTS[self.config.optimizer]}
        self.num_steps = num_steps

    def step(self, weights: Array, gradients: Sequence[Packed], factors: Sequence[float]) -> float:
        """Updates the weights with a weighted sum of gradients.

        Args:
            weights: float32 [size]; changed in place.
            gradients: One for each worker that takes part.
            factors: The weight of each.

        Returns:
            The sum of the squares of the summed gradient.
        """
        self.num_steps += 1
        squares = 0.0
        for start in range(0, len(weights), CHUNK):
            part = weights[start : start + CHUNK]
            gradient = self._gradient[: len(part)]
            gradients[0].write_to(gradient, start, factors[0])
            for packed, factor in zip(gradients[1:], factors[1:], strict=True):
                packed.add_to(gradient, start, factor)
            squares += float(gradient @ gradient)
            self._update(part, gradient, start)
        return squares

    def _update(self, weights: Array, gradient: Array, start: int) -> None:
        """One chunk: `weights` and `gradient` are float32 [n], n <= CHUNK; both are changed."""
        config = self.config
        slots = [slot[start : start + len(weights)] for slot in self.slots.values()]
        scratch = self._scratch[: len(weights)]
        rate = config.lr
        if config.optimizer == "sgd":
            step = gradient
        elif config.optimizer == "momentum":
            (step,) = slots  # The velocity.
            step *= config.momentum
            step += gradient
        else:  # Adam: Kingma and Ba, ICLR 2015, algorithm 1.
            mean, square = slots
            np.multiply(gradient, 1 - config.beta1, out=scratch)
            mean *= config.beta1
            mean += scratch
            gradient *= gradient
            gradient *= 1 - config.beta2
            square *= config.beta2
            square += gradient
            correction = math.sqrt(1 - config.beta2**self.num_steps)
            np.sqrt(square, out=scratch)
            scratch += EPSILON * correction
            step = np.divide(mean, scratch, out=gradient)
            rate *= correction / (1 - config.beta1**self.num_steps)
        saxpy(step, weights, a=-rate)  # weights -= rate * step
