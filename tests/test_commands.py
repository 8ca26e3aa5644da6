"""The commands and overrides that the pages tell people to type are right."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .pages import BLOCKS, MODULES, PAGES, TAGS, Block, blocks, job, quoted
from .repository import PROJECTS, ROOT, ids, nox, run

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
# Sessions whose first argument is the name of a project.
WITH_A_NAME = ("faults", "bench", "lock", "new")
NAMES = [*PROJECTS, "shared", "rehearsal", "doctor", "docs", "contracts", "<kebab-name>"]


def nox_commands() -> list[tuple[Path, list[str]]]:
    """Every nox command in a block, with its page."""
    return [(b.path, c) for b in BLOCKS for c in b.commands() if c[0] == "nox"]


def jobs(name: str) -> list[list[str]]:
    """The overrides of a project's job wherever a page shows them."""
    shown = [c for b in BLOCKS for c in b.commands() if c[0] == "nox" or b.tag == "compose-only"]
    shown += [command for page in PAGES.values() for command in quoted(page)]
    return [found[1] for command in shown if (found := job(command)) and found[0] == name]


def quoted_overrides(page: str) -> list[list[str]]:
    """Overrides that stand between backticks in the text: `a.b=1 c.d=2`."""
    return [
        quoted.split()
        for quoted in re.findall(r"`([^`\n]+)`", page)
        if all(re.fullmatch(r"\+?[a-z_.]+=[^\s=]+", word) for word in quoted.split())
    ]


def first_of_sweep(override: str) -> str:
    return override if "[" in override else override.split(",")[0]


def wrong(name: str, lines: list[list[str]]) -> list[str]:
    """Those of the overrides that the project refuses, with its reason."""
    # A preset of the user's own is not there.
    lines = [line for line in lines if not any(x.startswith("--config-dir") for x in line)]
    lines = [[first_of_sweep(x) for x in line if not x.startswith("-")] for line in lines]
    lines = [[x for x in line if x not in ("job", "hydra", "...", "…")] for line in lines]
    owner = "kuberay-deploy" if name == "doctor" else name
    python = ROOT / ".nox" / owner / "bin" / "python"
    module = next(module for module, session in MODULES.items() if session == name)
    argument = json.dumps([module, *lines])
    done = subprocess.run(
        [python, "-c", COMPOSE, argument], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def test_there_are_commands() -> None:
    assert len(nox_commands()) > 30


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_commands_have_a_tag(path: Path) -> None:
    mine = [block for block in BLOCKS if block.path == path]
    assert [b.text for b in mine if b.language != "bash" or not TAGS.fullmatch(b.tag)] == []


@pytest.mark.parametrize("indent", ["", "   "])
@pytest.mark.parametrize("fence", ["bash", "", "bash manual:", "bash manual: no", "sh run"])
def test_command_without_a_tag_would_be_found(fence: str, indent: str) -> None:
    (block,) = blocks(ROOT, f"{indent}```{fence}\n{indent}nox -s new\n{indent}```")
    assert block.language != "bash" or not TAGS.fullmatch(block.tag)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.tag == "compose-only"], ids=str)
def test_only_jobs_are_compose_only(block: Block) -> None:
    assert [command for command in block.commands() if job(command) is None] == []


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    return set(re.findall(r"^[-*] (\S+)", nox("-l").stdout, flags=re.M))


@pytest.mark.parametrize(("path", "command"), nox_commands(), ids=lambda x: str(x)[-60:])
def test_command_names_sessions_and_projects_that_exist(
    path: Path, command: list[str], sessions: set[str]
) -> None:
    if "-s" not in command:
        assert command in (["nox"], ["nox", "-l"]), path
        return
    session, *rest = command[command.index("-s") + 1 :]
    assert session in sessions, path
    if session in WITH_A_NAME and "--" in rest:
        name = rest[rest.index("--") + 1]
        assert name in NAMES or name.startswith("-"), path


@pytest.mark.parametrize("name", MODULES.values())
def test_overrides_on_the_pages_compose(name: str) -> None:
    folder = PROJECTS.get(name, "infra/doctor")
    lines = jobs(name) + quoted_overrides(PAGES[ROOT / folder / "README.md"])
    assert len(lines) > 5
    refused = [x for x in wrong(name, lines) if "pip install mlflow" not in x]
    assert refused == []


@pytest.mark.parametrize("name", PROJECTS)
def test_wrong_override_would_be_found(name: str) -> None:
    (found,) = [job(command) for command in quoted(f"`nox -s {name} -- cluster.nmu_cpus=1`")]
    assert found is not None
    refused = wrong(name, [found[1], *quoted_overrides("type `cluster.nmu_nodes=3` !")])
    assert [x.split("=")[0] for x in refused] == ["cluster.nmu_cpus", "cluster.nmu_nodes"]


RUNNABLE = [block for block in BLOCKS if block.tag == "run"]


def written(place: Path) -> set[tuple[Path, int]]:
    """Every result below a directory, with the time at which it was written."""
    return {(path, path.stat().st_mtime_ns) for path in place.rglob("result.json")}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """A directory for each page: a command may need what the one before it has made."""
    return {path: tmp_path_factory.mktemp("page") / "here" for path in PAGES}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with a `nox` that works from anywhere, and leaves out what every change runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    sessions = re.findall(r"^\* (\S+)", nox("-l").stdout, flags=re.M)
    always = ['""', *(f'"-s {session}"' for session in sessions)]
    script = folder / "nox"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in {"|".join(always)}) echo "run on each change"; exit 0 ;; esac\n'
        f'exec "{sys.executable}" -m nox -f "{ROOT}/noxfile.py" "$@"\n'
    )
    script.chmod(0o755)
    return folder


def num_results(block: Block) -> int:
    """How many jobs its commands run to their end."""
    shows = {"--cfg", "--help"}
    jobs = [c for c in block.commands() if c[0] == "nox" and job(c) and shows.isdisjoint(c)]
    return sum(2 if "-m" in command else 1 for command in jobs)


@pytest.mark.fault  # Not a fault: they take minutes.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", RUNNABLE, ids=[b.title() for b in RUNNABLE])
def test_commands_on_the_pages_run(block: Block, places: dict[Path, Path], programs: Path) -> None:
    place = places[block.path]
    place.mkdir(exist_ok=True)
    before = written(place)
    # A short path, because Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="r-") as ray_tmpdir:
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            # Not in the repository, where the runs would stay; but that is where its tests are.
            ROOT if ".nox/" in block.text else place,
            timeout_s=820,
            env=os.environ | {"PATH": path, "RAY_TMPDIR": ray_tmpdir, "TMPDIR": ray_tmpdir},
        )
    assert done.returncode == 0, done.stdout
    results = [json.loads(path.read_text()) for path, _ in written(place) - before]
    assert [r["status"] for r in results] == ["ok"] * len(results)
    assert len(results) >= num_results(block)
