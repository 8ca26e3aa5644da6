"""The workflow runs what there is."""

import re
from typing import Any

import yaml

from .repository import PROJECTS, ROOT, nox, table

TEXT = (ROOT / ".github/workflows/ci.yml").read_text()


def commands(jobs: dict[str, Any]) -> list[str]:
    """What the jobs run, one line for each job of a matrix."""
    found = []
    for job in jobs.values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            line = step.get("run", "")
            (name,) = re.findall(r"matrix\.(\w+)", line) or [""]
            values = matrix.get(name, [""])
            found += [re.sub(r"\$\{\{.*?\}\}", value, line).strip() for value in values]
    return found


def test_every_fault_has_its_job() -> None:
    found = [line for line in commands(yaml.safe_load(TEXT)["jobs"]) if "-s faults" in line]
    names = [line.partition(" -- ")[2] for line in found]
    # Those of the contracts are two jobs, by what pytest calls them.
    others = table("MORE_FAULTS").keys() - {"contracts"}
    assert sorted(names) == sorted([*PROJECTS, *others])
    assert [line.startswith("sudo ") for line in found] == [n == "rehearsal" for n in names]


def test_sessions_of_the_workflow_exist() -> None:
    sessions = set(re.findall(r"^[-*] (\S+)", nox("-l").stdout, flags=re.MULTILINE))
    called = re.findall(r"nox -s (\S+)", "\n".join(commands(yaml.safe_load(TEXT)["jobs"])))
    assert len(called) > 10
    assert set(called) - sessions == set()
