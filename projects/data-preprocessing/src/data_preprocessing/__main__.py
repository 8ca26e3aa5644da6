"""Prepares trips, trains on them, scores them: `python -m data_preprocessing action=train`."""

import os

from ray_shared import cluster, config, storage
from ray_shared.report import Report
from ray_shared.runs import RECORD, check_run

from data_preprocessing.config import PROJECT, RAY_DEFAULTS, Config


def demand(cfg: Config) -> cluster.Demand:
    """A CPU for a task, or what workers and actors take."""
    if cfg.action == "train":
        scaling = cfg.scaling
        return cluster.Demand(scaling.num_workers, scaling.cpus_per_worker, ray_train=True)
    if cfg.action == "score":
        return cluster.Demand(
            cfg.score.num_actors, cfg.score.cpus_per_actor, key="score.num_actors"
        )
    return cluster.Demand(1, 1)


def preflight(cfg: Config) -> None:
    """Everything that can be wrong without Ray: room, input, zones, storage, the run to resume."""
    from data_preprocessing import earlier, reading, zones

    cluster.check_planned(cfg.cluster, demand(cfg))
    if cfg.data.path is not None:
        reading.find_files(cfg.data.path)
    if cfg.action == "prepare":
        zones.load_zones(cfg.data.zones)
    storage.probe(cfg.storage.path)
    if cfg.action == "score":
        earlier.find_bundle(cfg)
    runs = storage.open_storage(cfg.storage.path)
    check_run(cfg.run, runs, earlier.locked(cfg), snapshot=RECORD)


@config.main(Config, "data_preprocessing.conf", PROJECT, preflight)
def main(cfg: Config, report: Report) -> None:
    """Connects to the cluster and does what `action` says."""
    # Before Ray starts, whose workers inherit them.
    for variable, value in RAY_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    # Here, because a wrong key should not cost the seconds of these imports.
    from data_preprocessing import pipeline, scoring, training

    action = {"prepare": pipeline.prepare, "train": training.train, "score": scoring.score}
    with cluster.connect(cfg.cluster, demand(cfg), report, "data_preprocessing"):
        action[cfg.action](cfg, report)


if __name__ == "__main__":
    main()
