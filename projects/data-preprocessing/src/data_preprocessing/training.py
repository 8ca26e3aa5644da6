"""A gradient-boosted model of trip durations, trained by several workers with Ray Train.

Each worker reads its share of the prepared rows once, as 32-bit floats, and keeps it as XGBoost's
own quantized matrix, about one byte a value. The workers grow every tree together: they add up
their histograms of gradients, so that the model is that of one process with all rows.

Why files, and not `get_dataset_shard`: a stream that Ray Data splits gives workers equal shares by
leaving rows out, or all rows in whatever shares; and each start of a run would deal them anew.

    python -m data_preprocessing action=train

Source: https://docs.ray.io/en/releases-2.60.0/train/getting-started-xgboost.html
"""

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.xgboost
import xgboost as xgb
from ray.train import CheckpointUploadMode
from ray_shared.bundle import Bundle, write_bundle
from ray_shared.errors import JobError
from ray_shared.report import Report, versions
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage
from ray_shared.tracking import Tracker
from ray_shared.training import set_environment, why

from data_preprocessing import earlier, output, results
from data_preprocessing.config import PROJECT, Config
from data_preprocessing.features import LABEL, Preprocessor
from data_preprocessing.shares import check_shares, read_slices, share

logger = logging.getLogger(__name__)
MODEL = "model.ubj"
STOPPED = "stopped_early"
"""Attribute of a model that would not get better."""


