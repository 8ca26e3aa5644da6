"""The repository, as the tests here look at it."""

import ast
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STOP_S = 60.0
"""What Ray and servers below a command may take to stop after Ctrl-C."""


def table(name: str) -> dict[str, Any]:
    """A table of noxfile.py."""
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            found: dict[str, Any] = ast.literal_eval(node.value)
            return found
    raise AssertionError(f"noxfile.py has no table {name}")


# Session to folder.
PROJECTS: dict[str, str] = table("PROJECTS")
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


def kuberay_crds() -> Path | None:
    """KubeRay's CRDs, in KUBERAY_CRDS or beside the repository; None: they must be downloaded."""
    if named := os.environ.get("KUBERAY_CRDS"):
        return Path(named)
    beside = ROOT.parent / "shared" / "kuberay-crds"
    return beside if beside.is_dir() else None


def nox(*args: str, cwd: Path = ROOT, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs nox to its end; stdout and stderr come together as `stdout`."""
    crds = kuberay_crds()  # A starter looks for them nowhere else.
    env = os.environ | ({"KUBERAY_CRDS": str(crds)} if crds else {})
    return run([sys.executable, "-m", "nox", *args], cwd, timeout_s, env)


def run(
    command: list[str],
    cwd: Path,
    timeout_s: float,
    env: dict[str, str] | None = None,
    stop_s: float = STOP_S,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; stdout and stderr come together as `stdout`.

    Args:
        command: What to run, in a process group of its own.
        cwd: Where.
        timeout_s: Seconds after which all of the group gets Ctrl-C.
        env: Its variables; None: those of this process.
        stop_s: Seconds after that until it is killed.

    Raises:
        AssertionError: If it does not end in time.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As in whatever a shell starts with `&`; the command would inherit it and miss Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A server might hold a pipe open for ever.
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        ended = False
        try:
            process.wait(timeout_s)
            ended = True
        except subprocess.TimeoutExpired:
            pass
        finally:  # Also at Ctrl-C, and at the test's own timeout.
            if not ended:
                _stop(process, stop_s)
        log.seek(0)
        output = log.read()
    assert ended, f"after {timeout_s:g} s it still ran:\n{output[-5000:]}"
    return subprocess.CompletedProcess(command, process.returncode, output)


def _stop(process: "subprocess.Popen[bytes]", stop_s: float) -> None:
    """Ends a process group, with patience."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(stop_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
