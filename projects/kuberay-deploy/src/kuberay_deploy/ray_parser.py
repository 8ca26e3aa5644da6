"""Lets the installed Ray read the manifest, as its own processes will on the cluster.

Ray's autoscaler reads the RayCluster object, `ray start` gets rayStartParams as options, the job
gets runtimeEnvYAML and Serve serveConfigV2. What they refuse shows only once pods run.

Source: ray/autoscaler/_private/kuberay/autoscaling_config.py of Ray 2.60
"""

import ast
import importlib.metadata
import importlib.util
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml
from jsonschema import ValidationError

from kuberay_deploy.cluster_spec import Spec, autoscales, pod
from kuberay_deploy.findings import At, Finding, nearest, one_of
from kuberay_deploy.pod_checks import quantity

RULE = "ray-parser"
HEAD = "headgroup"
# Options of `ray start` that KubeRay sets itself may be given, too: it keeps the user's value.
SWITCHES = ("true", "false")
REPLICAS = {"minReplicas": 0, "maxReplicas": 2**31 - 1}


@dataclass(frozen=True)
class Node:
    """What one pod of a group offers to Ray."""

    cpu: int
    """Whole CPUs; Ray rounds up."""
    gpu: int = 0
    memory: int | None = None
    """Bytes; None if the manifest leaves it to Ray."""
    labels: dict[str, str] = field(default_factory=dict)
    min_workers: int = 0
    max_workers: int = 0


def read(spec: Spec) -> dict[str, Node]:
    """Reads a RayClusterSpec, with its defaults applied, with the autoscaler's own code.

    Returns:
        Group name, or `headgroup`, to what one of its pods offers.

    Raises:
        Exception: What the autoscaler would end with.
    """
    from ray.autoscaler._private.kuberay import autoscaling_config

    # Without CRDs nobody has applied their defaults.
    workers = [REPLICAS | group for group in spec.get("workerGroupSpecs", [])]
    spec = spec | {"workerGroupSpecs": workers}
    cluster = {"metadata": {"name": "checked", "namespace": "checked"}, "spec": spec}
    log = autoscaling_config.logger
    level, log.level = log.level, logging.CRITICAL  # It logs, too, what it raises.
    try:
        config = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    finally:
        log.level = level
    return {
        name: Node(
            cpu=found["resources"]["CPU"],
            gpu=found["resources"].get("GPU", 0),
            memory=found["resources"].get("memory"),
            labels=found["labels"],
            min_workers=found["min_workers"],
            max_workers=found["max_workers"],
        )
        for name, found in config["available_node_types"].items()
    }


def expect(group: Spec) -> Node | None:
    """What the author of a group has written, read without Ray's help; None if no CPUs are said.

    In the order of precedence: the group's `resources`, its rayStartParams, the limits and then
    the requests of its first container.
    """
    declared, params = group.get("resources", {}), group.get("rayStartParams", {})
    amounts = pod(group)["containers"][0].get("resources", {})
    pods = amounts.get("requests", {}) | amounts.get("limits", {})
    gpus = next((amount for name, amount in pods.items() if name.endswith("/gpu")), None)

    def amount(name: str, option: str, of_pod: object) -> int | None:
        for found in (declared.get(name), params.get(option), of_pod):
            if found is not None:
                value = quantity(found)
                return None if value is None else math.ceil(value)
        return None

    cpu = amount("CPU", "num-cpus", pods.get("cpu"))
    if cpu is None:
        return None
    hosts = group.get("numOfHosts", 1)
    return Node(
        cpu=cpu,
        gpu=amount("GPU", "num-gpus", gpus) or 0,
        memory=amount("memory", "memory", pods.get("memory")),
        labels=group.get("labels", {}),
        min_workers=(REPLICAS | group)["minReplicas"] * hosts,
        max_workers=(REPLICAS | group)["maxReplicas"] * hosts,
    )


