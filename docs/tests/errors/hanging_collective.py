"""One rank leaves out a collective operation, and the others wait for it.

Run: python docs/tests/errors/hanging_collective.py broken /tmp/runs
(or, instead of broken: mended, report)
"""

# ruff: noqa: T201

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer


def train_loop(config: dict[str, Any]) -> None:
    """Adds a number over all ranks; reports it."""
    rank = ray.train.get_context().get_world_rank()
    Path(config["directory"], f"pid{rank}").write_text(str(os.getpid()))
    total = torch.tensor(1.0)
    if rank == 0 or config["all_add"]:
        torch.distributed.all_reduce(total)
    if rank == 0 or config["all_report"]:
        ray.train.report({"total": total.item()})


def fit(**config: bool) -> None:
    """Trains with two workers."""
    directory = sys.argv[2]
    torch_config = TorchConfig(backend="gloo", timeout_s=15)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"directory": directory, **config},
        torch_config=torch_config,
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=directory),
    )
    trainer.fit()
    print("every rank took part")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    # Seconds; by default Ray Train's own collectives warn every 60 s and wait without end.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = "8" if "report" in sys.argv[1] else "60"
    os.environ["RAY_TRAIN_COLLECTIVE_WARN_INTERVAL_S"] = "3"
    ray.init(address="local", num_cpus=2)
    if sys.argv[1] == "report":
        try:
            fit(all_add=True, all_report=False)
        except ray.train.WorkerGroupError:
            traceback.print_exc()
    fit(all_add=sys.argv[1] != "broken", all_report=True)
