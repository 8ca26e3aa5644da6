"""`action=rehearse`: a manifest run on this machine, each pod in Linux namespaces of its own.

The package `rehearsal` does it, where it is installed; it needs Linux and root.
"""

import dataclasses
import importlib
import importlib.util
import re
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from ray_shared.errors import UserError, check
from ray_shared.report import Report

if TYPE_CHECKING:
    from kuberay_deploy.config import Config

FILE = "manifest.yaml"
# A job as in production, with so few workers as a machine has room for; a service without Redis.
DEFAULT_PROFILES = {"job": "prod", "service": "dev"}
STEPS = "tracking.every_steps"
"""The key of a workload with which it reports its steps, so that those done again are counted."""
PER_WORKERS = "scaling.num_workers="
"""Begins the override of a workload that counts by the number of its pods."""


@dataclass
class RehearseConfig:
    """action=rehearse: what goes wrong, and what is not as in the manifest."""

    kill: str | None
    """Which pod is killed, and when: `worker@20s`, `head@20s` (seconds after the job or service
    runs with such a pod ready), `worker@step30` (once a job has reported this step); null: none."""
    reclaim: str | None
    """The same for a spot node that is taken back: SIGTERM, SIGKILL after `notice_s`."""
    partition: str | None
    """The same for a pod whose network link goes down."""
    notice_s: float
    """reclaim: seconds that the cloud gives. At least 0."""
    min_workers: int | None
    """Workers of each group at the start and at least; null: as the manifest says."""
    max_workers: int | None
    """Workers of each group at most, at least 1; null: as the manifest says."""
    memory_factor: float | None
    """By which memory is multiplied, in (0, 1]; null: as much as this machine has room for."""
    idle_timeout_s: float | None
    """Seconds until an idle worker goes; null: as the manifest says."""
    timeout_s: float
    """Seconds for all of it. More than 0."""
    update: str | None
    """RayService: a manifest to which it is updated, while requests come."""
    load: str | None
    """RayService: the path that is requested all the time, such as `/healthz`; null: none."""
    secrets: list[str]
    """`name/key=value` or `name/key=@file` for each secret that the manifest refers to; only the
    latter keeps it out of Hydra's files. Those of a workload of this repository are made up where
    they are not given."""
    python: str | None
    """Directory with the programs `python` and `ray` in place of the image's; null: this
    environment's."""

    def __post_init__(self) -> None:
        check(self.notice_s >= 0, "rehearse.notice_s", self.notice_s, ">= 0")
        check(self.timeout_s > 0, "rehearse.timeout_s", self.timeout_s, "> 0")
        for name, least in (("min_workers", 0), ("max_workers", 1)):
            value = getattr(self, name)
            check(value is None or value >= least, f"rehearse.{name}", value, f">= {least}")
        for each in self.secrets:
            ok = re.fullmatch(r"[^/=]+/[^/=]+=.*", each) is not None
            check(ok, "rehearse.secrets", each.partition("=")[0], "a list of name/key=value")


def check_config(config: "Config") -> None:
    """Refuses what cannot be rehearsed.

    Raises:
        UserError: Names the key.
    """
    if config.manifest is None:
        check(config.workload != "all", "workload", config.workload, "one workload, or manifest=")
        check(config.kind != "cron", "kind", config.kind, "auto, cluster, job or service")


def prepare(config: "Config") -> None:
    """Finds the package, and mistakes in the options and the manifest, before anything starts.

    Raises:
        UserError: For each of them.
    """
    if importlib.util.find_spec("rehearsal") is None:
        raise UserError(
            "action=rehearse: the package ray-ref-rehearsal is not installed: install "
            "infra/rehearsal of the reference monorepo into this environment"
        )
    run = importlib.import_module("rehearsal.run")
    with tempfile.TemporaryDirectory() as directory:
        run.prepare(_options(config, Path(directory)))