def check_cluster(spec: Spec, at: At) -> Iterator[Finding]:
    """Compares what Ray's autoscaler reads with what is written, and names options misspelt."""
    groups = {HEAD: (spec["headGroupSpec"], at("headGroupSpec"))}
    for i, group in enumerate(spec.get("workerGroupSpecs", [])):
        groups[group["groupName"]] = (group, at("workerGroupSpecs", i))
    for group, place in groups.values():
        params = group.get("rayStartParams", {})
        yield from _start_params(params, spec.get("rayVersion"), place("rayStartParams"))
    expected = {name: expect(group) for name, (group, _) in groups.items()}
    for name, node in expected.items():
        if node is None and autoscales(spec):
            place = groups[name][1]("template", "spec", "containers", 0, "resources", "limits")
            allowed = "a limit of cpu, without which the autoscaler cannot plan"
            yield place("cpu").finding("none", allowed, RULE)
    if None in expected.values():
        return
    try:
        seen = read(spec)
    except (ValueError, KeyError, TypeError, AssertionError, ValidationError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        yield at.finding(reason, "what Ray's autoscaler can read", RULE)
        return
    for name, node in expected.items():
        for key in ("cpu", "gpu", "memory", "labels", "min_workers", "max_workers"):
            of_ray, written = getattr(seen[name], key), getattr(node, key)
            if name == HEAD and key.endswith("workers"):
                continue
            if of_ray != written:
                found = f"{key} that Ray reads as {of_ray}"
                yield groups[name][1].finding(found, f"{written}, as it is written", RULE)


def _start_params(params: dict[str, str], wanted: str | None, at: At) -> Iterator[Finding]:
    known = start_options()
    # Another version of Ray may have other options, but none that looks almost like one here.
    other = wanted is not None and wanted != importlib.metadata.version("ray")
    for name, value in params.items():
        if name not in known:
            if other and nearest(name, known, cutoff=0.9) is None:
                continue
            yield at(name).finding("an unknown option", one_of(name, known), "ray-start-params")
        elif "$" in value:  # The shell in the pod replaces it.
            continue
        elif known[name] == "flag" and value not in SWITCHES:
            yield at(name).finding(value, " or ".join(SWITCHES), "ray-start-params")
        elif known[name] == "int" and not value.strip().isdecimal():
            yield at(name).finding(value, "a whole number >= 0", "ray-start-params")


@lru_cache(maxsize=1)
def start_options() -> dict[str, str]:
    """The options of the installed `ray start`: name to `flag`, `int` or `str`.

    Read from its source, because importing it takes as long as importing all of Ray Serve.
    """
    package = importlib.util.find_spec("ray.scripts")
    assert package is not None
    assert package.submodule_search_locations is not None
    source = Path(package.submodule_search_locations[0], "scripts.py").read_text()
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    start = next(function for function in functions if function.name == "start")
    options = {"log-style": "str", "log-color": "str", "verbose": "str"}
    for decorator in start.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "click.option":
            keywords = {word.arg: ast.unparse(word.value) for word in decorator.keywords}
            kind = "int" if keywords.get("type") == "int" else "str"
            kind = "flag" if keywords.get("is_flag") == "True" else kind
            for argument in decorator.args:
                name = ast.literal_eval(argument)
                if name.startswith("--"):
                    options[name[2:]] = kind
    return options


def check_runtime_env(text: str, at: At) -> Iterator[Finding]:
    """Looks for fields that no runtime environment has; the operator has seen that it is YAML."""
    from ray.runtime_env import RuntimeEnv

    for name in yaml.safe_load(text) or {}:
        if name not in RuntimeEnv.known_fields:
            public = [known for known in RuntimeEnv.known_fields if not known.startswith("_")]
            yield at(str(name)).finding(
                "an unknown field", one_of(str(name), public), "runtime-env"
            )


def check_serve_config(text: str, at: At) -> Iterator[Finding]:
    """Lets Serve read its own configuration."""
    import pydantic
    from ray.serve.schema import ServeDeploySchema

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield at.finding(str(error), "a YAML mapping", "serve-config")
        return
    if not isinstance(content, dict):
        found = type(content).__name__
        yield at.finding(found, "a YAML mapping with applications", "serve-config")
        return
    for name in content:
        if name not in ServeDeploySchema.model_fields:
            allowed = one_of(str(name), ServeDeploySchema.model_fields)
            yield at(str(name)).finding("an unknown field", allowed, "serve-config")
    try:
        ServeDeploySchema.model_validate(content)
    except pydantic.ValidationError as error:
        for each in error.errors():
            if each["type"] == "extra_forbidden" and len(each["loc"]) == 1:
                continue  # Named above, with the right spelling.
            where = at(*each["loc"])
            yield where.finding(each.get("input"), each["msg"], "serve-config")
