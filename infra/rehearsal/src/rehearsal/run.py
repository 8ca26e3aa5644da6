"""Starts a rehearsal from outside its namespaces, and brings its result back."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from ray_shared.errors import JobError, UserError, check

from rehearsal import namespaces, pods
from rehearsal.inside import OPTIONS, PICTURE, RESULT, TIMELINE
from rehearsal.manifest import Plan, free_memory, plan
from rehearsal.options import Options
from rehearsal.quantities import naming

logger = logging.getLogger(__name__)
STOP_S = 15.0
"""For a timeline to be written after Ctrl-C."""


def rehearse(options: Options) -> dict[str, Any]:
    """Rehearses a manifest.

    Args:
        options: Which, and how.

    Returns:
        `metrics` (see `timeline.metrics`), `changes` (what was not as in the manifest) and
        `artifacts` (name to path).

    Raises:
        UserError: If this machine cannot do it, or an option or the manifest is wrong.
        JobError: If the job or service failed.
        KeyboardInterrupt: After Ctrl-C; SIGTERM likewise does what it would do without this.
    """
    prepare(options)
    namespaces.check_possible()
    output = make_output(Path(options.output).resolve())
    python = options.python or str(Path(sys.executable).parent)
    inner = replace(
        options,
        manifest=str(Path(options.manifest).resolve()),
        update=str(Path(options.update).resolve()) if options.update else None,
        output=str(output),
        python=str(Path(python).absolute()),
        sources=[str(Path(source).resolve()) for source in options.sources],
        secrets=options.secret_values(),
    )
    command = [sys.executable, "-m", "rehearsal.inside"]
    env = os.environ | {OPTIONS: inner.to_json()}
    with interrupts() as came:
        namespaces.contain(command, env, came.is_set, STOP_S)
    if came.is_set():
        signal.raise_signal(came.signum)  # For whoever handles it outside.
    try:
        result = json.loads((output / RESULT).read_text())
    except OSError:
        raise JobError("the rehearsal ended without a result") from None
    artifacts = {"timeline": TIMELINE, "picture": PICTURE, "logs": "logs", "volumes": "volumes"}
    found = {name: str(output / path) for name, path in artifacts.items()}
    result["artifacts"] = {name: path for name, path in found.items() if Path(path).exists()}
    return dict(result)


def prepare(options: Options) -> None:
    """Finds mistakes that can be seen without starting anything.

    Raises:
        UserError: For each of them.
    """
    secrets = options.secret_values()
    found = [("manifest", plan(options, options.manifest, free_memory()))]
    options.check_for(found[0][1].kind)
    if options.update is not None:
        found.append(("update", plan(options, options.update, free_memory(), "update")))
    for key, each in found:
        ok = each.kind == found[0][1].kind
        check(ok, key, getattr(options, key), f"a file with a {found[0][1].kind}, as manifest is")
        with naming(f"{key}={getattr(options, key)}"):
            check_workload(each)
            groups = [("head", each.cluster["headGroupSpec"])]
            groups += [("worker", group) for group in each.cluster["workerGroupSpecs"]]
            for kind, group in groups:
                with naming(group.get("groupName", kind)):
                    pods.build(each, each.name, kind, group, None, secrets, namespaces.GATEWAY)
    for source in options.sources:
        check(Path(source).is_dir(), "source", source, "a directory")
    if options.python is not None:
        ok = (Path(options.python) / "ray").is_file()
        check(ok, "rehearse.python", options.python, "a directory with the programs python and ray")
    for path in (options.manifest, options.update, options.python, *options.sources):
        check_place(Path(path).resolve() if path else Path("/"))


def check_workload(found: Plan) -> None:
    """Refuses a job that runs nothing, or a service without applications.

    Raises:
        UserError: Names the field.
    """
    required = {"RayJob": ["entrypoint"], "RayService": ["serveConfigV2"]}.get(found.kind, [])
    for field in required:
        if not found.spec.get(field):
            raise UserError(f"spec.{field}: not there: a {found.kind} needs one")
    for field in ("runtimeEnvYAML", "serveConfigV2"):
        try:
            content = yaml.safe_load(found.spec.get(field, "{}"))
        except yaml.YAMLError as error:
            raise UserError(f"spec.{field}: {' '.join(str(error).split())}") from None
        check(isinstance(content, dict), f"spec.{field}", content, "YAML with keys and values")
        if field in required and not content.get("applications"):
            raise UserError(f"spec.{field}: holds no applications: must hold one at least")


def check_place(path: Path) -> None:
    """Refuses a path that nobody sees inside the namespaces.

    Raises:
        UserError: Names it.
    """
    hidden = path.is_relative_to(namespaces.WORK)
    if hidden:
        where = f"outside {namespaces.WORK}, which a rehearsal replaces by one of its own"
        raise UserError(f"{path}: must lie {where}")


def make_output(path: Path) -> Path:
    """Makes the output directory.

    Raises:
        UserError: If it cannot be made, or something is in it: a job would go on from the volumes
            of an earlier rehearsal.
    """
    check_place(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        empty = not any(path.iterdir())
    except OSError as error:
        raise UserError(f"output={path}: {error.strerror}: must be a new directory") from None
    check(empty, "output", path, "a new or an empty directory")
    return path


def raise_for(result: dict[str, Any]) -> None:
    """Does nothing if the rehearsal went well.

    Raises:
        UserError: If the manifest was wrong.
        JobError: If it failed.
    """
    if result.get("mistake"):
        raise UserError(result["error"])
    if result["status"] != "ok":
        raise JobError(result["error"])


class Interrupts(threading.Event):
    """Set when SIGINT or SIGTERM came."""

    signum = 0


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Keeps SIGINT and SIGTERM for the length of a block, and remembers them."""
    came = Interrupts()

    def remember(signum: int, _: object) -> None:
        came.signum = came.signum or signum
        came.set()

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
