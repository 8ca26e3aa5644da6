"""No file breaks a rule, and every rule finds what breaks it."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from . import rules
from .repository import FOLDERS, ROOT, files, ids, package, texts

Rule = Callable[[ast.AST], Iterator[str]]

# "About 300" in words.
MAX_LINES = 320
PYTHON_OF_PROJECTS = files("projects/**.py", "shared/**.py", "infra/**.py")
NOT_TESTS = [path for path in PYTHON_OF_PROJECTS if "tests" not in path.parts]
# Spelt in pieces, because this file is searched too.
STOPS_BY_NAME = re.compile("|".join(["ray[\\s\"',]+st" + "op\\b", "p" + "kill", "kill" + "all"]))
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/(?!ray\b)\w")
FOREIGN_TO_SHARED = {package(project) for project in FOLDERS}


def broken(rule: Rule, path: Path) -> list[str]:
    return list(rule(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", PYTHON_OF_PROJECTS, ids=ids)
def test_everything_remote_states_its_resources(path: Path) -> None:
    assert broken(rules.unstated_resources, path) == []


@pytest.mark.parametrize("path", NOT_TESTS, ids=ids)
def test_nothing_is_pickled_across_trust(path: Path) -> None:
    assert broken(rules.pickles, path) == []


@pytest.mark.parametrize("path", PYTHON_OF_PROJECTS, ids=ids)
def test_module_search_path_is_left_alone(path: Path) -> None:
    assert broken(rules.path_hacks, path) == []


@pytest.mark.parametrize("project", FOLDERS, ids=ids)
def test_no_project_imports_another(project: Path) -> None:
    rule = partial(rules.foreign_imports, foreign=FOREIGN_TO_SHARED - {package(project)})
    found = {ids(p): broken(rule, p) for p in PYTHON_OF_PROJECTS if p.is_relative_to(project)}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_shared_package_imports_no_project() -> None:
    rule = partial(rules.foreign_imports, foreign=FOREIGN_TO_SHARED)
    shared = ROOT / "shared"
    found = {ids(p): broken(rule, p) for p in PYTHON_OF_PROJECTS if p.is_relative_to(shared)}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (rules.unstated_resources, "@ray.remote\ndef f(): pass"),
        (rules.unstated_resources, "@ray.remote(max_retries=0)\ndef f(): pass"),
        (rules.unstated_resources, "f = ray.remote(g)"),
        (rules.unstated_resources, "from ray import remote as task\n@task\ndef f(): pass"),
        (rules.unstated_resources, "f.options(name='x').remote()"),
        (rules.unstated_resources, "@serve.deployment\nclass A: pass"),
        (rules.unstated_resources, "ray.train.ScalingConfig(num_workers=2)"),
        (
            rules.unstated_resources,
            "from ray.train import ScalingConfig\nScalingConfig(num_workers=2)",
        ),
        (rules.unstated_resources, "ds.map_batches(f)"),
        (rules.pickles, "import pickle"),
        (rules.pickles, "from cloudpickle import dumps"),
        (rules.pickles, "torch.load(path)"),
        (rules.pickles, "torch.load(path, weights_only=False)"),
        (rules.pickles, "np.load(path, allow_pickle=True)"),
        (rules.path_hacks, "import sys\nsys.path.insert(0, 'src')"),
        (partial(rules.foreign_imports, foreign={"other"}), "from other.data import load"),
        (partial(rules.foreign_imports, foreign={"other"}), "import other.data"),
    ],
)
def test_rule_finds_what_breaks_it(rule: Rule, code: str) -> None:
    assert len(list(rule(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (rules.unstated_resources, "@ray.remote(num_cpus=1)\ndef f(): pass\nf.remote()"),
        (rules.unstated_resources, "A.options(num_cpus=0.5, name='a').remote()"),
        (
            rules.unstated_resources,
            "from ray_shared.groups import ScalingConfig\nScalingConfig(num_workers=2)",
        ),
        (rules.pickles, "torch.load(path, weights_only=True)"),
    ],
)
def test_rule_lets_right_code_pass(rule: Rule, code: str) -> None:
    assert list(rule(ast.parse(code))) == []


def test_files_are_short_enough_to_read() -> None:
    lengths = {ids(path): len(path.read_text().splitlines()) for path in files("**.py")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_nothing_stops_processes_by_name() -> None:
    assert [ids(p) for p, text in texts().items() if STOPS_BY_NAME.search(text)] == []


def test_no_path_of_one_machine() -> None:
    assert [ids(p) for p, text in texts().items() if MACHINE_PATH.search(text)] == []


def test_projects_do_not_point_outside_themselves() -> None:
    """But tests try bad paths, and the README may say how to copy the project beside this place."""
    lines = [
        f"{ids(path)}: {line.strip()}"
        for path, text in texts("projects").items()
        for line in text.splitlines()
        if "../" in line and "nox -s new" not in line and "tests" not in path.parts
    ]
    assert lines == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (STOPS_BY_NAME, "ray st" + "op --force"),
        (STOPS_BY_NAME, "['ray', 'st" + "op']"),
        (STOPS_BY_NAME, "p" + "kill -f ray"),
        (MACHINE_PATH, "cd /ho" + "me/me/ray"),
        (MACHINE_PATH, "path=/Us" + "ers/me"),
    ],
)
def test_pattern_finds_what_it_forbids(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)
