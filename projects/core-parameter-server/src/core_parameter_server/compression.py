"""How gradients are made smaller on their way to the server.

`fp16` halves them: scaled to the range of a half float, and scaled back by the shard. `topk` sends
the largest entries only; what it leaves out stays on the worker and is added to its next gradient
(*error feedback*), so that nothing is lost, only late.

Source: Stich et al., "Sparsified SGD with Memory", NeurIPS 2018.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import saxpy

Array = NDArray[np.float32]
# Half of the largest half float, so that rounding cannot overflow.
FP16_RANGE = 32752.0


@dataclass
class Packed:
    """A slice of a gradient as it travels."""

    values: NDArray[np.float32] | NDArray[np.float16]
    """float32 or float16 [n], or [k] with `indices`."""
    indices: NDArray[np.uint32] | None = None
    """uint32 [k], ascending: where the values belong; None: they are the whole slice."""
    scale: float = 1.0
    """What the values have to be multiplied with."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.values.nbytes + (self.indices.nbytes if self.indices is not None else 0))

    def write_to(self, target: Array, start: int, factor: float) -> None:
        """Writes `factor` times the entries from `start` on into `target`, without a new array.

        Args:
            target: float32 [m], for the entries `start` to `start + m`.
            start: Position of the first entry in the slice.
            factor: Multiplies every entry.
        """
        if self.indices is None:
            values = self.values[start : start + len(target)]
            np.multiply(values, np.float32(factor * self.scale), out=target)
        else:
            target.fill(0)
            self.add_to(target, start, factor)

    def add_to(self, target: Array, start: int, factor: float) -> None:
        """Adds them to what `target` holds."""
        factor *= self.scale
        if self.indices is not None:
            low, high = np.searchsorted(self.indices, (start, start + len(target)))
            # The indices of a slice are all different, so none is added twice.
            target[self.indices[low:high] - np.uint32(start)] += factor * self.values[low:high]
        else:
            values = self.values[start : start + len(target)]
            # `y += a x` in one pass over memory, where NumPy needs two.
            saxpy(values.astype(np.float32, copy=False), target, a=factor)


class Compressor:
    """Packs the gradients of one worker, slice by slice."""

    def __init__(self, kind: str, topk_fraction: float):
        self.kind = kind
        self.topk_fraction = topk_fraction
        self._residuals: dict[int, Array] = {}

    def forget(self) -> float:
        """Begins without anything held back; returns the norm of what was."""
        norm = math.sqrt(sum(float(held @ held) for held in self._residuals.values()))
        self._residuals.clear()
        return norm

    def pack(self, shard: int, gradient: Array) -> Packed:
        """Packs the gradient's slice for one shard.

        Args:
            shard: Index of the shard.
            gradient: float32 [n]; not changed.
        """
        if self.kind == "fp16":
            largest = float(np.abs(gradient).max(initial=0.0))
            scale = largest / FP16_RANGE if largest > 0 else 1.0
            return Packed((gradient / np.float32(scale)).astype(np.float16), scale=scale)
        if self.kind == "topk":
            return self._topk(shard, gradient)
        return Packed(gradient)

    def _topk(self, shard: int, gradient: Array) -> Packed:
        residual = self._residuals.setdefault(shard, np.zeros_like(gradient))
        residual += gradient
        count = max(1, round(self.topk_fraction * len(residual)))
        largest = np.argpartition(np.abs(residual), len(residual) - count)[-count:]
        indices = np.sort(largest).astype(np.uint32)
        values = residual[indices]
        residual[indices] = 0
        return Packed(values, indices)
