"""The repository, as the tests here look at it."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def project_table() -> dict[str, str]:
    """`PROJECTS` in noxfile.py: session to folder."""
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROJECTS":
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    raise AssertionError("noxfile.py has no table PROJECTS")


PROJECTS = project_table()
FOLDERS = [ROOT / folder for folder in PROJECTS.values()]


def package(project: Path) -> str:
    """The import package of the project in this folder."""
    return project.name.replace("-", "_")


def files(*patterns: str) -> list[Path]:
    """Files of the repository that match the patterns of `git ls-files`, new ones included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = sorted({ROOT / name for name in names.split("\0") if name})
    return [path for path in found if path.is_file()]


def texts(*patterns: str) -> dict[Path, str]:
    """The content of those of `files` that are text."""
    content = {}
    for path in files(*patterns):
        try:
            content[path] = path.read_text()
        except UnicodeDecodeError:
            continue
    return content


def ids(path: Path) -> str:
    """The name of a path in a test's name."""
    return path.relative_to(ROOT).as_posix()


def nox(*args: str, cwd: Path = ROOT, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs nox to its end; stdout and stderr come together as `stdout`."""
    return subprocess.run(
        [sys.executable, "-m", "nox", *args],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
