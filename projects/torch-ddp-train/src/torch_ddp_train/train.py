"""Distributed training with Ray Train: the file to read.

`run` is the driver: it describes the workers and starts them with `TorchTrainer.fit`.
`train_loop` runs on every worker at the same time; Ray Train has made them one torch process group
(gloo on CPUs, NCCL on GPUs). When a worker dies, Ray Train starts all of them again, and
`train_loop` goes on from the newest checkpoint.

    python -m torch_ddp_train scaling.num_workers=2 train.epochs=3

Source: https://docs.ray.io/en/releases-2.60.0/train/getting-started-pytorch.html and
https://docs.ray.io/en/releases-2.60.0/train/user-guides/fault-tolerance.html
"""

import os
import time
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from ray_shared import training
from ray_shared.report import Report
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage
from ray_shared.tracking import Tracker

from torch_ddp_train import checkpoint as ckpt
from torch_ddp_train import data
from torch_ddp_train.config import PROJECT, Config
from torch_ddp_train.model import build_model
from torch_ddp_train.steps import learning_rate, micro_batches, train_step
from torch_ddp_train.worker import (
    PreemptionWatch,
    Stop,
    Worker,
    evaluate_split,
    finite_sums,
    quiet,
    write_model_bundle,
)

UNRANKED = {"max": -1e30, "min": 1e30}
"""Score of a checkpoint without a metric: inside an epoch nothing has been evaluated."""


def run(config: Config, report: Report) -> None:
    """Trains on the connected cluster and fills `report`.

    Raises:
        JobError: If the loss diverged or workers failed too often.
    """
    local = config.cluster.mode == "local"
    training.set_environment(
        local, config.scaling.start_timeout_s, config.failure.preemption_check_s
    )
    name = run_name(config.run, PROJECT)
    storage = open_storage(config.storage.path)
    run_dir = storage.child(name)
    record_run(run_dir, config.locked())
    tracker = Tracker(config.tracking, report.output_dir, PROJECT, name)
    tracker.start(report.config)

    scaling, checkpoint = config.scaling, config.checkpoint
    num_workers: int | tuple[int, int] = scaling.num_workers
    if scaling.min_workers is not None:  # Elastic: a pair of the fewest and the most.
        num_workers = (scaling.min_workers, scaling.num_workers)
    resources = {"CPU": scaling.cpus_per_worker} | ({"GPU": 1.0} if scaling.use_gpu else {})
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"config": config, "run_dir": run_dir},
        datasets={"train": data.ray_dataset(config.data)} if config.data.loader == "ray" else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=scaling.resize_check_s,
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
        training.finish(outcome, tracker, report)


def train_loop(loop: dict[str, Any]) -> dict[str, Any]:
    """The training loop, on every worker.

    Args:
        loop: `config` (Config) and `run_dir` (Storage).

    Returns:
        What the driver needs to know: the test metrics, or why training stopped. Returned and not
        raised, because Ray Train would answer an exception with another attempt.
    """
    config: Config = loop["config"]
    quiet()
    worker = set_up(config)
    try:
        resume(worker)
        report_start(worker)
        while worker.position.epoch < config.train.epochs:
            metrics = train_epoch(worker)
            metrics |= evaluate_split(worker, "val")
            worker.position.epoch += 1
            worker.position.offset = 0
            report_epoch(worker, metrics)
        return finish(worker, loop["run_dir"])
    except Stop as stop:
        return {"stopped": stop.reason, "step": worker.position.step, "damaged": worker.damaged}


