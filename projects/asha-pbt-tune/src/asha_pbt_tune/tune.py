"""A study with Ray Tune: the file to read.

`run` is the driver: it chooses who proposes hyperparameters (`make_searcher`) and who stops trials
(`make_scheduler`), and hands both to Tune, which runs `train_trial` in a process for each trial
that the cluster has room for, one epoch a report. A trial whose process dies goes on from its
checkpoint; so does a whole study whose driver dies, when it is started again with its name.

    python -m asha_pbt_tune tune.num_trials=24 scheduler=asha

Source: https://docs.ray.io/en/releases-2.60.0/tune/key-concepts.html and
https://docs.ray.io/en/releases-2.60.0/tune/tutorials/tune-fault-tolerance.html
"""

import logging
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune import CheckpointConfig, ResumeConfig
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray_shared.errors import JobError
from ray_shared.report import Report
from ray_shared.runs import record_run, run_name
from ray_shared.storage import Storage, open_storage

from asha_pbt_tune import earlier, memory, objectives, results, schedulers, space
from asha_pbt_tune.config import PROJECT, Config
from asha_pbt_tune.plan import Plan, make_plan, nodes
from asha_pbt_tune.record import Record

logger = logging.getLogger(__name__)
for _name in ("ray.tune", "ray.train"):
    # They have a line for each checkpoint. Not in a function, because in a trial's process they
    # speak before anything of ours is called. What is an error for them is still told, but for the
    # list of failed trials, which `results.finish` gives with the reasons.
    logging.getLogger(_name).setLevel(logging.ERROR)
logging.getLogger("ray.tune.tune").addFilter(
    lambda record: not record.getMessage().startswith("Trials did not complete")
)
# A traceback; `Record.setup` says it in a sentence.
logging.getLogger("ray.tune.execution.tune_controller").addFilter(
    lambda record: not record.getMessage().startswith("Failed to restore the run state")
)
# Another one, where a killed driver has removed a checkpoint but not yet saved that it did.
logging.getLogger("ray.tune.execution.tune_controller").addFilter(
    lambda record: (
        "Error handling checkpoint" not in record.getMessage()
        or not isinstance((record.exc_info or (None, None))[1], FileNotFoundError)
    )
)


def run(config: Config, report: Report) -> None:
    """`action=tune` and `action=train`: a study on the connected cluster; fills `report`.

    Raises:
        JobError: If no trial finished, or more of them failed than is allowed.
    """
    name = run_name(config.run, PROJECT)
    run_dir = open_storage(config.storage.path).child(name)
    record_run(run_dir, config.locked())
    record = Record(config, report.output_dir)
    report.artifacts = {"run": run_dir.uri, "events": str(record.events_path)}
    with report.timed("job_s"):
        try:
            trials = search(config, record, run_dir)
        finally:
            report.metrics = results.summarize(config, record.events)
        results.finish(config, trials, record.events, run_dir, report)