def rehearse(config: "Config", report: Report) -> dict[str, Any]:
    """Runs the manifest; the rows to show.

    Raises:
        UserError: If this machine cannot do it.
        JobError: If the job or service failed.
    """
    run = importlib.import_module("rehearsal.run")
    names = [each.partition("=")[0] for each in config.rehearse.secrets]
    report.config["rehearse"] |= {"secrets": [f"{name}=..." for name in names]}
    with report.timed("job_s"):
        result = run.rehearse(_options(config, report.output_dir))
    report.metrics |= result["metrics"] | {"changes": result["changes"]}
    report.artifacts |= result["artifacts"]
    run.raise_for(result)
    return {name: value for name, value in result["metrics"].items() if value is not None}


def _options(config: "Config", directory: Path) -> Any:
    """The rehearsal's options; writes the manifest into the directory unless one is given."""
    options = importlib.import_module("rehearsal.options")
    chosen = config.rehearse
    given = dataclasses.asdict(chosen)
    wanted = {kind: given.pop(kind) for kind in options.FAULTS}
    faults = [f"{kind}={when}" for kind, when in wanted.items() if when is not None]
    given["secrets"] = dict(each.split("=", 1) for each in chosen.secrets)
    manifest, sources = config.manifest, []
    if manifest is None:
        given["secrets"] = _made_up(config) | given["secrets"]
        manifest = str(directory / FILE)
        Path(manifest).write_text(_rendered(config))
        sources = _sources(config)
    elif config.source is not None:
        sources = [config.source]
    output = str(directory / "rehearsal")
    return options.Options(
        manifest=manifest, output=output, faults=faults, sources=sources, **given
    )


def _rendered(config: "Config") -> str:
    """The workload's manifest with so many workers as are rehearsed, and as many asked for."""
    from kuberay_deploy import overrides, render

    described = config.describe(config.workload)
    profile = config.profile
    if profile == "all":
        profile = DEFAULT_PROFILES[described.kind]
    variant, most = described.variant(profile), config.rehearse.max_workers
    if variant.workers == 0:
        raise UserError(f"profile={profile}: there is no such variant of {config.workload}")
    if config.kind_of(config.workload) == "job" and tracks_steps(config):
        given = {overrides.key_of(each) for each in [*variant.overrides, *config.overrides]}
        if STEPS not in given:
            more = [*variant.overrides, f"{STEPS}=1"]
            variant = dataclasses.replace(variant, overrides=more)
    if most is not None and most < variant.workers:
        variant = dataclasses.replace(
            variant,
            workers=most,
            max_workers=min(variant.max_workers, most),
            overrides=[_fewer(each, most, variant.workers) for each in variant.overrides],
        )
    change: dict[str, Any] = {profile: variant}
    smaller: dict[str, Any] = {
        config.workload.replace("-", "_"): dataclasses.replace(described, **change)
    }
    workloads = dataclasses.replace(config.workloads, **smaller)
    small = dataclasses.replace(config, workloads=workloads)
    return render.to_yaml(*render.render(render.make_plan(small, config.workload, profile)))


def _fewer(override: str, workers: int, before: int) -> str:
    key, value = PER_WORKERS, override.removeprefix(PER_WORKERS)
    if not override.startswith(key) or not value.isdigit():
        return override
    return f"{key}{max(1, int(value) * workers // before)}"


def _made_up(config: "Config") -> dict[str, str]:
    described = config.describe(config.workload)
    return {source: secrets.token_hex(16) for source in described.secrets.values()}


def tracks_steps(config: "Config") -> bool:
    """Whether the workload's configuration has the group `tracking`."""
    package = config.workload.replace("-", "_")
    sources = _sources(config)
    found = importlib.util.find_spec(package) if not sources else None
    if found is not None and found.submodule_search_locations:
        folder = Path(found.submodule_search_locations[0])
    else:
        folder = Path(*sources, package)
    file = folder / "conf" / "config.yaml"
    defaults = yaml.safe_load(file.read_text()).get("defaults", []) if file.is_file() else []
    return any("tracking" in each for each in defaults if isinstance(each, dict))


def _sources(config: "Config") -> list[str]:
    """Where the workload's package lies, unless it is installed."""
    package = config.workload.replace("-", "_")
    if config.source is not None:
        return [config.source]
    if importlib.util.find_spec(package) is not None:
        return []
    folder = Path("projects") / config.workload / "src"
    ok = (folder / package).is_dir()
    check(ok, "source", None, f"the directory with {package}: it is neither installed nor {folder}")
    return [str(folder)]