def train(config: Config, report: Report) -> None:
    """`action=train`: trains on the connected cluster and fills `report`.

    Raises:
        UserError: If there are not enough rows for the workers.
        JobError: If workers failed too often.
    """
    set_environment(config.cluster.mode == "local", config.scaling.start_timeout_s)
    name = run_name(config.run, PROJECT)
    storage = open_storage(config.storage.path)
    run_dir = storage.child(name)
    dataset, manifest = earlier.find_dataset(config)
    check_shares(config, manifest)
    record_run(run_dir, earlier.locked(config))
    tracker = Tracker(config.tracking, report.output_dir, PROJECT, name)
    tracker.start(report.config)
    preprocessor = read_preprocessor(dataset, manifest)
    trainer = ray.train.xgboost.XGBoostTrainer(
        train_loop,
        train_loop_config={
            "config": config,
            "run_dir": run_dir,
            "dataset": dataset.child(manifest["attempt"]),
            "files": manifest["files"],
            "preprocessor": preprocessor,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scaling.num_workers,
            resources_per_worker={"CPU": config.scaling.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.checkpoint.num_to_keep),
            failure_config=ray.train.FailureConfig(max_failures=config.failure.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=[tracker],
        ),
    )
    with results.recorded(tracker, report, run_dir), report.timed("job_s"):
        logger.info("run %s: %d worker(s) on %s", name, config.scaling.num_workers, dataset.uri)
        try:
            with tracker.follow(results.show_round):
                outcome = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise JobError(why(error)) from error
        returned: dict[str, Any] = outcome.return_value or {}
        starts = [e for e in tracker.events() if e["event"] == "start"]
        report.artifacts |= {"bundle": returned.pop("bundle"), "dataset": dataset.uri}
        report.metrics |= returned | {"restarts": max(len(starts) - 1, 0)}
        output.commit_model(run_dir, report.metrics)
        results.show_model(report)


def read_preprocessor(dataset: Storage, manifest: dict[str, Any]) -> Preprocessor:
    """The preprocessor that a prepared run has fitted."""
    file = dataset.child(manifest["attempt"]).child("preprocessor.json")
    return Preprocessor.from_json(file.read_bytes())


def train_loop(loop: dict[str, Any]) -> dict[str, Any]:
    """The training loop, on every worker.

    Args:
        loop: `config`, `run_dir` (Storage), `dataset` (Storage) with its `files` as the manifest
            lists them, and `preprocessor`.

    Returns:
        Metrics and the bundle's URI, the same on every worker.
    """
    # Ray Train logs every report at INFO, under the root logger.
    logging.getLogger().setLevel(logging.WARNING)
    config: Config = loop["config"]
    preprocessor: Preprocessor = loop["preprocessor"]
    context = ray.train.get_context()
    newest = ray.train.get_checkpoint()
    before = load_model(newest) if newest is not None else None
    rounds_done = before.num_boosted_rounds() if before is not None else 0
    rank, world_size = context.get_world_rank(), context.get_world_size()
    worker = {"rank": rank, "pid": os.getpid()}
    ray.train.report({"event": "start", "step": rounds_done, "worker": worker})

    started = time.perf_counter()
    params = {
        "objective": "reg:squarederror",
        "tree_method": "hist",
        "max_depth": config.train.max_depth,
        "eta": config.train.lr,
        "max_bin": config.train.max_bin,
        "seed": config.train.seed,
        "nthread": max(int(config.scaling.cpus_per_worker), 1),
    }

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        slices = share(loop["files"], split, rank, world_size)
        return read_slices(loop["dataset"], slices, preprocessor.features)

    matrices: dict[str, xgb.DMatrix] = {}
    for split in ("train", "val"):
        features, labels = read(split)
        matrices[split] = xgb.QuantileDMatrix(
            features,
            labels,
            feature_names=preprocessor.features,
            max_bin=config.train.max_bin,
            nthread=params["nthread"],
            # The validation rows fall into the bins of the training rows.
            ref=matrices.get("train"),
        )
    read_s = time.perf_counter() - started
    booster = before
    stopped = before is not None and before.attr(STOPPED) is not None
    if rounds_done < config.train.num_rounds and not stopped:
        booster = xgb.train(
            params,
            matrices["train"],
            num_boost_round=config.train.num_rounds - rounds_done,
            evals=[(matrices["train"], "train"), (matrices["val"], "val")],
            xgb_model=before,
            callbacks=[Rounds(config)],
            verbose_eval=False,
        )
    assert booster is not None
    train_s = time.perf_counter() - started - read_s
    metrics = finish(booster, preprocessor, read("test"), loop["run_dir"])
    return metrics | {"read_s": read_s, "train_s": train_s}


class Rounds(xgb.callback.TrainingCallback):
    """After each boosting round: is it the best one, is it the last, is a checkpoint due?

    The best round is an attribute of the model, so that a resumed run stops where an undisturbed
    one does; XGBoost's own early stopping begins to count anew. And Ray's own callback reports
    every round: each report lets the workers wait for each other and for the controller, which
    took longer than the round.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.patience = config.train.early_stopping_rounds
        self.every, self.last_round = config.checkpoint.every_rounds, config.train.num_rounds

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:  # noqa: ARG002
        """XGBoost's hook.

        Args:
            model: The booster.
            epoch: Rounds of this start before.
            evals_log: Every RMSE of this start, by `train` and `val`.

        Returns:
            Whether to stop.
        """
        rmse = {name: values["rmse"][-1] for name, values in evals_log.items()}
        done, stop = model.num_boosted_rounds(), False
        if self.patience:
            best = model.attr("best_score")
            if best is None or rmse["val"] < float(best):
                # The names that XGBoost gives them.
                model.set_attr(best_score=str(rmse["val"]), best_iteration=str(done - 1))
            stop = done - 1 - int(model.attr("best_iteration")) >= self.patience
        if stop:
            model.set_attr(**{STOPPED: "true"})
        if stop or done % self.every == 0 or done == self.last_round:
            event = {"event": "round", "step": done}
            save(model, event | {f"{name}_rmse": value for name, value in rmse.items()})
        return stop


def save(model: xgb.Booster, event: dict[str, Any]) -> None:
    """Reports an event, with the model as checkpoint; every rank has the same one, rank 0 saves."""
    checkpoint = None
    if ray.train.get_context().get_world_rank() == 0:
        directory = tempfile.mkdtemp(prefix="checkpoint-")
        model.save_model(Path(directory) / MODEL)
        checkpoint = ray.train.Checkpoint.from_directory(directory)
    ray.train.report(
        event,
        checkpoint,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


def load_model(checkpoint: ray.train.Checkpoint) -> xgb.Booster:
    """The model of a checkpoint."""
    with checkpoint.as_directory() as directory:
        return xgb.Booster(model_file=Path(directory) / MODEL)


def finish(
    booster: xgb.Booster,
    preprocessor: Preprocessor,
    test: tuple[np.ndarray, np.ndarray],
    run_dir: Storage,
) -> dict[str, Any]:
    """Tests the best model beside the median of the training labels, and writes it as a bundle."""
    best = booster.attr("best_iteration")
    rounds = booster.num_boosted_rounds() if best is None else int(best) + 1
    features, labels = test
    model = booster[:rounds]
    predicted = model.inplace_predict(features) if len(labels) else labels
    median = preprocessor.state["label_median"]
    squares = [np.square(labels - p, dtype=np.float64).sum() for p in (predicted, median)]
    # Over all workers, like the histograms of the trees.
    sums = xgb.collective.allreduce(np.array([len(labels), *squares]), op=xgb.collective.Op.SUM)
    metrics = {
        "rmse": float(np.sqrt(sums[1] / sums[0])),
        "rmse_of_median": float(np.sqrt(sums[2] / sums[0])),
        "rounds": rounds,
        "test_rows": int(sums[0]),
    }
    bundle_dir = run_dir.child("bundle")
    if ray.train.get_context().get_world_rank() == 0:
        write_model_bundle(model, preprocessor, metrics, bundle_dir)
    return metrics | {"bundle": bundle_dir.uri}


def write_model_bundle(
    model: xgb.Booster, preprocessor: Preprocessor, metrics: dict[str, float], target: Storage
) -> None:
    """Writes model and preprocessor where another project finds them."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_model(Path(directory) / MODEL)
        bundle = Bundle(
            framework="xgboost",
            task="regression",
            features=[{"name": n, "dtype": "float32", "shape": []} for n in preprocessor.features],
            classes=[],
            model={"file": MODEL, "label": LABEL, "unit": "minutes"},
            preprocessor=preprocessor.state,
            metrics=metrics,
            versions=versions(PROJECT),
        )
        write_bundle(Path(directory), bundle)
        target.upload(Path(directory))
