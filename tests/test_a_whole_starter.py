"""One copied starter passes its own `nox`; test_starter.py has the others, in the faults tier.

In a file of its own, which is the first: what takes minutes starts first, and the rest runs beside.
"""

import shutil
from pathlib import Path

import pytest

from .repository import ROOT, nox

NAME = "kuberay-deploy"
MINE = "my-own"


# kuberay-deploy's copy leaves out most, and it is soon installed. The tests of `shared` have run
# already, in a session of their own, and the hooks are installed: the test below does without.
@pytest.mark.timeout(900)
def test_one_starter_passes_its_own_nox(tmp_path: Path) -> None:
    # Where the path of an environment is longer than 87 characters, nox likes to make a hash of it.
    longer = "x" * max(1, 84 - len(str(tmp_path / MINE / ".nox")))
    starter = tmp_path / longer / MINE
    starter.parent.mkdir()
    done = nox("-s", "new", "--", NAME, str(starter))
    assert done.returncode == 0, done.stdout
    hooks = ROOT / ".nox/.cache/pre-commit"
    if hooks.is_dir():
        cache = starter / ".nox/.cache"
        cache.mkdir(parents=True)
        (cache / "pre-commit").symlink_to(hooks)
    try:
        done = nox("-s", "lint", "types", MINE, cwd=starter, timeout_s=800)
    finally:
        shutil.rmtree(starter / ".nox", ignore_errors=True)  # More than a gigabyte.
    assert done.returncode == 0, done.stdout[-5000:]
