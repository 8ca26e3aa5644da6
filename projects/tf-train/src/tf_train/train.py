"""Distributed Keras training with Ray Train: the file to read.

`run` is the driver: it describes the workers and starts them with `TensorflowTrainer.fit`.
`train_loop` runs on every worker at the same time. When they have started, `GroupConfig` tells each
of them in `TF_CONFIG` where the others are, and MultiWorkerMirroredStrategy makes them one group,
with equal weights. When a worker dies, Ray Train starts all of them again, and `train_loop` goes on
from the newest checkpoint.

    python -m tf_train scaling.num_workers=2 train.epochs=3

Source: https://docs.ray.io/en/releases-2.60.0/train/distributed-tensorflow-keras.html and
https://docs.ray.io/en/releases-2.60.0/train/user-guides/fault-tolerance.html
"""

import logging
import os
import time
from typing import Any

import numpy as np
import ray.train
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from ray_shared import training
from ray_shared.report import Report, versions
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage
from ray_shared.tracking import Tracker

from tf_train import checkpoint as ckpt
from tf_train import data, export, feeding
from tf_train.backend import keras, tf  # Before ray.train.tensorflow, which imports it noisily.
from tf_train.config import PROJECT, Config
from tf_train.group import GroupConfig
from tf_train.model import build_model
from tf_train.steps import Steps
from tf_train.worker import (
    Deadline,
    PreemptionWatch,
    Stop,
    Worker,
    evaluate_split,
    finite,
    finite_weights,
    stops_early,
)

# Ray's own trainer; what of Keras it would bring along, `backend` has loaded already.
import ray.train.tensorflow  # isort: skip

UNRANKED = {"max": -1e30, "min": 1e30}
"""Score of a checkpoint without a metric: inside an epoch nothing has been evaluated."""


def run(config: Config, report: Report) -> None:
    """Trains on the connected cluster and fills `report`.

    Raises:
        JobError: If the loss diverged, workers failed too often, or an exported model is wrong.
    """
    local, scaling, checkpoint = config.cluster.mode == "local", config.scaling, config.checkpoint
    training.set_environment(local, scaling.start_timeout_s, config.failure.preemption_check_s)
    # A process that has stopped answers no question of the controller's; Ray would wait 600 s.
    timeout_s = str(config.train.step_timeout_s)
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", timeout_s)
    name = run_name(config.run, PROJECT)
    storage = open_storage(config.storage.path)
    run_dir = storage.child(name)
    record_run(run_dir, config.locked(data.fingerprint(config.data)))
    tracker = Tracker(config.tracking, report.output_dir, PROJECT, name)
    tracker.start(report.config)

    resources = {"CPU": scaling.cpus_per_worker} | ({"GPU": 1.0} if scaling.use_gpu else {})
    trainer = ray.train.tensorflow.TensorflowTrainer(
        train_loop,
        train_loop_config={"config": config, "run_dir": run_dir, "versions": versions(PROJECT)},
        tensorflow_config=GroupConfig(),
        datasets={"train": data.ray_dataset(config)} if config.data.loader == "ray" else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=checkpoint.num_to_keep,
                checkpoint_score_attribute="score",
                checkpoint_score_order=checkpoint.mode,
            ),
            failure_config=ray.train.FailureConfig(max_failures=config.failure.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=[tracker],
        ),
    )
    with training.recorded(tracker, report, run_dir), report.timed("job_s"):
        training.show_run(name, run_dir, scaling)
        with tracker.follow(training.show_progress):
            outcome = trainer.fit()
        export.reload(config, run_dir, outcome.return_value or {})
        training.finish(outcome, tracker, report)


