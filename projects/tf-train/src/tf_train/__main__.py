"""Trains a Keras classifier on several workers: `python -m tf_train train.epochs=3`."""

from ray_shared import cluster, config, storage
from ray_shared.report import Report
from ray_shared.runs import TRAIN_SNAPSHOT, check_run

from tf_train.config import PROJECT, Config


def demand(cfg: Config) -> cluster.Demand:
    """What the workers take, and a CPU for Ray Data's tasks if it loads the images."""
    return cluster.Demand(
        num_workers=cfg.scaling.num_workers,
        cpus_per_worker=cfg.scaling.cpus_per_worker,
        gpus_per_worker=1 if cfg.scaling.use_gpu else 0,
        extra_cpus=1 if cfg.data.loader == "ray" else 0,
        ray_train=True,
    )


def preflight(cfg: Config) -> None:
    """Everything that can be wrong without Ray: room, data files, storage, the run to resume."""
    from tf_train import data

    cluster.check_planned(cfg.cluster, demand(cfg))
    data.check_files(cfg.data)
    storage.probe(cfg.storage.path)
    runs = storage.open_storage(cfg.storage.path)
    check_run(cfg.run, runs, cfg.locked(data.fingerprint(cfg.data)))
    if cfg.run.name is not None and runs.child(cfg.run.name).child(TRAIN_SNAPSHOT).exists():
        from tf_train import checkpoint  # Here, because TensorFlow takes seconds to import.

        checkpoint.check_newest(runs.child(cfg.run.name), cfg)


@config.main(Config, "tf_train.conf", PROJECT, preflight)
def main(cfg: Config, report: Report) -> None:
    """Connects to the cluster and trains."""
    # Here, because TensorFlow takes seconds to import, which a wrong key should not cost.
    from tf_train import train

    with cluster.connect(cfg.cluster, demand(cfg), report, "tf_train"):
        train.run(cfg, report)


if __name__ == "__main__":
    main()
