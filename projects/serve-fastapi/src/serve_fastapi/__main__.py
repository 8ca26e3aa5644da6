"""Serves models over HTTP: `python -m serve_fastapi serve.block=true`."""

from ray_shared import cluster, config, storage
from ray_shared.report import Report

from serve_fastapi import security
from serve_fastapi.config import PROJECT, Config
from serve_fastapi.environment import check_port, environment


def demand(cfg: Config) -> cluster.Demand:
    """Room for the fewest replicas of each deployment."""
    scale = cfg.scale
    stages = 0 if scale.fused else 3 * scale.stages.num_cpus * scale.stages.min
    return cluster.Demand(
        num_workers=max(scale.ingress.min, 1),
        cpus_per_worker=scale.ingress.num_cpus or 0.01,
        extra_cpus=stages,
        extra_for="the stages",
        key="scale.ingress.min",
    )


def preflight(cfg: Config) -> None:
    """Everything that can be wrong without Ray: keys, port, models, the room for replicas."""
    if cfg.starts_application:
        security.check_keys(cfg.serve, cfg.security)
        check_port(cfg)
        if not cfg.models.bundles and cfg.cluster.mode != "existing":
            storage.probe(cfg.storage.path)  # The small models are made there.
        cluster.check_planned(cfg.cluster, demand(cfg))
    elif cfg.action == "load_test":
        security.read_keys(cfg.security.keys_env, cfg.security.keys_file)
    if cfg.models.bundles:
        from serve_fastapi import models  # Here, because NumPy takes time to import.

        models.find(cfg.models.bundles)


@config.main(Config, "serve_fastapi.conf", PROJECT, preflight)
def main(cfg: Config, report: Report) -> None:
    """Does what `action` says."""
    with environment(cfg):  # Before anything imports Ray Serve.
        from serve_fastapi import actions

        if cfg.action == "config":
            actions.write_config(cfg, report)
        elif cfg.starts_application:
            with cluster.connect(cfg.cluster, demand(cfg), report, "serve_fastapi"):
                actions.run(cfg, report)
        else:
            actions.measure(cfg, str(cfg.load.address), report)


if __name__ == "__main__":
    main()
