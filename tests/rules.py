"""The rules for code, each a function from a syntax tree to what breaks it, as `line: reason`."""

import ast
from collections.abc import Iterator

# Resources of tasks and actors. Of `.options(...)`, the others belong to a single request or call.
COMPUTE = {"num_cpus", "num_gpus", "resources"}
REQUEST_OPTIONS = {
    "ray_actor_options",
    "stream",
    "method_name",
    "multiplexed_model_id",
    "num_returns",
}
PICKLE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}


def unstated_resources(tree: ast.AST) -> Iterator[str]:
    """Remote tasks, actors, deployments and trainers that leave their resources to a default."""
    from_ray = _imported_from_ray(tree)
    stated = {node.func: _keywords(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        name = ast.unparse(node)
        name = from_ray.get(name, name)
        last = name.split(".")[-1]
        keywords = stated.get(node, set())
        if name == "ray.remote":
            needed = COMPUTE
        elif name in ("serve.deployment", "ray.serve.deployment"):
            needed = {"ray_actor_options"}
        elif node not in stated:  # Not called: an annotation, say.
            continue
        elif last == "ScalingConfig" and name.startswith(("ray.", "train.")):
            needed = {"resources_per_worker"}
        elif last == "options" and "." in name:
            needed = COMPUTE | REQUEST_OPTIONS
        elif last == "map_batches":
            needed = COMPUTE
        else:
            continue
        if not keywords & needed:
            yield f"{node.lineno}: {name} without {' or '.join(sorted(needed))}"


def pickles(tree: ast.AST) -> Iterator[str]:
    """What could run code that comes with data."""
    for node in ast.walk(tree):
        for module in _imports(node):
            if module.split(".")[0] in PICKLE_MODULES:
                yield f"{node.lineno}: imports {module}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            literals = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if name == "torch.load" and literals.get("weights_only") is not True:
                yield f"{node.lineno}: torch.load without weights_only=True"
            if literals.get("allow_pickle"):
                yield f"{node.lineno}: {name} with allow_pickle"
            if name.endswith(("read_pickle", "to_pickle")):
                yield f"{node.lineno}: {name}"


def foreign_imports(tree: ast.AST, foreign: set[str]) -> Iterator[str]:
    """Imports of packages that this code must not know."""
    for node in ast.walk(tree):
        for module in _imports(node):
            if module.split(".")[0] in foreign:
                yield f"{node.lineno}: imports {module}"


def path_hacks(tree: ast.AST) -> Iterator[str]:
    """Changes of the module search path: a Ray worker would not share them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield f"{node.lineno}: sys.path"


def _keywords(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []


def _imported_from_ray(tree: ast.AST) -> dict[str, str]:
    """`from ray import remote as task` -> `{"task": "ray.remote"}`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names
