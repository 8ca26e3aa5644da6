"""Overrides of a workload's own command: what may not be among them, and what it does not know.

A wrong one would end the job only after its cluster has started.
"""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from ray_shared.errors import UserError

from kuberay_deploy import serve_config

if TYPE_CHECKING:
    from kuberay_deploy.config import Config

logger = logging.getLogger(__name__)

RENDERED = ("storage", "cluster", "hydra")
"""Keys, with all below them, that are set from keys of this project."""
COMPOSE = """
import json, sys
from importlib import import_module
from ray_shared.config import compose
from ray_shared.errors import UserError
package, overrides = json.loads(sys.argv[1])
schema = import_module(f"{package}.config").Config
try:
    compose(schema, f"{package}.conf", overrides)
except UserError as error:
    print(error)
"""
TIMEOUT_S = 60


def check(config: "Config") -> None:
    """Refuses overrides that are set elsewhere, repeated or, where that can be known, misspelt.

    Raises:
        UserError: Names the override.
    """
    seen: set[str] = set()
    for override in config.overrides:
        key = key_of(override)
        refuse_ours(override, RENDERED)
        if key == "run.name" and config.kind == "cron":
            raise UserError(f"overrides: {override}: each job of kind=cron has a run of its own")
        if key in seen:
            raise UserError(f"overrides: {override}: a second value of {key}: must be one")
        seen |= set() if override.startswith("~") else {key}
    for workload, profile in config.plans() if config.overrides else []:
        if config.kind_of(workload) != "service":  # Whose configuration is read when it is made.
            name = config.job.id if config.target == "ray" else f"{workload}-{profile}"
            given = of_job(config, workload, profile, name)
            # Where it really runs: some values make sense on a cluster that is there only.
            _compose(workload, ["cluster=existing", "cluster.address=head:6379", *given], config)


def of_command(config: "Config") -> list[str]:
    """Those of the workload's command on a running cluster.

    Raises:
        UserError: If one of them is wrong.
    """
    if not config.is_service(config.workload):
        return of_job(config, config.workload, config.profile, config.job.id)
    variant = config.variant(config.workload, config.profile)
    overrides = [*variant.overrides, *config.overrides]
    serve_config.content(config.storage.path, overrides)
    return overrides


def of_job(config: "Config", workload: str, profile: str, name: str | None) -> list[str]:
    """Those of a job, with the name of its run unless they have one; None: no name."""
    overrides = [*config.variant(workload, profile).overrides, *config.overrides]
    # Ray takes an id once. A later job goes on with the run by overrides=["run.name=..."].
    own = any(key_of(override) == "run.name" for override in overrides)
    named = [f"run.name={name}"] if name and not own else []
    return [f"storage.path={config.storage.path}", *named, *overrides]


def refuse_ours(override: str, ours: Sequence[str], below: bool = True) -> None:
    """Refuses an override of one of these keys, or of one below them.

    Args:
        override: Of a workload's command.
        ours: The keys.
        below: Whether keys below them are refused, too.

    Raises:
        UserError: If it is one.
    """
    key = key_of(override)
    if key in ours or (below and re.split("[./]", key)[0] in ours):
        raise UserError(f"overrides: {override}: submitting a job sets {key} itself")


def key_of(override: str) -> str:
    """`train.lr` of `+train.lr=0.1`.

    Raises:
        UserError: If it is no override of Hydra's, or a sweep.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        raise UserError(f"overrides: {override}: must be key=value") from None
    if parsed.is_sweep_override():
        raise UserError(f"overrides: {override}: must be one value: quote a text with commas")
    return str(parsed.key_or_group)


def _compose(workload: str, overrides: list[str], config: "Config") -> None:
    """Composes the workload's configuration, in a process of its own, where its package is.

    Raises:
        UserError: If it refuses them.
    """
    package, source = workload.replace("-", "_"), config.source
    if source is None and importlib.util.find_spec(package) is None:
        logger.info("overrides of %s not checked: it is not installed (source=...)", workload)
        return
    paths = [*([str(Path(source).absolute())] if source else []), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", COMPOSE, json.dumps([package, overrides])],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        logger.info("overrides of %s not checked: %s", workload, done.stderr.strip()[-200:])
    elif done.stdout:
        raise UserError(f"overrides: {workload}: {done.stdout.strip()}")
