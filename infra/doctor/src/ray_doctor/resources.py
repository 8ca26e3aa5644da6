"""The rule that all that is remote states its resources, by a module's syntax tree alone.

The tests of the whole repository hold it too, without Ray: nothing else is imported here.
"""

import ast
from collections.abc import Iterator

COMPUTE = {"num_cpus", "num_gpus", "resources"}
PER_CALL = {"ray_actor_options", "stream", "method_name", "multiplexed_model_id", "num_returns"}
"""Options of a single call or request, which takes no resources of its own."""
RAYS_OWN = COMPUTE | PER_CALL
RAYS_OWN |= {"get_if_exists", "lifetime", "max_concurrency", "max_restarts", "max_retries"}
RAYS_OWN |= {"max_task_retries", "runtime_env", "scheduling_strategy"}
"""Keywords by which `.options(...)` is Ray's, and not that of an HTTP client or of FastAPI."""


def remote(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Each task, actor, deployment or trainer in a module.

    Yields:
        Its line, and what it lacks; empty if it states its resources.
    """
    aliases = _imported_from_ray(tree)
    started = _started(tree)
    calls = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        first, dot, rest = ast.unparse(node).partition(".")
        name = aliases.get(first, first) + dot + rest
        last = name.rpartition(".")[2]
        of_train = name.startswith(("ray.train.", "ray.air.", "train."))
        call = calls.get(node)
        stated = {keyword.arg for keyword in call.keywords} if call else set()
        if name == "ray.remote":
            needed = COMPUTE
        elif name in ("serve.deployment", "ray.serve.deployment"):
            needed = {"ray_actor_options"}
        elif call is None:  # An annotation, say.
            continue
        elif of_train and last == "ScalingConfig":
            needed = {"resources_per_worker"}
        elif of_train and last.endswith("Trainer"):
            needed = {"scaling_config"}
        elif name.endswith(".options") and (call in started or stated & RAYS_OWN):
            needed = COMPUTE | PER_CALL
        elif name.endswith(".map_batches"):
            needed = COMPUTE
        else:
            continue
        lacks = "" if stated & needed else f"{name} without {' or '.join(sorted(needed))}"
        yield node.lineno, lacks


def _started(tree: ast.AST) -> set[ast.expr]:
    """What `.remote` or `.bind` follows, be it after the name of a method."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("remote", "bind"):
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            found.add(base)
    return found


def _imported_from_ray(tree: ast.AST) -> dict[str, str]:
    """`from ray import remote as task` -> `{"task": "ray.remote"}`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname and alias.name.split(".")[0] == "ray":
                    names[alias.asname] = alias.name
    return names
