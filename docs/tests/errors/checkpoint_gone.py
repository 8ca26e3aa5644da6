"""A checkpoint that a run or a program relies on is no longer where it was.

Run: python docs/tests/errors/checkpoint_gone.py run /tmp/runs (or: path)
"""

# ruff: noqa: T201

import sys
import tempfile
import traceback
from pathlib import Path

import ray
import ray.train
from ray.train import Checkpoint
from ray.train.torch import TorchTrainer


def train_loop(config: dict[str, int]) -> None:
    """One epoch after another, from wherever the run's last checkpoint ends."""
    checkpoint = ray.train.get_checkpoint()
    done = 0
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            done = int(Path(directory, "epoch").read_text())
    for epoch in range(done + 1, config["epochs"] + 1):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "epoch").write_text(str(epoch))
            metrics = {"epoch": epoch, "started_after": done}
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))


def fit(name: str, epochs: int) -> ray.train.Result:
    """Trains until so many epochs are done; the same name goes on with the same run."""
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"epochs": epochs},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name=name, storage_path=sys.argv[2]),
    )
    return trainer.fit()


def path() -> None:
    """Reads a checkpoint by a path that is wrong."""
    Checkpoint("/runs/mine/checkpoint_000009").to_directory()


def run() -> None:
    """The run's directory lost its checkpoint: refused. Put back: it goes on.

    Another name is another run: it starts anew, and nothing says so.
    """
    checkpoint = Path(fit("mine", epochs=1).checkpoint.path)
    away = checkpoint.rename(checkpoint.with_name("moved-away"))
    try:
        fit("mine", epochs=2)
    except ray.exceptions.ActorDiedError:
        traceback.print_exc()
    away.rename(checkpoint)
    print("same name:", fit("mine", epochs=2).metrics)
    print("other name:", fit("other", epochs=2).metrics)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] != "path":
        ray.init(address="local", num_cpus=2)
    {"path": path, "run": run}[sys.argv[1]]()
