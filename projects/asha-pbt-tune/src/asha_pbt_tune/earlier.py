"""What is known before a study begins: what others have left, and what a comparison consists of."""

import dataclasses
import math
from typing import Any

from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage, reason_of

from asha_pbt_tune import space
from asha_pbt_tune.config import Config
from asha_pbt_tune.hyperparameters import VARIANTS

KEY = "search.warm_start"
STATE = "experiment_state-"
"""How Tune names the files that make a study one that can be resumed, but for their times."""


def newest_state(run_dir: Storage) -> str | None:
    """The name of the file that Tune would resume the study from; None if it has not begun."""
    return max((name for name in run_dir.names() if name.startswith(STATE)), default=None)


def states(config: Config, runs: Storage) -> list[str]:
    """The states in the directory of the run, of one study or of those that are compared.

    Raises:
        UserError: If a variant to compare does not go with the rest of the configuration.
    """
    parts = [""]
    if config.action == "compare":
        for variant in config.compare.variants:
            variant_of(config, variant, config.tune.seed)
        seeds = range(config.tune.seed, config.tune.seed + config.compare.num_seeds)
        parts = [f"{variant}-{seed}/" for seed in seeds for variant in config.compare.variants]
    if config.run.name is None:
        return [STATE]
    run_dir = runs.child(config.run.name)
    newest = {part: newest_state(run_dir.child(part) if part else run_dir) for part in parts}
    return [part + state for part, state in newest.items() if state] or [STATE]


def warm_start(config: Config) -> tuple[list[dict[str, Any]], list[float]]:
    """The finished trials of `search.warm_start` that lie inside the space, with their scores.

    Raises:
        UserError: If the file cannot be read, is of another metric, or has no such trial.
    """
    path = config.search.warm_start
    if path is None:
        return [], []
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = open_storage(path, retries=2, key=KEY)
    try:
        # Without a thread: one that Arrow has begun may abort a process that ends at once.
        parquet = pq.ParquetFile(pa.BufferReader(file.read_bytes()), pre_buffer=False)
        table = parquet.read(use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        why = reason_of(error)
        raise UserError(f"{KEY}={path}: no trials.parquet that can be read: {why}") from None
    metric = (table.schema.metadata or {}).get(b"metric", b"").decode()
    if metric != config.metric:
        raise UserError(f"{KEY}={path}: its score is {metric or 'unknown'}, not {config.metric}")
    searched = [name for name, entry in config.space.items() if isinstance(entry, dict)]
    searched_space = {name: config.space[name] for name in searched}
    points, scores = [], []
    for row in table.to_pylist():
        point = {name: row[name] for name in searched if row.get(name) is not None}
        known = row["fate"] == "finished" and math.isfinite(row["score"])
        if known and space.contains(searched_space, point):
            points.append(point)
            scores.append(float(row["score"]))
    if not points:
        raise UserError(f"{KEY}={path}: none of its finished trials lies inside the space")
    return points, scores


def variant_of(config: Config, variant: str, seed: int) -> Config:
    """The same study, searched in another way.

    Schedulers that stop trials may begin as many as the epochs allow.
    """
    search, scheduler = VARIANTS[variant]
    budget = config.tune.num_trials * config.train.epochs
    num_trials = config.tune.num_trials
    if scheduler == "asha":
        num_trials = budget // config.scheduler.grace_epochs
    return dataclasses.replace(
        config,
        action="tune",
        search=dataclasses.replace(config.search, name=search),
        scheduler=dataclasses.replace(config.scheduler, name=scheduler),
        tune=dataclasses.replace(config.tune, num_trials=num_trials, seed=seed),
    )
