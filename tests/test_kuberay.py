"""What kuberay-deploy says about the other projects is what they are."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .repository import PROJECTS, ROOT, package

FOLDER = ROOT / "projects" / "kuberay-deploy"
KEPT = FOLDER / "src" / "kuberay_deploy" / "serve_fastapi.yaml"
WORKLOADS = [name for name in PROJECTS if name != "kuberay-deploy"]
DESCRIBED = """
import json
from kuberay_deploy import render, serve_config
from kuberay_deploy.config import Config
from ray_shared.config import compose
config = compose(Config, "kuberay_deploy.conf")
found = {}
for workload, profile in config.plans():
    plan = render.make_plan(config, workload, profile)
    if plan.kind == "service":
        line = plan.variant.overrides
        other = serve_config.content(config.storage.path, line)
    else:
        line = render.entrypoint(plan)
        node = {"CPU": plan.described.worker.cpus, "GPU": int(plan.chosen.gpu)}
        other = [node] * plan.variant.max_workers
    found.setdefault(workload, {})[profile] = [line, other]
print(json.dumps(found))
"""
# The head has no CPUs for Ray: the workers alone must have room for what the job asks for.
COMPOSE = """
import json, sys
from importlib import import_module
from ray_shared.config import compose
package, *lines = json.loads(sys.argv[1])
schema = import_module(f"{package}.config").Config
demand = import_module(f"{package}.__main__").demand
for overrides, nodes in lines:
    config = compose(schema, f"{package}.conf", overrides)
    assert config.cluster.address == "10.0.0.1:6379", config.cluster
    demand(config).check(nodes)
"""
READ = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"


def run(project: str, *args: str, **env: str) -> str:
    """What a command in a project's environment prints; it must succeed."""
    command = [str(ROOT / ".nox" / project / "bin" / "python"), *args]
    done = subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_trap_has_its_issue_or_there_is_none() -> None:
    page = (FOLDER / "README.md").read_text()
    section = page.partition("## Right by default")[2].partition("\n## ")[0]
    _, *traps = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(traps) > 20
    assert [t for t in traps if "github.com/ray-project/" not in t and "(no issue" not in t] == []


@pytest.fixture(scope="module")
def described() -> dict[str, dict[str, list]]:
    """Workload and profile to what a manifest is made from."""
    found: dict[str, dict[str, list]] = json.loads(run("kuberay-deploy", "-c", DESCRIBED))
    return found


def test_every_project_is_a_workload(described: dict[str, dict[str, list]]) -> None:
    assert sorted(described) == sorted(WORKLOADS)


@pytest.mark.parametrize("name", [n for n in WORKLOADS if n != "serve-fastapi"])
def test_command_of_every_job_composes_and_has_room(
    name: str, described: dict[str, dict[str, list]]
) -> None:
    lines = []
    for line, nodes in described[name].values():
        python, flag, module, *overrides = shlex.split(line)
        assert (python, flag, module) == ("python", "-m", package(ROOT / PROJECTS[name]))
        lines.append([[x for x in overrides if not x.startswith("hydra.")], nodes])
    assert len(lines) >= 3
    run(name, "-c", COMPOSE, json.dumps([module, *lines]), RAY_ADDRESS="10.0.0.1:6379")


def written(directory: Path, overrides: list[str]) -> str:
    """What serve-fastapi writes for Kubernetes."""
    run("serve-fastapi", "-m", "serve_fastapi", *overrides, f"hydra.run.dir={directory}")
    return (directory / "serve_config.yaml").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy, and so its variables, on Linux only")
def test_kept_serve_configuration_is_what_would_be_written_now(tmp_path: Path) -> None:
    first, _, kept = KEPT.read_text().partition("\n")
    command = first.removeprefix("# Written by: ")
    program, *overrides = shlex.split(command)
    assert program == "serve-fastapi"
    assert kept == written(tmp_path, overrides), f"{KEPT} is stale: {command}"


@pytest.mark.parametrize("profile", ["dev", "spot", "prod"])
def test_overrides_change_the_serve_configuration_as_the_command_would(
    profile: str, tmp_path: Path, described: dict[str, dict[str, list]]
) -> None:
    overrides, content = described["serve-fastapi"][profile]
    base = shlex.split(KEPT.read_text().splitlines()[0].removeprefix("# Written by: "))[1:]
    written(tmp_path, [*base, *overrides])
    assert (
        json.loads(run("serve-fastapi", "-c", READ, str(tmp_path / "serve_config.yaml"))) == content
    )
