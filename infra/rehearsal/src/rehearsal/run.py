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

from ray_shared.errors import JobError, UserError, check

from rehearsal import namespaces, pods
from rehearsal.inside import OPTIONS, PICTURE, RESULT, TIMELINE
from rehearsal.manifest import free_memory, plan
from rehearsal.options import Options

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
    output = Path(options.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    (output / RESULT).unlink(missing_ok=True)
    python = options.python or str(Path(sys.executable).parent)
    inner = replace(
        options,
        manifest=str(Path(options.manifest).resolve()),
        update=str(Path(options.update).resolve()) if options.update else None,
        output=str(output),
        python=str(Path(python).absolute()),
        sources=[str(Path(source).resolve()) for source in options.sources],
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
    for path in filter(None, (options.manifest, options.update)):
        found = plan(options, path, free_memory())
        for group in found.cluster["workerGroupSpecs"]:
            pods.build(found, found.name, "worker", group, None, options.secrets)
        head = found.cluster["headGroupSpec"]
        pods.build(found, found.name, "head", head, None, options.secrets)
    for source in options.sources:
        check(Path(source).is_dir(), "rehearse.sources", source, "a directory")
    if options.python is not None:
        ok = (Path(options.python) / "ray").is_file()
        check(ok, "rehearse.python", options.python, "a directory with the programs python and ray")


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


__all__ = ["Options", "UserError", "prepare", "raise_for", "rehearse"]
