"""Runs the projects on Kubernetes: `python -m kuberay_deploy workload=torch-ddp-train`."""

from ray_shared import config
from ray_shared.report import Report

from kuberay_deploy.config import PROJECT, Config


def preflight(cfg: Config) -> None:
    """Everything that can be wrong without a cluster: what is rendered, and what is in files."""
    from kuberay_deploy import actions  # Here: a wrong key should not cost these imports.

    if cfg.action in ("render", "validate", "rehearse", "submit"):
        actions.prepare(cfg)


@config.main(Config, "kuberay_deploy.conf", PROJECT, preflight)
def main(cfg: Config, report: Report) -> None:
    """Does what `action` says."""
    from kuberay_deploy import actions

    if cfg.action == "render":
        actions.render(cfg, report)
    elif cfg.action == "validate":
        actions.validate(cfg, report)
    elif cfg.action == "rehearse":
        actions.rehearse(cfg, report)
    elif cfg.target == "ray":
        actions.on_ray(cfg, report)
    else:
        actions.on_kubernetes(cfg, report)


if __name__ == "__main__":
    main()
