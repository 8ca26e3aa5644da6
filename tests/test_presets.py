"""The command in the first comment of every preset works as it stands."""

import shlex
from pathlib import Path

import pytest

from .repository import PROJECTS, ROOT, files, ids, nox

PRESETS = [
    (name, path)
    for name, folder in PROJECTS.items()
    for path in files(f"{folder}/src/**/conf/experiment/*.yaml")
]


def command(preset: Path) -> list[str]:
    comments = [line for line in preset.read_text().splitlines() if line.startswith("# ")]
    return shlex.split(next(line for line in comments if "@package" not in line)[2:])


@pytest.mark.parametrize(("project", "preset"), PRESETS, ids=[ids(path) for _, path in PRESETS])
def test_first_command_of_a_preset_composes(project: str, preset: Path) -> None:
    program, *overrides = command(preset)
    assert program == project
    assert f"experiment={preset.stem}" in overrides
    done = nox("-s", project, "--", *overrides, "--cfg", "job")
    assert done.returncode == 0, done.stdout
    assert "\ntrain:\n" in done.stdout or "\ncluster:\n" in done.stdout


def test_there_are_presets() -> None:
    assert len(PRESETS) >= len(PROJECTS), ROOT