def set_up(config: Config) -> Worker:
    """Data, model and optimizer, the same on every worker."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    images = data.load(config.data)
    torch.manual_seed(config.train.seed)
    module = build_model(config.model, images.shape[0], len(images.classes)).to(device)
    # Moves to the device and wraps in DDP; the gradients live in the buffers that are reduced.
    ddp = {"gradient_as_bucket_view": True}
    model = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=ddp)
    # From here on each rank draws its own dropout.
    torch.manual_seed(config.train.seed + 1000 * (rank + 1))
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=config.train.weight_decay)
    watch = PreemptionWatch(config.failure.preemption_check_s, device)
    position = ckpt.Position()
    return Worker(
        config, rank, world_size, device, images, module, model, optimizer, position, watch
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
    worker.position = ckpt.restore(
        chosen, worker.module, worker.optimizer, worker.rank, worker.device
    )


def first_intact(worker: Worker, checkpoints: list[ray.train.Checkpoint]) -> int:
    """The index of the first whole one of `checkpoints`: rank 0 looks, all take the same.

    Raises:
        Stop: If none is whole.
    """
    if worker.rank == 0:
        worker.damaged = ckpt.damaged_first(checkpoints)
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
    train, position = worker.config.train, worker.position
    epoch_size = len(worker.images.splits["train"].labels)
    sums = torch.zeros(3, device=worker.device)
    data_s = between_s = 0.0
    started = time.perf_counter()
    batches = data.epoch_batches(
        worker.config,
        worker.images.splits["train"],
        worker.rank,
        worker.world_size,
        position.epoch,
        position.offset,
    )
    groups = micro_batches(batches, train.accumulate_steps)
    while True:
        waiting = time.perf_counter()
        group = next(groups, None)
        data_s += time.perf_counter() - waiting
        if group is None:
            break
        step_size = sum(len(labels) for _, labels in group) * worker.world_size
        progress = position.epoch + (position.offset + step_size / 2) / epoch_size
        lr = learning_rate(train, progress, worker.world_size)
        for parameters in worker.optimizer.param_groups:
            parameters["lr"] = lr
        step_sums = train_step(
            worker.model, worker.optimizer, group, train, worker.normalization, worker.device
        )
        sums += step_sums
        position.step += 1
        position.offset += step_size
        worker.first_step_at = worker.first_step_at or time.time()
        stepped = time.perf_counter()
        after_step(worker, step_sums, lr)
        between_s += time.perf_counter() - stepped
    loss_sum, correct, count = finite_sums(sums)
    train_s = time.perf_counter() - started - between_s
    if count == 0:
        return {}
    return {
        "lr": lr,
        "train_loss": loss_sum / count,
        "train_accuracy": correct / count,
        "num_images": int(count),
        "samples_per_s": count / train_s,
        "train_s": train_s,
        "data_s": data_s,
    }


def after_step(worker: Worker, sums: torch.Tensor, lr: float) -> None:
    """What happens between two steps: a report, a checkpoint, a look for preempted nodes."""
    config, step = worker.config, worker.position.step
    if config.tracking.every_steps and step % config.tracking.every_steps == 0:
        loss_sum, _, count = finite_sums(sums)
        event = {"event": "step", "step": step, "loss": loss_sum / count, "lr": lr}
        # Not in the background: the run may not get ahead of what it says.
        ray.train.report(event)
    due = config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0
    # A stream cannot start in the middle: nothing to save inside an epoch.
    preempted = config.data.loader == "torch" and worker.watch.look()
    if due or preempted:
        finite_sums(sums)
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
    score = metrics.get(config.metric, UNRANKED[config.mode])
    better = max if config.mode == "max" else min
    best = position.best_metric
    position.best_metric = score if best is None else better(best, score)
    event = {"event": "epoch", "epoch": position.epoch, "step": position.step, **metrics}
    event |= {"score": score, "first_step_at": worker.first_step_at}
    last = position.epoch == worker.config.train.epochs
    if last or (config.every_epochs and position.epoch % config.every_epochs == 0):
        save(worker, event)
    else:
        ray.train.report(event, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)


def save(worker: Worker, event: dict[str, Any]) -> None:
    """Takes a snapshot, and reports it while it is uploaded in the background.

    Ray Train counts a checkpoint once every rank has uploaded its part; until then the one before
    stays the newest.
    """
    started = time.perf_counter()
    # The loss was computed before the last update, which may have spoilt the weights.
    if not all(torch.isfinite(weight).all() for weight in worker.module.parameters()):
        raise Stop("diverged")
    worker.position.world_size = worker.world_size
    checkpoint = ckpt.save(
        worker.module, worker.optimizer, worker.position, worker.rank, worker.device
    )
    event["save_s"] = time.perf_counter() - started
    ray.train.report(event, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)


def finish(worker: Worker, run_dir: Storage) -> dict[str, Any]:
    """Tests the best checkpoint and writes it as a bundle.

    Returns:
        `accuracy`, `loss` (on the test images), `best_epoch` and `bundle` (its URI).
    """
    reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    sign = 1 if worker.config.checkpoint.mode == "max" else -1
    ranked = sorted(reported, key=lambda r: (sign * r.metrics["score"], r.metrics["step"]))[::-1]
    best = ranked[first_intact(worker, [r.checkpoint for r in ranked])]
    ckpt.load_weights(best.checkpoint, worker.module, worker.device)
    test = evaluate_split(worker, "test")
    metrics = {"accuracy": test["test_accuracy"], "loss": test["test_loss"]}
    bundle_dir = run_dir.child("bundle")
    if worker.rank == 0:
        write_model_bundle(worker, metrics, bundle_dir)
    return metrics | {"best_epoch": best.metrics["epoch"], "bundle": bundle_dir.uri}
