"""The commands and overrides that the pages tell people to type are right."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .repository import PROJECTS, ROOT, ids, nox, package, texts

PAGES = texts("*.md")
COMPOSE = """
import json, sys
from importlib import import_module
from ray_shared.config import compose
from ray_shared.errors import UserError
package, *lines = json.loads(sys.argv[1])
for overrides in lines:
    try:
        compose(import_module(f"{package}.config").Config, f"{package}.conf", overrides)
    except UserError as error:
        print(" ".join(overrides), "->", error)
"""


def commands(page: str) -> list[list[str]]:
    """The nox commands in a page's code blocks."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", page, flags=re.S | re.M)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(x, comments=True) for x in lines if re.match(r"nox\b", x)]


def jobs(name: str, page: str) -> list[list[str]]:
    """The arguments of the commands in a page that run a project's job."""
    start = ["nox", "-s", name, "--"]
    return [c[len(start) :] for c in commands(page) if c[: len(start)] == start]


def quoted_overrides(page: str) -> list[list[str]]:
    """Overrides that stand between backticks in the text: `a.b=1 c.d=2`."""
    return [
        quoted.split()
        for quoted in re.findall(r"`([^`\n]+)`", page)
        if all(re.fullmatch(r"\+?[a-z_.]+=[^\s=]+", word) for word in quoted.split())
    ]


def first_of_sweep(override: str) -> str:
    return override.split(",")[0]


def wrong(name: str, lines: list[list[str]]) -> list[str]:
    """Those of the overrides that the project refuses, with its reason."""
    lines = [[first_of_sweep(x) for x in line if not x.startswith("-")] for line in lines]
    lines = [[x for x in line if x not in ("job", "hydra")] for line in lines]
    python = ROOT / ".nox" / name / "bin" / "python"
    argument = json.dumps([package(ROOT / PROJECTS[name]), *lines])
    done = subprocess.run(
        [python, "-c", COMPOSE, argument], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    return set(re.findall(r"^[-*] (\S+)", nox("-l").stdout, flags=re.M))


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES.values()) > 10


@pytest.mark.parametrize("path", PAGES, ids=[ids(p) for p in PAGES])
def test_commands_name_sessions_and_projects_that_exist(path: Path, sessions: set[str]) -> None:
    for command in commands(PAGES[path]):
        if "-s" in command:
            session, *rest = command[command.index("-s") + 1 :]
            assert session in sessions, command
            if session in ("faults", "bench", "lock", "new") and "--" in rest:
                assert rest[rest.index("--") + 1] in [*PROJECTS, "shared", "<kebab-name>"], command
        else:
            assert command in (["nox"], ["nox", "-l"]), command


@pytest.mark.parametrize("name", PROJECTS)
def test_overrides_on_the_pages_compose(name: str) -> None:
    own = PAGES[ROOT / PROJECTS[name] / "README.md"]
    lines = [line for page in PAGES.values() for line in jobs(name, page)]
    lines += quoted_overrides(own)
    assert len(lines) > 5
    refused = [x for x in wrong(name, lines) if "pip install mlflow" not in x]
    assert refused == []


@pytest.mark.parametrize("name", PROJECTS)
def test_wrong_override_would_be_found(name: str) -> None:
    page = "```bash\nnox -s " + name + " -- cluster.nmu_cpus=1\n```\ntype `cluster.nmu_nodes=3` !"
    refused = wrong(name, jobs(name, page) + quoted_overrides(page))
    assert [x.split("=")[0] for x in refused] == ["cluster.nmu_cpus", "cluster.nmu_nodes"]


def runnable() -> list[tuple[str, list[str]]]:
    """The job commands of the first page and of each project's, as far as this machine can."""
    found = []
    elsewhere = ("cluster=existing", "data.path=")  # A cluster, files that a user has.
    for name, folder in PROJECTS.items():
        for page in (PAGES[ROOT / "README.md"], PAGES[ROOT / folder / "README.md"]):
            found += [
                (name, x) for x in jobs(name, page) if not any(a.startswith(elsewhere) for a in x)
            ]
    return found


def written(place: Path) -> set[tuple[Path, int]]:
    """Every result below a directory, with the time at which it was written."""
    return {(path, path.stat().st_mtime_ns) for path in place.rglob("result.json")}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory for each project: a command may need what the one before it has made."""
    return {name: tmp_path_factory.mktemp(name) for name in PROJECTS}


@pytest.mark.fault  # Not a fault: they take minutes.
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "args"), runnable(), ids=[" ".join(a) for _, a in runnable()])
def test_commands_on_the_readmes_run(name: str, args: list[str], places: dict[str, Path]) -> None:
    place = places[name]
    before = written(place)
    # Not in the repository, where the runs would stay.
    command = [sys.executable, "-m", "nox", "-f", str(ROOT / "noxfile.py"), "-s", name, "--", *args]
    # A short path, because Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="r-") as ray_tmpdir:
        done = subprocess.run(
            command,
            cwd=place,
            env=os.environ | {"RAY_TMPDIR": ray_tmpdir, "TMPDIR": ray_tmpdir},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path, _ in written(place) - before]
    assert [r["status"] for r in results] == ["ok"] * len(results)
    if "--cfg" not in args:
        assert len(results) == (2 if "-m" in args else 1)
