"""Trains a classifier on several workers: `python -m torch_ddp_train train.epochs=3`."""

from ray_shared import cluster, config, storage
from ray_shared.report import Report
from ray_shared.runs import check_run

from torch_ddp_train import data, train
from torch_ddp_train.config import Config


def preflight(cfg: Config) -> None:
    """Everything that can be wrong without Ray: data files, storage, the run to resume."""
    data.check_files(cfg.data)
    storage.probe(cfg.storage.path)
    check_run(cfg.run, storage.open_storage(cfg.storage.path), train.locked(cfg))


@config.main(Config, "torch_ddp_train.conf", train.PROJECT, preflight)
def main(cfg: Config, report: Report) -> None:
    """Connects to the cluster and trains."""
    demand = cluster.Demand(
        num_workers=cfg.scaling.min_workers or cfg.scaling.num_workers,
        cpus_per_worker=cfg.scaling.cpus_per_worker,
        gpus_per_worker=1 if cfg.scaling.use_gpu else 0,
        extra_cpus=1 if cfg.data.loader == "ray" else 0,
    )
    with cluster.connect(cfg.cluster, demand, report, "torch_ddp_train"):
        train.run(cfg, report)


if __name__ == "__main__":
    main()
