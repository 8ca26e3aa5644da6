"""The training loop raises an exception.

Run: python docs/tests/errors/loop_exception.py /tmp/runs
"""

# ruff: noqa: T201

import sys
import traceback
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer


def train_loop(loop: dict[str, Any]) -> float:
    """Returns one of its losses."""
    losses = {"train": 0.5, "val": 0.7}
    return losses[loop["split"]]


def fit(split: str) -> ray.train.Result:
    """Trains with two workers; nothing is tried again."""
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"split": split},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            storage_path=sys.argv[1], failure_config=ray.train.FailureConfig(max_failures=0)
        ),
    )
    return trainer.fit()


def broken() -> None:
    """A misspelt key."""
    try:
        fit("vall")
    except ray.train.WorkerGroupError as error:
        traceback.print_exc()
        print("ranks:", sorted(error.worker_failures))


def mended() -> None:
    """The right one."""
    print("loss:", fit("val").return_value)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    ray.init(address="local", num_cpus=2)
    broken()
    mended()
