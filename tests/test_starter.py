"""A copied starter is complete, stands alone, and passes its own `nox`."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .repository import PROJECTS, ROOT, nox, package

NAME = next(iter(PROJECTS))
IMPORT = """
import sys
from importlib import import_module
from pathlib import Path
from ray_shared.config import compose
package, folder = sys.argv[1:]
for path in sorted(Path(folder, "src", package).glob("*.py")):
    name = f"{package}.{path.stem}".removesuffix(".__init__")
    found = import_module(name).__file__
    assert found.startswith(folder), f"{name} comes from {found}"
assert import_module("ray_shared").__file__.startswith(folder)
compose(import_module(f"{package}.config").Config, f"{package}.conf", [])
"""


@pytest.fixture(scope="module", params=PROJECTS)
def name(request: pytest.FixtureRequest) -> str:
    project: str = request.param
    return project


@pytest.fixture(scope="module")
def starter(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("starter") / "my-own"
    done = nox("-s", "new", "--", name, str(target))
    assert done.returncode == 0, done.stdout
    return target


def content(starter: Path) -> dict[str, Path]:
    paths = [p for p in starter.rglob("*") if p.is_file() and ".git" not in p.parts]
    return {path.relative_to(starter).as_posix(): path for path in paths}


def test_starter_has_every_file_it_needs(name: str, starter: Path) -> None:
    project = package(ROOT / PROJECTS[name])
    needed = {
        *("README.md", "LICENSE", ".gitignore", ".pre-commit-config.yaml", "noxfile.py"),
        *("pyproject.toml", "requirements.lock", ".github/workflows/ci.yml"),
        *(f"src/{project}/__main__.py", f"src/{project}/conf/config.yaml"),
        *("benchmarks/compare.py", "tests/conftest.py"),
        *("shared/pyproject.toml", "shared/src/ray_shared/cluster.py"),
    }
    assert needed - content(starter).keys() == set()


def test_starter_has_nothing_that_was_made_by_use(starter: Path) -> None:
    made = [n for n in content(starter) if "__pycache__" in n or "egg-info" in n or "runs/" in n]
    assert made == []


def test_nothing_in_the_starter_points_back(starter: Path) -> None:
    for file, path in content(starter).items():
        assert not path.is_symlink(), file
        if path.suffix == ".png":  # By chance it may hold any three bytes.
            continue
        lines = path.read_text(errors="ignore").splitlines()
        if "tests" not in Path(file).parts:  # Tests try bad paths.
            assert [x for x in lines if "../" in x and "nox -s new" not in x] == [], file
        assert not any(str(ROOT) in line for line in lines), file


def test_starters_noxfile_has_the_project_alone(name: str, starter: Path) -> None:
    listed = nox("-l", cwd=starter).stdout
    assert f"* {name} ->" in listed
    assert [other for other in PROJECTS if f" {other} ->" in listed] == [name]
    assert "contracts" not in listed
    assert "- new ->" not in listed
    noxfile = (starter / "noxfile.py").read_text()
    assert '": "."' in noxfile
    assert not any(word in noxfile for word in ("infra", "doctor", "rehearsal"))


def test_starters_readme_says_what_comes_next(name: str, starter: Path) -> None:
    readme = (starter / "README.md").read_text()
    assert "## Copy it" not in readme
    assert "nox -s new" not in readme
    assert git(ROOT, "rev-parse", "HEAD").strip() in readme
    assert f"`nox -s {name}`" in readme.partition("## Start here")[2]


def test_starters_workflow_calls_only_what_there_is(starter: Path) -> None:
    workflow = (starter / ".github/workflows/ci.yml").read_text()
    assert "nox -s faults" in workflow
    assert "contracts" not in workflow


def test_starters_pyproject_has_project_and_tools(name: str, starter: Path) -> None:
    described = tomllib.loads((starter / "pyproject.toml").read_text())
    assert described["project"]["name"] == f"ray-ref-{name}"
    assert {"setuptools", "ruff", "pytest", "mypy"} <= described["tool"].keys()


def test_starter_can_be_made_from_a_download_without_git(tmp_path: Path) -> None:
    for file in git(ROOT, "ls-files", "-z").split("\0")[:-1]:
        (tmp_path / "download" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / "download" / file)
    done = nox("-s", "new", "--", NAME, "../my-own", cwd=tmp_path / "download")
    assert done.returncode == 0, done.stdout
    assert "`unknown`" in (tmp_path / "my-own" / "README.md").read_text()


def test_new_refuses_a_path_that_is_taken(tmp_path: Path) -> None:
    done = nox("-s", "new", "--", NAME, str(tmp_path))
    assert done.returncode == 1
    assert "exists already" in done.stdout


def test_new_refuses_a_path_inside_the_repository() -> None:
    done = nox("-s", "new", "--", NAME, "projects/my-train")
    assert done.returncode == 1
    assert "inside this repository" in done.stdout
    assert not (ROOT / "projects/my-train").exists()


def test_new_refuses_an_unknown_project(tmp_path: Path) -> None:
    done = nox("-s", "new", "--", "torch-dpp-train", str(tmp_path / "my-train"))
    assert done.returncode == 1
    assert f"must be one of {', '.join(PROJECTS)}" in done.stdout


def test_starter_can_be_imported_and_composed(name: str, starter: Path) -> None:
    python = ROOT / ".nox" / name / "bin" / "python"
    done = subprocess.run(
        [python, "-c", IMPORT, package(ROOT / PROJECTS[name]), str(starter)],
        env=os.environ | {"PYTHONPATH": f"{starter}/src{os.pathsep}{starter}/shared/src"},
        cwd=starter,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_starter_is_clean_by_its_own_settings(starter: Path) -> None:
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "."],
            cwd=starter,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def git(folder: Path, *args: str) -> str:
    """Runs git as a person who has told it a name; what it prints."""
    person = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *person, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", [NAME], indirect=True)
def test_later_fix_can_be_brought_into_a_starter(name: str, starter: Path, tmp_path: Path) -> None:
    mine, reference = tmp_path / "mine", tmp_path / "reference"
    shutil.copytree(starter, mine)
    git(mine, "status")  # Its index still knew the files of the other copy.
    git(tmp_path, "clone", "--quiet", str(ROOT), str(reference))
    folder, module = PROJECTS[name], package(ROOT / PROJECTS[name])
    changed = [f"{folder}/src/{module}/__init__.py", "shared/src/ray_shared/__init__.py"]
    for file in changed:
        with (reference / file).open("a") as lines:
            lines.write("\n# mended\n")
    git(reference, "commit", "--quiet", "--all", "--message=A fix")
    for where, options in ((folder, []), ("shared", ["--directory=shared"])):
        patch = tmp_path / "fix.patch"
        patch.write_text(git(reference, "diff", "HEAD~..HEAD", f"--relative={where}"))
        git(mine, "apply", "--3way", *options, str(patch))
    assert "# mended" in (mine / "src" / module / "__init__.py").read_text()
    assert "# mended" in (mine / "shared/src/ray_shared/__init__.py").read_text()


# The tests of `shared` have run already, in a session of their own.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [NAME], indirect=True)
def test_one_starter_passes_its_own_nox(name: str, starter: Path) -> None:
    try:
        done = nox("-s", "lint", "types", name, cwd=starter, timeout_s=850)
    finally:
        shutil.rmtree(starter / ".nox", ignore_errors=True)  # More than a gigabyte.
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.fault
@pytest.mark.timeout(2700)
def test_starter_passes_its_own_nox(starter: Path) -> None:
    try:
        done = nox(cwd=starter, timeout_s=2600)
    finally:
        shutil.rmtree(starter / ".nox", ignore_errors=True)
    assert done.returncode == 0, done.stdout[-5000:]
