"""A trial that is a Ray Train run of several workers.

The guides start the run in a function, and let Tune kill the process of a trial that a scheduler
has stopped: the workers die with tracebacks, their placement group waits for a helper of Ray
Train's, and the next trial starts all processes anew. Here the trial is a class, which Tune asks to
clean up: its workers stop after their epoch, and its process takes on the next trial.

Source: https://docs.ray.io/en/releases-2.60.0/tune/api/trainable.html and
https://docs.ray.io/en/releases-2.60.0/train/user-guides/hyperparameter-optimization.html
"""

import json
import logging
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray import tune
from ray.train.collective import broadcast_from_rank_zero
from ray_shared import training
from ray_shared.storage import Storage
from ray_shared.tracking import Event, read_new_events

from asha_pbt_tune import objectives
from asha_pbt_tune.config import Config
from asha_pbt_tune.network import Network
from asha_pbt_tune.plan import make_plan, nodes

POLL_S = 0.05


class DistributedTrial(tune.Trainable):
    """One trial: starts its workers in a thread, and passes on what they report."""

    _thread: threading.Thread
    _events: Path
    _position: int
    """In `_events`: up to where it is read."""
    _reported: list[Event]
    """Read, but not passed on yet."""
    _error: str

    def setup(  # type: ignore[override] # The others come from `tune.with_parameters`.
        self, config: dict[str, Any], settings: Config, run_dir: Storage
    ) -> None:
        """Called once in each process.

        Args:
            config: The hyperparameters that were drawn for the first trial.
            settings: The configuration.
            run_dir: Of the study.
        """
        self.settings, self.run_dir = settings, run_dir
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process.

        Raises:
            RuntimeError: If the workers of this one do not end. It is then the next trial that has
                failed, and is tried again in another process.
        """
        self.cleanup()
        if self._thread.is_alive():
            timeout_s = self.settings.failure.report_timeout_s
            key = "failure.report_timeout_s"
            raise RuntimeError(f"the workers of the trial before did not end for {key}={timeout_s}")
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Waits for the next epoch of the workers.

        Raises:
            RuntimeError: If they have ended before.
        """
        while not self._reported:
            ended = not self._thread.is_alive()  # Before the look, which then sees all there is.
            found, self._position = read_new_events(self._events, self._position)
            self._reported += found
            if ended and not found:
                raise RuntimeError(self._error or "the workers ended before their last epoch")
            if not found:
                time.sleep(POLL_S)
        event = self._reported.pop(0)
        return event | {"done": event["epoch"] >= self.settings.train.epochs}

    def cleanup(self) -> None:
        """Lets the workers end by themselves, after their epoch, with their placement group."""
        if self._thread.is_alive():
            self._stop.write_bytes(b"")
            self._thread.join(self.settings.failure.report_timeout_s)
        if self._stop.exists() and not self._thread.is_alive():
            self._stop.delete()
        shutil.rmtree(self._events.parent, ignore_errors=True)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: Ray Train has the checkpoints, under the name of the trial."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, either."""

    def _begin(self, hyperparameters: dict[str, Any]) -> None:
        self._position, self._reported, self._error = 0, [], ""
        self._events = Path(tempfile.mkdtemp(prefix="trial-")) / "events"
        self._stop = self.run_dir.child(f"train/{self.trial_id}.stop")
        if self._stop.exists():  # A study that was killed while it stopped this trial.
            self._stop.delete()
        self._thread = threading.Thread(target=self._train, args=(hyperparameters,), daemon=True)
        self._thread.start()

    def _train(self, hyperparameters: dict[str, Any]) -> None:
        settings, trial = self.settings, self.settings.trial
        training.set_environment(
            local=settings.cluster.mode == "local", start_timeout_s=trial.start_timeout_s
        )
        cpus = make_plan(settings, nodes()).cpus
        loop = {"config": settings, "hyperparameters": hyperparameters, "stop": self._stop}
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config=loop,
            scaling_config=ray.train.ScalingConfig(
                num_workers=trial.num_workers,
                use_gpu=trial.use_gpu,
                resources_per_worker={"CPU": cpus} | ({"GPU": 1.0} if trial.use_gpu else {}),
            ),
            run_config=ray.train.RunConfig(
                # The name makes a trial that is tried again go on from its own checkpoint.
                name=self.trial_id,
                storage_path=self.run_dir.child("train").path,
                storage_filesystem=self.run_dir.filesystem,
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=settings.checkpoint.num_to_keep
                ),
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
                callbacks=[Reports(self._events)],
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - whatever it was: `step` raises it
            self._error = str(error).strip().splitlines()[-1]


class Reports(ray.train.UserCallback):
    """Writes what rank 0 reports into a file; Ray Train runs this on the trial's own node."""

    def __init__(self, path: Path):
        self.path = path

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any | None
    ) -> None:
        """Ray Train's hook."""
        del run_context
        saved = {"checkpoint_path": checkpoint.path} if checkpoint is not None else {}
        with self.path.open("a") as file:
            file.write(json.dumps(metrics[0] | saved) + "\n")


def train_worker(loop: dict[str, Any]) -> None:
    """What each worker of a trial does."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs every report at INFO.
    config: Config = loop["config"]
    stop: Storage = loop["stop"]
    context = ray.train.get_context()
    network = Network(
        config,
        config.objective.hyperparameters | loop["hyperparameters"],
        num_threads=1,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        wrap=ray.train.torch.prepare_model,
    )
    newest = ray.train.get_checkpoint()
    if newest is not None:
        with newest.as_directory() as directory:
            network.load(Path(directory))
        if network.epoch == config.train.epochs:
            # All is done, but the study was killed before it knew.
            event = {"epoch": network.epoch, **network.evaluate("val")}
            ray.train.report(event | {"checkpoint_path": newest.path})
    while network.epoch < config.train.epochs:
        # All workers do the same, so one of them looks.
        if broadcast_from_rank_zero(network.rank == 0 and stop.exists()):
            return
        network.set(objectives.values_at(config, loop["hyperparameters"], network.epoch))
        metrics = network.train_epoch()
        objectives.check_reported(config, metrics)
        event = {"epoch": network.epoch, **metrics}
        checkpoint = None
        if objectives.checkpoint_due(config, network.epoch) and network.rank == 0:
            directory = tempfile.mkdtemp(prefix="checkpoint-")
            network.save(Path(directory))
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(event, checkpoint, delete_local_checkpoint_after_upload=True)