def search(
    config: Config, record: Record, run_dir: Storage, stopper: tune.Stopper | None = None
) -> list[Any]:
    """Runs a study, or the rest of it, on the connected cluster.

    Args:
        config: What to search.
        record: Gets every event.
        run_dir: Where Tune keeps state and checkpoints. If there is a study, it is resumed.
        stopper: Ends it before all its trials are made.

    Returns:
        Tune's trials, those of earlier starts too.
    """
    plan = make_plan(config, nodes())
    resumed = record.resumes = earlier.newest_state(run_dir) is not None
    parent, _, name = run_dir.path.rpartition("/")
    logger.info(
        "study %s: %d trial(s) of %d epochs, %s and %s, %d at a time, %g CPU each%s",
        name,
        config.num_trials,
        config.train.epochs,
        config.searcher,
        config.scheduler.name,
        plan.max_concurrent,
        plan.cpus,
        ", resumed" if resumed else "",
    )
    # PBT and the distributions of Tune draw from these.
    random.seed(config.tune.seed)
    np.random.seed(config.tune.seed)  # noqa: NPY002 - it is theirs
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    memory.trials_die_alone()
    if config.trial.num_workers > 1:
        from asha_pbt_tune.distributed import DistributedTrial  # Here, for it imports torch.

        trainable = tune.with_parameters(DistributedTrial, settings=config, run_dir=run_dir)
    else:
        trainable = tune.with_parameters(train_trial, settings=config)
    # `tune.run` and not `Tuner`: `Tuner.restore` takes scheduler and callbacks out of a pickle of
    # the first start, here they are those of this start.
    analysis = tune.run(
        trainable,
        name=name,
        storage_path=parent,
        storage_filesystem=run_dir.filesystem,
        metric=config.metric,
        mode=config.mode,
        config=make_space(config),
        num_samples=1 if config.searcher == "grid" else config.num_trials,
        search_alg=make_searcher(config, plan),
        scheduler=make_scheduler(config, record),
        resources_per_trial=plan.resources,
        # Trials of the same size take over each other's process: a new one takes seconds to import.
        reuse_actors=True,
        max_failures=config.failure.max_failures,
        checkpoint_config=CheckpointConfig(
            # PBT clones any of them; `results.finish` removes what is not needed any more.
            num_to_keep=None if config.scheduler.name == "pbt" else config.checkpoint.num_to_keep
        ),
        resume_config=ResumeConfig() if resumed else None,
        stop=stopper,
        raise_on_failed_trial=False,
        callbacks=[record],
        trial_dirname_creator=lambda trial: trial.trial_id,
        verbose=0,
    )
    trials = list(analysis.trials)
    record.add_lost(trials)
    if len(trials) < config.num_trials and stopper is None:
        raise JobError(
            f"the study has {len(trials)} of {config.num_trials} trials: its driver was killed "
            "while the state was written; choose another run.name"
        )
    return trials


def make_space(config: Config) -> dict[str, Any]:
    """What Tune draws a trial's hyperparameters from; `action=train` draws none."""
    if config.action == "train":
        return {}
    return space.to_tune(config.space, grid=config.searcher == "grid")


def make_searcher(config: Config, plan: Plan) -> Any:
    """Who proposes hyperparameters."""
    if config.searcher == "optuna" and config.action == "tune":
        points, scores = earlier.warm_start(config)
        optuna_search = schedulers.PruningOptuna(config, points, scores)
        return schedulers.Limited(optuna_search, plan.limit) if plan.limit else optuna_search
    if config.searcher == "grid":
        logger.warning(
            "search=grid trains all %d combinations: random draws or TPE find as good a one with "
            "fewer in all but small spaces",
            config.num_trials,
        )
    return schedulers.Draws(max_concurrent=plan.limit or 0, random_state=config.tune.seed)


def make_scheduler(config: Config, record: Record) -> TrialScheduler:
    """Who stops trials, or lets them take over from each other."""
    if config.action == "train" or config.scheduler.name == "none":
        return FIFOScheduler()
    if config.scheduler.name == "pbt":
        return schedulers.RecordedPBT(config, record)
    return schedulers.asha(config, record)


def unraisable(error: Any) -> None:
    """Python's hook, without one message.

    Ray ends a process that a study has no more trials for by SIGTERM, and answers that with
    SystemExit wherever Python is: inside a callback of a weak reference it is printed as ignored.
    """
    if error.exc_type is not SystemExit:
        sys.__unraisablehook__(error)


def train_trial(hyperparameters: dict[str, Any], settings: Config) -> None:
    """One trial, in a process of its own: an epoch, a report, and so on.

    Args:
        hyperparameters: What was drawn for it.
        settings: The configuration, the same for every trial.
    """
    sys.unraisablehook = unraisable
    cpus = tune.get_context().get_trial_resources().required_resources.get("CPU", 1)
    objective = objectives.build(settings, hyperparameters, max(int(cpus), 1))
    newest = tune.get_checkpoint()
    if newest is not None:
        with newest.as_directory() as directory:
            objective.load(Path(directory))
    while objective.epoch < settings.train.epochs:
        objective.set(objectives.values_at(settings, hyperparameters, objective.epoch))
        metrics = objective.train_epoch()
        objectives.check_reported(settings, metrics)
        event = {"epoch": objective.epoch, **metrics}
        if not objectives.checkpoint_due(settings, objective.epoch):
            tune.report(event)
            continue
        with tempfile.TemporaryDirectory() as directory:
            objective.save(Path(directory))
            tune.report(event, checkpoint=tune.Checkpoint.from_directory(directory))
