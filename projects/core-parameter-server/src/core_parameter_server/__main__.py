"""Trains on a sharded parameter server: `python -m core_parameter_server server.mode=ssp`."""

import os

from ray_shared import cluster, config, storage
from ray_shared.report import Report
from ray_shared.runs import RECORD, check_run

from core_parameter_server import checkpoint
from core_parameter_server.config import PROJECT, RAY_DEFAULTS, Config


def demand(cfg: Config) -> cluster.Demand:
    """What workers and shards take."""
    return cluster.Demand(
        num_workers=cfg.scaling.num_workers,
        cpus_per_worker=cfg.scaling.cpus_per_worker,
        extra_cpus=cfg.server.num_shards * cfg.server.cpus_per_shard,
        extra_for="the shards",
    )


def preflight(cfg: Config) -> None:
    """Everything that can be wrong without Ray: room, storage, the run to resume."""
    cluster.check_planned(cfg.cluster, demand(cfg))
    if cfg.action == "tour":
        return
    if cfg.cluster.mode != "existing":
        cpus = cfg.cluster.num_cpus or cluster.available_cpus()
        cfg.check_placement([cpus] * cfg.cluster.num_nodes)
    storage.probe(cfg.storage.path)
    runs = storage.open_storage(cfg.storage.path)
    check_run(cfg.run, runs, cfg.locked(), snapshot=RECORD)
    if cfg.run.name is not None:
        checkpoint.check_newest(runs.child(cfg.run.name), cfg)


@config.main(Config, "core_parameter_server.conf", PROJECT, preflight)
def main(cfg: Config, report: Report) -> None:
    """Connects to the cluster and does what `action` says."""
    # Here, because a wrong key should not cost the seconds of these imports.
    from core_parameter_server import actions, tour

    for variable, value in RAY_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    with cluster.connect(cfg.cluster, demand(cfg), report, "core_parameter_server"):
        if cfg.action == "tour":
            tour.run_tour(cfg.tour, report, cfg.train.seed)
        elif cfg.action == "train":
            actions.train(cfg, report)
        else:
            actions.compare(cfg, report)


if __name__ == "__main__":
    main()
