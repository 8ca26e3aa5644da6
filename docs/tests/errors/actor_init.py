"""An actor's `__init__` raises: its process lives, the actor never does.

Run: python docs/tests/errors/actor_init.py
"""

# ruff: noqa: T201

import traceback
from pathlib import Path

import ray


@ray.remote(num_cpus=1)
class Model:
    """Reads its weights when it starts."""

    def __init__(self, weights: str) -> None:
        self.size = len(Path(weights).read_bytes())

    def predict(self) -> int:
        """Stands for a prediction."""
        return self.size


def broken() -> None:
    """The call reports what the constructor raised."""
    model = Model.remote("/models/absent.bin")
    try:
        ray.get(model.predict.remote())
    except ray.exceptions.ActorDiedError:
        traceback.print_exc()


def mended() -> None:
    """A path that every node can read."""
    model = Model.remote(__file__)
    print("prediction:", ray.get(model.predict.remote()))


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    broken()
    mended()
