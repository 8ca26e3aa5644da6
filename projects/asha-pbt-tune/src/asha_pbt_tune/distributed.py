"""A trial that is a Ray Train run of several workers.

Source: https://docs.ray.io/en/releases-2.60.0/train/user-guides/hyperparameter-optimization.html
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray_shared import training
from ray_shared.storage import Storage

from asha_pbt_tune import objectives
from asha_pbt_tune.config import Config
from asha_pbt_tune.network import Network
from asha_pbt_tune.plan import make_plan


def train_trial(hyperparameters: dict[str, Any], config: Config, run_dir: Storage) -> None:
    """One trial: starts the workers and passes their reports on to Tune."""
    trial = config.trial
    training.set_environment(
        local=config.cluster.mode == "local", start_timeout_s=trial.start_timeout_s
    )
    cpus = make_plan(config, ray.cluster_resources()).cpus
    resources = {"CPU": cpus} | ({"GPU": 1.0} if trial.use_gpu else {})
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "hyperparameters": hyperparameters},
        scaling_config=ray.train.ScalingConfig(
            num_workers=trial.num_workers, use_gpu=trial.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            # The name makes a trial that is tried again go on from its own checkpoint.
            name=tune.get_context().get_trial_id(),
            storage_path=f"{run_dir.path}/train",
            storage_filesystem=run_dir.filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.checkpoint.num_to_keep),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def train_worker(loop: dict[str, Any]) -> None:
    """What each worker of a trial does."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs every report at INFO.
    config: Config = loop["config"]
    context = ray.train.get_context()
    values = config.objective.hyperparameters | loop["hyperparameters"]
    network = Network(
        config,
        values,
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
    while network.epoch < config.train.epochs:
        network.set(objectives.values_at(config, loop["hyperparameters"], network.epoch))
        event = {**network.train_epoch(), "epoch": network.epoch, "pid": os.getpid()}
        checkpoint = None
        if objectives.checkpoint_due(config, network.epoch) and network.rank == 0:
            directory = tempfile.mkdtemp(prefix="checkpoint-")
            network.save(Path(directory))
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(event, checkpoint, delete_local_checkpoint_after_upload=True)
