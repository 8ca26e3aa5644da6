"""Ray Train is told to use GPUs that the cluster does not have.

Run: python docs/tests/errors/gpu_train.py /tmp/runs
"""

# ruff: noqa: T201

import os
import sys
import traceback

import ray
import ray.train
from ray.train.torch import TorchTrainer


def train_loop() -> None:
    """Says on which device it would train."""
    device = ray.train.torch.get_device()
    ray.train.report({"device": str(device)})


def fit(use_gpu: bool, controller_failure_limit: int) -> ray.train.Result:
    """Trains with one worker."""
    trainer = TorchTrainer(
        train_loop,
        scaling_config=ray.train.ScalingConfig(
            num_workers=1, use_gpu=use_gpu, resources_per_worker={"CPU": 1, "GPU": int(use_gpu)}
        ),
        run_config=ray.train.RunConfig(
            storage_path=sys.argv[1],
            failure_config=ray.train.FailureConfig(
                controller_failure_limit=controller_failure_limit
            ),
        ),
    )
    return trainer.fit()


def broken() -> None:
    """Fails after the second try; by default it would try again without end."""
    try:
        fit(use_gpu=True, controller_failure_limit=1)
    except ray.train.ControllerError:
        traceback.print_exc()


def mended() -> None:
    """Uses what is there."""
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    fit(use_gpu=has_gpu, controller_failure_limit=-1)
    print("trained, GPU:", has_gpu)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    # Seconds; 60 is the default.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"
    ray.init(address="local", num_cpus=2, num_gpus=0)
    broken()
    mended()