def train_loop(loop: dict[str, Any]) -> dict[str, Any]:
    """The training loop, on every worker.

    Args:
        loop: `config` (Config), `run_dir` (Storage) and `versions` (of the libraries).

    Returns:
        What the driver needs to know: the test metrics, or why training stopped. Returned and not
        raised, because Ray Train would answer an exception with another attempt.
    """
    config: Config = loop["config"]
    # Ray Train logs every report at INFO, under the root logger.
    logging.getLogger().setLevel(logging.WARNING)
    with Deadline(config.train.step_timeout_s) as deadline:
        worker = set_up(config, deadline)
        try:
            resume(worker)
            report_start(worker)
            while worker.position.epoch < config.train.epochs and not stops_early(worker):
                metrics = train_epoch(worker)
                metrics |= evaluate_split(worker, "val")
                worker.position.epoch += 1
                worker.position.offset = 0
                report_epoch(worker, metrics)
            return finish(worker, loop["run_dir"], loop["versions"])
        except Stop as stop:
            return {"stopped": stop.reason, "step": worker.position.step, "damaged": worker.damaged}


def set_up(config: Config, deadline: Deadline) -> Worker:
    """Strategy, data, model and optimizer, the same on every worker."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    threads = max(1, int(config.scaling.cpus_per_worker))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    # Waits for the other workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    images = data.load(config.data)
    with strategy.scope():  # Every variable that is made here exists on all workers.
        model = build_model(
            config.model,
            config.data.shape,
            config.data.num_classes,
            images.mean,
            images.std,
            config.train.precision,
            config.train.seed,
        )
        optimizer = keras.optimizers.AdamW(0.0, weight_decay=config.train.weight_decay)
        optimizer.build(model.trainable_variables)
    split = images.splits["train"] if config.data.loader == "memory" else None
    steps = Steps(strategy, model, optimizer, config.train.clip_norm, config.data.shape, split)
    watch = PreemptionWatch(config.failure.preemption_check_s, steps, world_size)
    position = ckpt.Position()
    return Worker(
        config, rank, world_size, images, model, optimizer, steps, position, deadline, watch
    )


def resume(worker: Worker) -> None:
    """Loads the newest intact checkpoint of the run, if it has checkpoints.

    Raises:
        Stop: If it has, but none is intact.
    """
    newest = ray.train.get_checkpoint()
    if newest is None:
        return
    reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    older = sorted(reported, key=lambda r: r.metrics["step"], reverse=True)
    checkpoints = [newest, *(r.checkpoint for r in older if r.checkpoint.path != newest.path)]
    chosen = checkpoints[first_intact(worker, checkpoints)]
    worker.position = ckpt.restore(chosen, worker.model, worker.optimizer)


def first_intact(worker: Worker, checkpoints: list[ray.train.Checkpoint]) -> int:
    """The index of the first whole one of `checkpoints`: rank 0 looks, all take the same.

    Raises:
        Stop: If none is whole.
    """
    if worker.rank == 0:
        worker.damaged = ckpt.damaged_first(checkpoints, worker.model)
    index: int = broadcast_from_rank_zero(len(worker.damaged))
    if index == len(checkpoints):
        raise Stop("damaged")
    return index


def train_epoch(worker: Worker) -> dict[str, float]:
    """Trains to the end of the current epoch.

    Returns:
        Metrics over all workers, and this worker's seconds. Nothing, if the run resumes from a
        checkpoint that was taken after the last step of the epoch.

    Raises:
        Stop: If the loss is not finite.
    """
    total = np.zeros(3)
    between_s = 0.0
    started = time.perf_counter()
    loader = {"memory": feeding.from_memory, "ray": feeding.from_ray_data}
    worker.deadline.start()
    for sums, lr in loader[worker.config.data.loader](worker):
        worker.deadline.stop()
        finite(sums)
        total += sums
        worker.first_step_at = worker.first_step_at or time.time()
        stepped = time.perf_counter()
        after_steps(worker, sums, lr)
        between_s += time.perf_counter() - stepped
        worker.deadline.start()
    worker.deadline.stop()
    train_s = time.perf_counter() - started - between_s
    loss_sum, correct, count = total
    if count == 0:
        return {}
    return {
        "lr": lr,
        "train_loss": loss_sum / count,
        "train_accuracy": correct / count,
        "num_images": int(count),
        "samples_per_s": count / train_s,
        "train_s": train_s,
    }


def after_steps(worker: Worker, sums: np.ndarray, lr: float) -> None:
    """What happens between two calls: a report, a checkpoint, a look for preempted nodes."""
    config, step = worker.config, worker.position.step
    if config.tracking.every_steps and step % config.tracking.every_steps == 0:
        event = {"event": "step", "step": step, "loss": float(sums[0] / sums[2]), "lr": lr}
        # Not in the background: the run may not get ahead of what it says.
        ray.train.report(event)
    due = config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0
    # A stream cannot start in the middle: nothing to save inside an epoch.
    watched = config.cluster.mode != "local" and config.data.loader == "memory"
    preempted = watched and worker.watch.look(step)
    if due or preempted:
        event = {"event": "checkpoint", "step": step, "epoch": worker.position.epoch}
        save(worker, event | {"preempted": preempted, "score": UNRANKED[config.checkpoint.mode]})


def report_start(worker: Worker) -> None:
    """Tells the driver who trains, and from where."""
    event = {"event": "start", "step": worker.position.step, "epoch": worker.position.epoch}
    event |= {"num_workers": worker.world_size, "damaged": worker.damaged}
    event |= {"epochs": worker.config.train.epochs}
    node = ray.get_runtime_context().get_node_id()
    ray.train.report(event | {"worker": {"rank": worker.rank, "pid": os.getpid(), "node": node}})


def report_epoch(worker: Worker, metrics: dict[str, float]) -> None:
    """Reports an epoch, with a checkpoint if one is due."""
    config, position = worker.config.checkpoint, worker.position
    score = metrics[config.metric]
    sign = 1 if config.mode == "max" else -1
    if position.best_metric is None or sign * score > sign * position.best_metric:
        position.best_metric, position.best_epoch = score, position.epoch
    event = {"event": "epoch", "epoch": position.epoch, "step": position.step, **metrics}
    event |= {"score": score, "first_step_at": worker.first_step_at}
    train = worker.config.train
    due = config.every_epochs and position.epoch % config.every_epochs == 0
    # Whoever stops early wants the best epoch, and not the best of every few.
    best = train.early_stopping_epochs and position.epoch == position.best_epoch
    if due or best or position.epoch == train.epochs or stops_early(worker):
        save(worker, event)
    else:
        ray.train.report(event, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)


def save(worker: Worker, event: dict[str, Any]) -> None:
    """Takes a snapshot, and reports it while it is uploaded in the background.

    The chief alone writes it, all workers report: until they have, the one before stays the newest.

    Raises:
        Stop: If a weight is not finite.
    """
    started = time.perf_counter()
    # The loss was computed before the last update, which may have spoilt the weights.
    if not finite_weights(worker.model):
        raise Stop("diverged")
    checkpoint = None
    if worker.rank == 0:
        checkpoint = ckpt.save(worker.model, worker.optimizer, worker.position)
    event["save_s"] = time.perf_counter() - started
    ray.train.report(event, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)


def finish(worker: Worker, run_dir: Storage, versions: dict[str, str]) -> dict[str, Any]:
    """Tests the best checkpoint and exports it.

    Returns:
        `accuracy`, `loss` (on the test images), `best_epoch`, and from rank 0 `passed_over`, a line
        for each damaged checkpoint that was better, and `predictions`: what the model says of the
        first test images; float32 [N, classes].
    """
    reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    sign = 1 if worker.config.checkpoint.mode == "max" else -1
    ranked = sorted(reported, key=lambda r: (sign * r.metrics["score"], r.metrics["step"]))[::-1]
    best = ranked[first_intact(worker, [r.checkpoint for r in ranked])]
    ckpt.load_weights(best.checkpoint, worker.model)
    test = evaluate_split(worker, "test")
    metrics = {"accuracy": test["test_accuracy"], "loss": test["test_loss"]}
    returned: dict[str, Any] = metrics | {"best_epoch": best.metrics["epoch"]}
    if worker.rank == 0:
        images = worker.images.splits["test"].images
        returned["passed_over"] = worker.damaged
        returned["predictions"] = export.write(
            worker.model, worker.config, metrics, versions, images, run_dir
        )
    return returned
