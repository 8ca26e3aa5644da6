"""The steps of a hand-off as manifests for Kubernetes, and whether they would meet there."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from handoff_story import StepError, Story

PROFILE = "prod"
MOUNT = "/mnt/runs"
"""Where every pod has the storage."""
COMPOSE_S = 60.0


def render(story: Story) -> str:
    """Each step with the overrides that it ran with; only the storage lies elsewhere.

    Raises:
        StepError: If a command does not compose, or reads what no earlier step has written.
    """
    num_documents, schemas_checked = 0, True
    written: set[str] = set()
    for name, (project, overrides) in story.jobs.items():
        there = [override.replace(str(story.storage), MOUNT) for override in overrides]
        output = story.directory / "manifests" / name
        words = [f"workload={project}", f"profile={PROFILE}", f"output={output}"]
        words += [f"overrides={json.dumps(there)}"]
        metrics = story.run("kuberay-deploy", f"render-{name}", words)
        num_documents += metrics["num_documents"]
        schemas_checked &= metrics["schemas_checked"]
        config = configuration(story, name, output / f"{project}-{PROFILE}.yaml")
        for path in paths(config):
            if path.removeprefix(f"{MOUNT}/").split("/")[0] not in written:
                raise StepError(f"{name}: its manifest reads {path}, which no step before writes")
        if "run" in config:
            written.add(config["run"]["name"])
    schemas = "KubeRay's schemas fit" if schemas_checked else "NOT KubeRay's schemas: KUBERAY_CRDS"
    return (
        f"{len(story.jobs)} manifests, {num_documents} documents; "
        f"commands compose, paths meet, {schemas}"
    )


def configuration(story: Story, name: str, manifest: Path) -> dict[str, Any]:
    """What the project's own Python makes of a manifest's command.

    Raises:
        StepError: If it refuses it.
    """
    project, _ = story.jobs[name]
    resource = list(yaml.safe_load_all(manifest.read_text()))[-1]
    if resource["kind"] == "RayService":
        (application,) = yaml.safe_load(resource["spec"]["serveConfigV2"])["applications"]
        bundles = application["args"]["models"]["bundles"]
        words = [f"+models.bundles.{key}={path}" for key, path in bundles.items()]
    else:
        words = shlex.split(resource["spec"]["entrypoint"])[3:]
    done = subprocess.run(
        [*story.python(project), *words, "--cfg", "job"],
        cwd=story.directory,
        env=story.environment(project) | {"RAY_ADDRESS": "head:6379"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMPOSE_S,
        check=False,
    )
    if done.returncode != 0:
        raise StepError(f"{name}: {manifest}: {done.stderr.strip()[-500:]}")
    config: dict[str, Any] = yaml.safe_load(done.stdout)
    return config


def paths(config: Any) -> Iterator[str]:
    """Everything in a configuration that lies in the storage."""
    if isinstance(config, dict):
        for value in config.values():
            yield from paths(value)
    elif isinstance(config, str) and config.startswith(f"{MOUNT}/"):
        yield config
