"""The same study with Ray Tune as its user guides write it: a function, a report, a checkpoint.

With `--workers` of two, each trial starts a Ray Train run as the guides do, too.

    python obvious_tune.py --out=result.json objective=torch tune.num_trials=16

Source: https://docs.ray.io/en/releases-2.60.0/tune/getting-started.html and
https://docs.ray.io/en/releases-2.60.0/train/user-guides/hyperparameter-optimization.html
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from asha_pbt_tune import objectives, space
from asha_pbt_tune.config import Config
from asha_pbt_tune.network import Network
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from ray_shared.config import compose


def train(values: dict[str, Any], config: Config) -> None:
    """A trial in one process."""
    objective = objectives.build(config, values, 1)
    while objective.epoch < config.train.epochs:
        metrics = objective.train_epoch() | {"epoch": objective.epoch, "at": time.time()}
        with tempfile.TemporaryDirectory() as directory:
            objective.save(Path(directory))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(directory))


def train_worker(loop: dict[str, Any]) -> None:
    """A worker of a distributed trial."""
    config: Config = loop["config"]
    context = ray.train.get_context()
    network = Network(
        config,
        config.objective.hyperparameters | loop["values"],
        1,
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.torch.get_device(),
        ray.train.torch.prepare_model,
    )
    while network.epoch < config.train.epochs:
        ray.train.report(network.train_epoch() | {"epoch": network.epoch, "at": time.time()})


def train_distributed(values: dict[str, Any], config: Config, workers: int, runs: str) -> None:
    """A trial that is a Ray Train run."""
    ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "values": values},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": 0.75}
        ),
        run_config=ray.train.RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=runs,
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def main() -> None:
    """Runs the study and writes what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    config = compose(Config, "asha_pbt_tune.conf", args.overrides)
    # Not whatever cluster there is on this machine.
    ray.init(address="local")
    asha = ASHAScheduler(
        time_attr="epoch",
        max_t=config.train.epochs,
        grace_period=config.scheduler.grace_epochs,
        reduction_factor=config.scheduler.reduction_factor,
    )
    started = time.time()
    with tempfile.TemporaryDirectory() as runs:
        if args.workers > 1:
            trainable = tune.with_resources(
                tune.with_parameters(
                    train_distributed, config=config, workers=args.workers, runs=f"{runs}/train"
                ),
                {"CPU": 0.5},
            )
        else:
            trainable = tune.with_parameters(train, config=config)
        results = tune.Tuner(
            trainable,
            param_space=space.to_tune(config.space),
            tune_config=tune.TuneConfig(
                metric=config.metric,
                mode=config.mode,
                num_samples=config.tune.num_trials,
                search_alg=OptunaSearch(),
                scheduler=asha if config.scheduler.name == "asha" else None,
                max_concurrent_trials=1 if args.workers > 1 else None,
            ),
            run_config=tune.RunConfig(storage_path=runs),
        ).fit()
        study_s = time.time() - started
        epochs = [
            {"time": row["at"], "score": row[config.metric], "trial": row["trial_id"]}
            for result in results
            if result.metrics_dataframe is not None
            for row in result.metrics_dataframe.to_dict("records")
        ]
    content = {"study_s": study_s, "epochs": epochs, "num_trials": len(results)}
    args.out.write_text(json.dumps(content))
    ray.shutdown()


if __name__ == "__main__":
    main()
