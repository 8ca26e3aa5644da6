"""Examines a Ray cluster: `python -m ray_doctor cluster=existing cluster.address=10.0.0.1:6379`."""

from ray_shared import cluster, config, storage
from ray_shared.errors import JobError
from ray_shared.report import Report

from ray_doctor.config import PROJECT, Config

NOTHING = cluster.Demand(num_workers=0, cpus_per_worker=1)
"""The doctor's tasks take no CPU: it also looks at a cluster that is full."""


def preflight(cfg: Config) -> None:
    """What can be wrong without Ray."""
    cfg.project_folders()
    storage.open_storage(cfg.storage.path)


@config.main(Config, "ray_doctor.conf", PROJECT, preflight)
def main(cfg: Config, report: Report) -> None:
    """Looks at everything, shows it, and fails if something is wrong."""
    # Here, because a wrong key should not cost the seconds of these imports.
    from ray_doctor import checklist, examination, showing

    checks = checklist.check(cfg.project_folders())
    with cluster.connect(cfg.cluster, NOTHING, report, "ray_doctor"), report.timed("job_s"):
        checks = examination.examine(cfg) + checks
    showing.record(checks, report)
    showing.show(checks)
    failed = [check.name for check in checks if check.status == "failed"]
    if failed:
        count = "1 check" if len(failed) == 1 else f"{len(failed)} checks"
        raise JobError(f"{count} failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
