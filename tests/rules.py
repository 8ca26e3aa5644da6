"""The rules for code, each a function from a syntax tree to what breaks it, as `line: reason`."""

import ast
import runpy
from collections.abc import Iterator

from .repository import ROOT

# The doctor's own rule. Its package is not installed here.
remote = runpy.run_path(str(ROOT / "infra/doctor/src/ray_doctor/resources.py"))["remote"]
PICKLE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}


def unstated_resources(tree: ast.AST) -> Iterator[str]:
    """Remote tasks, actors, deployments and trainers that leave their resources to a default."""
    for line, lacks in remote(tree):
        if lacks:
            yield f"{line}: {lacks}"


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


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []
