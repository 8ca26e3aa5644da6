"""PyTorch is told to use a GPU that it cannot see.

Run: python docs/tests/errors/gpu_torch.py
"""

# ruff: noqa: T201

import traceback

import ray


@ray.remote(num_cpus=1)
def on_cuda() -> str:
    """Takes a GPU for granted."""
    import torch

    return str(torch.zeros(1, device="cuda").device)


@ray.remote(num_cpus=1)
def on_what_is_there() -> str:
    """Asks first."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return str(torch.zeros(1, device=device).device)


def broken() -> None:
    """Fails in the task."""
    try:
        print("device:", ray.get(on_cuda.remote()))
    except (AssertionError, RuntimeError):
        traceback.print_exc()


def mended() -> None:
    """Runs anywhere."""
    print("device:", ray.get(on_what_is_there.remote()))


if __name__ == "__main__":
    ray.init(address="local", num_cpus=1, include_dashboard=False)
    broken()
    mended()
