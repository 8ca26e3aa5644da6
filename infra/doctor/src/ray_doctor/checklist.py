"""What a project needs in production, read from its files: nothing of it is imported or run."""

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray_doctor.check import Check, failed, first_line, listed, not_checked, ok, warning
from ray_doctor.resources import remote

PINNED = re.compile(r"[A-Za-z0-9._-]+==[^\s;]+(\s*;.*)?")
WATCHES = re.compile(r"PodMonitor|ServiceMonitor|scrape_configs|scrapeConfigs|\"panels\"")
Found = tuple[bool | None, str]
"""Right, wrong, or neither, as it does not apply; and the words for it."""


def check(projects: Sequence[Path]) -> list[Check]:
    """The checklist of some projects, one line for each item.

    Args:
        projects: Their folders.
    """
    if not projects:
        return [not_checked("checklist", "no project here: doctor.project=PATH names one")]
    configs = {project: configuration(project) for project in projects}
    items: list[tuple[str, Callable[[Path], Found], str]] = [
        (
            "resources stated",
            resources,
            "state num_cpus, num_gpus or resources there: Ray's default is one CPU or none.",
        ),
        (
            "checkpoints on",
            lambda p: checkpoints(configs[p]),
            "set one of checkpoint.every_... above 0 in conf/config.yaml.",
        ),
        (
            "retries on",
            lambda p: retries(configs[p]),
            "set failure.max_failures above 0, or to -1, in conf/config.yaml.",
        ),
        (
            "no grid search",
            lambda p: search(p, configs[p]),
            "take random or Optuna's search as default: a grid grows with each value of each key.",
        ),
        (
            "pinned lock",
            lock,
            "write requirements.lock with == for every package (nox -s lock).",
        ),
    ]
    checks = [_judge(name, item, hint, projects) for name, item, hint in items]
    hint = "add a Prometheus configuration or PodMonitor and a Grafana dashboard in monitoring/."
    return [*checks, _judge("monitoring", monitoring, hint, projects, warning)]


def configuration(project: Path) -> dict[str, Any] | str:
    """The project's default configuration; or why it cannot be composed."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    files = sorted(project.glob("src/*/conf/config.yaml"))
    if not files:
        return "no src/*/conf/config.yaml"
    # Hydra is one for the process, and has been set up for the doctor's own configuration.
    own = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(files[0].parent.resolve()), version_base="1.3"):
            found: Any = OmegaConf.to_container(compose("config"), resolve=False)
    except Exception as error:  # noqa: BLE001 - whatever is wrong there: it is what is looked for
        return f"{files[0].name} does not compose: {first_line(error)}"
    finally:
        GlobalHydra.instance().hydra = own
    return found if isinstance(found, dict) else "no mapping"


def parsed(path: Path) -> ast.AST:
    """A module's syntax tree; in whatever encoding it says that it is."""
    return ast.parse(path.read_bytes(), str(path))


def resources(project: Path) -> Found:
    """Whether all that is remote states its resources."""
    lines, count = [], 0
    for path in sorted(project.glob("src/**/*.py")):
        for line, lacks in remote(parsed(path)):
            count += 1
            if lacks:
                lines.append(f"{path.relative_to(project)}:{line}")
    if lines:
        return False, listed(lines)
    return (True, f"{count} places") if count else (None, "nothing remote in it")


def checkpoints(config: dict[str, Any] | str) -> Found:
    """Whether the default configuration saves anything."""
    if isinstance(config, str):
        return False, config
    group = config.get("checkpoint")
    if not isinstance(group, dict):
        return None, "no group checkpoint"
    every = {k: v for k, v in group.items() if k.startswith("every_")}
    shown = ", ".join(f"checkpoint.{key}={value}" for key, value in every.items())
    return any(every.values()), shown or "no checkpoint.every_..."


def retries(config: dict[str, Any] | str) -> Found:
    """Whether the default configuration tries again after a failure."""
    if isinstance(config, str):
        return False, config
    group = config.get("failure")
    if not isinstance(group, dict) or "max_failures" not in group:
        return None, "no failure.max_failures"
    return bool(group["max_failures"]), f"failure.max_failures={group['max_failures']}"


def search(project: Path, config: dict[str, Any] | str) -> Found:
    """Whether Tune searches by grid without being asked to."""
    group = config.get("search") if isinstance(config, dict) else None
    if isinstance(group, dict) and (kind := group.get("name")) is not None:
        return kind != "grid", f"search={kind}"
    calls = [
        f"{path.relative_to(project)}:{node.lineno}"
        for path in sorted(project.glob("src/**/*.py"))
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("grid_search")
    ]
    why = "does not search" if group is None else "no search.name"
    return (False, listed(calls)) if calls else (None, why)


def lock(project: Path) -> Found:
    """Whether every package has one version."""
    path = project / "requirements.lock"
    if not path.is_file():
        return False, "no requirements.lock"
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    loose = [x for x in lines if x and not x.startswith("#") and not PINNED.fullmatch(x)]
    if loose:
        return False, f"not pinned: {listed(loose)}"
    return True, f"{sum(bool(x) and not x.startswith('#') for x in lines)} packages"


def monitoring(project: Path) -> Found:
    """Whether anything reads the metrics: of the project, or of the repository it lies in."""
    repository = project.parent.parent
    folders = [project / "monitoring", *(p / "infra" / "monitoring" for p in (project, repository))]
    files = [
        path
        for folder in folders
        for path in sorted(folder.glob("**/*"))
        if path.suffix in (".json", ".yaml", ".yml")
        and WATCHES.search(path.read_text(errors="replace"))
    ]
    if not files:
        return False, "no Prometheus configuration, no dashboard"
    places = dict.fromkeys("/".join(path.parts[-3:-1]) for path in files)
    return True, f"{len(files)} files in {', '.join(places)}"


def _judge(
    name: str,
    item: Callable[[Path], Found],
    hint: str,
    projects: Sequence[Path],
    wanting: Callable[[str, str, str], Check] = failed,
) -> Check:
    found = {}
    for project in projects:
        try:
            found[project.name] = item(project)
        except SyntaxError as error:
            where = f"{Path(error.filename or '').name}:{error.lineno}"
            found[project.name] = False, f"{where}: no Python: {error.msg}"
    wrong = [f"{project}: {words}" for project, (right, words) in found.items() if right is False]
    if wrong:
        return wanting(name, listed(wrong), hint)
    right = [f"{project}: {words}" for project, (right, words) in found.items() if right]
    if not right:
        return not_checked(name, listed([f"{p}: {words}" for p, (_, words) in found.items()]))
    if len(projects) == 1:
        return ok(name, right[0])
    elsewhere = sorted(project for project, (right, _) in found.items() if right is None)
    rest = f"; does not apply to {', '.join(elsewhere)}" if elsewhere else ""
    return ok(name, f"in {len(right)} project(s){rest}")
