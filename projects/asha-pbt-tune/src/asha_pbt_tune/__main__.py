"""Searches hyperparameters: `python -m asha_pbt_tune tune.num_trials=24`."""

import dataclasses
import os

from ray_shared import cluster, config, storage
from ray_shared.report import Report
from ray_shared.runs import check_run

from asha_pbt_tune import data, earlier
from asha_pbt_tune.config import PROJECT, Config
from asha_pbt_tune.environment import RAY_DEFAULTS
from asha_pbt_tune.plan import COORDINATOR_CPUS


def demand(cfg: Config) -> cluster.Demand:
    """Room for one trial, or for the workers of one; see `make_plan`."""
    trial, distributed = cfg.trial, cfg.trial.num_workers > 1
    return cluster.Demand(
        num_workers=trial.num_workers,
        cpus_per_worker=trial.cpus or (0.5 if distributed else 1),
        gpus_per_worker=1 if trial.use_gpu else 0,
        extra_cpus=COORDINATOR_CPUS if distributed else 0,
        extra_for="the trial itself",
        key="trial.num_workers",
        ray_train=distributed,
    )


def preflight(cfg: Config) -> None:
    """Everything that can be wrong without Ray: room, files, storage, the study to resume."""
    cluster.check_planned(cfg.cluster, demand(cfg))
    if cfg.objective.path is not None:
        data.check_prepared(cfg.objective.path)
    earlier.warm_start(cfg)
    storage.probe(cfg.storage.path)
    runs = storage.open_storage(cfg.storage.path)
    for state in earlier.states(cfg, runs):
        check_run(cfg.run, runs, cfg.locked(), snapshot=state)


@config.main(Config, "asha_pbt_tune.conf", PROJECT, preflight)
def main(cfg: Config, report: Report) -> None:
    """Connects to the cluster and does what `action` says."""
    for variable, value in RAY_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    # Here, because they take seconds to import, which a wrong key should not cost.
    from asha_pbt_tune import compare, tune

    joined = cfg.cluster
    if cfg.trial.num_workers > 1 and joined.mode == "local":
        # Ray Train frees the workers of a stopped trial with the help of the State API.
        joined = dataclasses.replace(joined, dashboard=True)
    action = {"tune": tune.run, "train": tune.run, "compare": compare.run}
    with cluster.connect(joined, demand(cfg), report, "asha_pbt_tune"):
        action[cfg.action](cfg, report)


if __name__ == "__main__":
    main()
