"""A job that needs no training: `python -m tiny_job action=ok`."""

from ray_shared import config
from ray_shared.errors import JobError, UserError
from ray_shared.report import Report
from tiny_job.config import Config


def preflight(cfg: Config) -> None:
    """Refuses a file that is not there."""
    if cfg.action == "no_file":
        raise UserError("data.path=none: must be a file")


@config.main(Config, "tiny_job.conf", "tiny-job", preflight)
def main(cfg: Config, report: Report) -> None:
    """Does what `action` says."""
    if cfg.action == "raise":
        raise RuntimeError("first line\nsecond line")
    if cfg.action == "job_error":
        raise JobError("the loss is not finite after step 7")
    if cfg.action == "user_error":
        raise UserError("cluster.address=x: no cluster answers there")
    if cfg.action == "exit":
        raise SystemExit(0)  # What Ray Train's `fit` makes of Ctrl-C.
    if cfg.action == "ok":
        report.metrics["epochs"] = cfg.train.epochs
        report.show(report.metrics)
        return
    from tiny_job import actions

    getattr(actions, cfg.action)(cfg, report)


if __name__ == "__main__":
    main()
