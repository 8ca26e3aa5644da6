"""Copies a project as a starter: `nox -s new -- torch-ddp-train ../my-train`.

The copy is a repository of its own: the project's folder with the shared package in it, and of
noxfile.py and the CI file what one project needs. The last part of its path becomes the project's
name, everywhere.
"""

import keyword
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
END = "# --- A copied starter's"  # What stands below this line is of no use in a copy.
MADE_BY_USE = (
    *("__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "build", "out", "outputs"),
    *("multirun", "runs", "results", "mlruns", "mlflow.db", "venv", ".venv", ".env"),
)
START_HERE = """## Start here

This is a copy of `{name}` of a reference monorepo for Ray, as of its commit
`{commit}`, with the package `ray_shared` in `shared/`. It is a
git repository in which nothing is committed yet. It needs Python 3.11 or newer, Linux or macOS:

```bash
git commit -m "As copied"
python3 -m venv venv && . venv/bin/activate
python3 -m pip install nox
nox -s {mine}                                       # its fast tests, then the job
.nox/{mine}/bin/python -m pytest tests -k WORD      # one test
```

`nox` also checks style and types: that is what CI runs. How later fixes of the reference come into
a copy stands in its CONTRIBUTING.md.

"""


def main(name: str, others: list[str], path: str) -> None:
    """Makes the copy.

    Args:
        name: The project, as its folder is called.
        others: The names of the other projects.
        path: Where the copy is to lie; its last part is the copy's name.
    """
    target = Path(path).resolve()
    mine = target.name
    project = ROOT / "projects" / name
    refuse(target.exists(), f"{target}: exists already")
    inside = target.is_relative_to(ROOT)
    refuse(inside, f"{target}: lies inside this repository; choose a place outside")
    words = re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", mine)
    allowed = "words of small letters and digits, joined by '-': it becomes the project's name"
    refuse(words is None, f"{target}: found {mine!r} at the end, allowed are {allowed}")
    taken = {*sys.stdlib_module_names, *keyword.kwlist, *package_names(project), *others}
    taken |= set(re.findall(r"^def (\w+)\(session:", (ROOT / "noxfile.py").read_text(), re.M))
    refuse(mine in taken, f"{target}: {mine!r} is the name of something else; choose another")

    refuse(shutil.which("git") is None, "git is not installed; the hooks of the copy need it")

    ignore = shutil.ignore_patterns(*MADE_BY_USE)
    shutil.copytree(project, target, ignore=ignore)
    shutil.copytree(ROOT / "shared", target / "shared", ignore=ignore)
    for file in (".gitignore", ".pre-commit-config.yaml", "LICENSE"):
        shutil.copy(ROOT / file, target / file)
    for file in ("noxfile.py", ".github/workflows/ci.yml"):
        content, _, _ = (ROOT / file).read_text().partition(END)
        content = content.rstrip().replace(" -- ${{ matrix.name }}", "") + "\n"
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (target / file).write_text(content)
    reduce_noxfile(target / "noxfile.py", name)
    add_settings(target / "pyproject.toml", others, longer=len(mine) > len(name))
    if name != mine:
        rename(target, name, mine)
    add_start_here(target / "README.md", name, mine)
    for command in (["init", "--quiet"], ["add", "--all"]):  # The hooks look at what git knows.
        subprocess.run(["git", "-C", target, *command], check=True)
    next_commands = f"cd {os.path.relpath(target)} && git commit -m 'As copied' && nox"
    print(f"Next: {next_commands}")  # noqa: T201 - it is what the command says


def refuse(wrong: bool, message: str) -> None:
    """Ends the program with a sentence if something is wrong."""
    if wrong:
        sys.exit(f"error: {message}")


def package_names(project: Path) -> list[str]:
    """What a copy cannot be called: its import package would hide another one."""
    lock = (project / "requirements.lock").read_text()
    return ["ray-shared", "shared", "tests", "conf", *re.findall(r"^([\w.-]+)==", lock, re.M)]


def reduce_noxfile(noxfile: Path, name: str) -> None:
    """Leaves one row in each table: the project is the repository."""
    changes = {
        r"^PROJECTS = \{.*?^\}": f'PROJECTS = {{\n    "{name}": ".",\n}}',
        r"^# Packages of this repository.*?^BESIDE = .*?$": "BESIDE = {}",
        r"^MORE_FAULTS = \{.*?^\}": 'MORE_FAULTS = {"shared": ("shared", "shared")}',
        r"^# What reads infra/.*?^\]\n": "",
    }
    content = noxfile.read_text()
    for pattern, change in changes.items():
        content = re.sub(pattern, change, content, flags=re.S | re.M)
    noxfile.write_text(content)


def add_settings(pyproject: Path, others: list[str], *, longer: bool) -> None:
    """Adds the settings of the tools to the project's own pyproject.toml.

    Args:
        pyproject: The file.
        others: The projects that the copy does without.
        longer: Whether the copy's name is longer than the project's.
    """
    modules = {other.replace("-", "_") for other in others} | {"ray_doctor", "rehearsal"}
    unwanted = {f'"error:::{module}",' for module in modules}
    lines = (ROOT / "pyproject.toml").read_text().splitlines(keepends=True)[1:]
    with pyproject.open("a") as file:
        file.write("\n# Settings of the tools.\n")
        for line in lines:
            file.write("" if line.strip() in unwanted else line)
            if longer and line == "ignore = [\n":
                file.write('    "E501",   # With the longer name some lines are too long.\n')


def add_start_here(readme: Path, name: str, mine: str) -> None:
    """Says in the README what comes next, and which commit the copy is of."""
    commit = "unknown"  # Of a download without git.
    if (ROOT / ".git").exists():
        command = ["git", "-C", ROOT, "rev-parse", "HEAD"]
        commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    text = re.sub(r"## Copy it\n.*?(?=\n## |\Z)", "", readme.read_text(), flags=re.S)
    start = START_HERE.format(name=name, commit=commit, mine=mine)
    readme.write_text(text.replace("## Run it\n", f"{start}## Run it\n").rstrip() + "\n")


def rename(target: Path, name: str, mine: str) -> None:
    """Gives the copy its name in every text: as it is, and as a module and a variable have it."""
    module, my_module = name.replace("-", "_"), mine.replace("-", "_")
    spellings = {name: mine, module: my_module, module.upper(): my_module.upper()}
    (target / "src" / module).rename(target / "src" / my_module)
    for path in target.rglob("*"):
        try:
            text = path.read_text() if path.is_file() else ""
        except UnicodeDecodeError:  # A picture.
            continue
        changed = text
        for old, new in spellings.items():
            changed = changed.replace(old, new)
        if changed != text:
            path.write_text(changed)
    # Imports have another order now, and lines another length.
    for arguments in (["check", "--select=I", "--fix"], ["format"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--quiet", "--no-cache", "."]
        subprocess.run(command, cwd=target, check=True)


if __name__ == "__main__":
    project, directory, *names = sys.argv[1:]
    main(project, [each for each in names if each != project], directory)
