"""How the tests here run the tools that read infra/, and the environments of the projects."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

from .repository import ROOT

INFRA = ROOT / "infra"
OVERLAYS = ("dev", "gpu", "spot", "prod")


def tool(name: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program of this environment."""
    command = [str(Path(sys.executable).parent / name), *args]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, **options
    )
    done.stdout += done.stderr
    return done


def project_python(name: str, *args: str, timeout_s: float = 240) -> str:
    """What Python prints in a project's environment."""
    python = ROOT / ".nox" / name / "bin" / "python"
    done = subprocess.run(
        [python, *args], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def overlays() -> dict[str, str]:
    """The YAML of each overlay."""
    done = {
        o: tool("kubectl", "kustomize", str(INFRA / "kustomize/overlays" / o)) for o in OVERLAYS
    }
    assert {name: d.stdout for name, d in done.items() if d.returncode} == {}
    return {name: d.stdout for name, d in done.items()}
