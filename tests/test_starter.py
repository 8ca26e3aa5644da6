"""A copied starter is complete, stands alone, and passes its own `nox`."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from .repository import PROJECTS, ROOT, files, nox, package

NAME = next(iter(PROJECTS))
MINE = "my-own"
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
    target = tmp_path_factory.mktemp("starter") / MINE
    done = nox("-s", "new", "--", name, str(target))
    assert done.returncode == 0, done.stdout
    return target


def content(starter: Path) -> dict[str, Path]:
    paths = [p for p in starter.rglob("*") if p.is_file() and ".git" not in p.parts]
    return {path.relative_to(starter).as_posix(): path for path in paths}


def test_starter_has_every_file_it_needs(starter: Path) -> None:
    project = package(starter)
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


def test_starter_is_renamed_everywhere(name: str, starter: Path) -> None:
    module = package(ROOT / PROJECTS[name])
    for file, path in content(starter).items():
        text = path.read_bytes().decode(errors="ignore")
        if file == "README.md":
            text = text.replace(f"a copy of `{name}`", "", 1)
        for spelling in (name, module, module.upper()):
            assert spelling not in text, file
            assert spelling not in file
    described = tomllib.loads((starter / "pyproject.toml").read_text())
    assert described["project"]["name"] == f"ray-ref-{MINE}"


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
    assert f"* {MINE} ->" in listed
    assert [other for other in PROJECTS if f" {other} ->" in listed] == []
    assert "contracts" not in listed
    assert "- new ->" not in listed
    noxfile = (starter / "noxfile.py").read_text()
    assert '": "."' in noxfile
    assert not any(word in noxfile for word in ("infra", "doctor", "rehearsal"))


def test_starters_readme_says_what_comes_next(starter: Path) -> None:
    readme = (starter / "README.md").read_text()
    assert "## Copy it" not in readme
    assert "nox -s new" not in readme
    assert git(ROOT, "rev-parse", "HEAD").strip() in readme
    assert f"nox -s {MINE} " in readme.partition("## Start here")[2]


def test_starters_workflow_calls_only_what_there_is(starter: Path) -> None:
    jobs = yaml.safe_load((starter / ".github/workflows/ci.yml").read_text())["jobs"]
    last = {name: job["steps"][-1]["run"] for name, job in jobs.items()}
    assert last == {"fast": "nox", "faults": "nox -s faults"}


def test_starters_pyproject_has_the_settings_of_the_tools(starter: Path) -> None:
    described = tomllib.loads((starter / "pyproject.toml").read_text())
    assert {"setuptools", "ruff", "pytest", "mypy"} <= described["tool"].keys()


def test_starter_can_be_made_from_a_download_without_git(tmp_path: Path) -> None:
    for file in files():
        copy = tmp_path / "download" / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
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


@pytest.mark.parametrize("mine", ["my_own", "My-own", "2nd", "own-", "ray", "queue", "lint"])
def test_new_refuses_what_cannot_be_the_name_of_a_package(mine: str, tmp_path: Path) -> None:
    done = nox("-s", "new", "--", NAME, str(tmp_path / mine))
    assert done.returncode == 1
    assert f"{mine!r}" in done.stdout
    assert "Traceback" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_starter_with_a_long_name_is_clean(tmp_path: Path) -> None:
    target = tmp_path / "a-classifier-of-everything"
    assert nox("-s", "new", "--", NAME, str(target)).returncode == 0
    check_style(target)


def test_new_refuses_an_unknown_project(tmp_path: Path) -> None:
    done = nox("-s", "new", "--", "torch-dpp-train", str(tmp_path / "my-train"))
    assert done.returncode == 1
    assert f"must be one of {', '.join(PROJECTS)}" in done.stdout


def test_starter_can_be_imported_and_composed(name: str, starter: Path) -> None:
    python = ROOT / ".nox" / name / "bin" / "python"
    done = subprocess.run(
        [python, "-c", IMPORT, package(starter), str(starter)],
        env=os.environ | {"PYTHONPATH": f"{starter}/src{os.pathsep}{starter}/shared/src"},
        cwd=starter,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_starter_is_clean_by_its_own_settings(starter: Path) -> None:
    check_style(starter)


def check_style(starter: Path) -> None:
    """Whether a starter is as ruff, with its own settings, wants it."""
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


def test_later_fixes_can_be_brought_into_a_starter(tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    git(tmp_path, "clone", "--quiet", str(ROOT), str(reference))
    new = ("-s", "new", "--", NAME)
    assert nox(*new, "../mine/my-own", cwd=reference).returncode == 0
    assert nox(*new, "../before/my-own", cwd=reference).returncode == 0
    mine = tmp_path / "mine" / MINE
    with (mine / "src/my_own/config.py").open("a") as lines:
        lines.write("\n# my own\n")
    git(mine, "commit", "--quiet", "--all", "--message=Mine")

    module = package(ROOT / PROJECTS[NAME])
    fixed = [f"{PROJECTS[NAME]}/src/{module}/config.py", "shared/src/ray_shared/errors.py"]
    for file in (*fixed, "noxfile.py"):
        text = (reference / file).read_text()
        (reference / file).write_text(f"# mended: {module}\n{text}")
    git(reference, "commit", "--quiet", "--all", "--message=A fix")
    assert nox(*new, "../after/my-own", cwd=reference).returncode == 0
    for when in ("before", "after"):
        shutil.rmtree(tmp_path / when / MINE / ".git")
    differ = [
        "git",
        "-C",
        tmp_path,
        "diff",
        "--no-index",
        "--binary",
        "before/my-own",
        "after/my-own",
    ]
    patch = subprocess.run(differ, check=False, capture_output=True).stdout
    (tmp_path / "fixes.patch").write_bytes(patch)
    git(mine, "apply", "--3way", "-p3", "../../fixes.patch")

    for file in ("src/my_own/config.py", "shared/src/ray_shared/errors.py", "noxfile.py"):
        assert (mine / file).read_text().startswith("# mended: my_own\n"), file
    assert (mine / "src/my_own/config.py").read_text().endswith("\n# my own\n")
    assert git(reference, "rev-parse", "HEAD").strip() in (mine / "README.md").read_text()


@pytest.mark.fault
@pytest.mark.timeout(2700)
def test_starter_passes_its_own_nox(starter: Path) -> None:
    try:
        done = nox(cwd=starter, timeout_s=2500)
    finally:
        shutil.rmtree(starter / ".nox", ignore_errors=True)
    assert done.returncode == 0, done.stdout[-5000:]
