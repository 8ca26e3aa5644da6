"""The production checklist finds what breaks it, in a project's files."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_doctor import checklist
from ray_doctor.resources import remote

from .conftest import by_name, configured, wrong

CONFIG = """\
defaults:
  - storage: default
  - search: random
  - _self_
checkpoint: {every_epochs: 1, every_steps: 0, num_to_keep: 2}
failure: {max_failures: 3}
hydra:
  searchpath: [pkg://ray_shared.conf]
"""
CODE = """\
import ray

@ray.remote(num_cpus=1)
def work(): ...
"""


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    """A small project with nothing to complain about."""
    return made(tmp_path / "mine")


def made(project: Path) -> Path:
    conf = project / "src" / "mine" / "conf"
    (conf / "search").mkdir(parents=True)
    (conf / "config.yaml").write_text(CONFIG)
    (conf / "search" / "random.yaml").write_text("name: random\n")
    (conf / "search" / "grid.yaml").write_text("name: grid\n")
    (project / "src" / "mine" / "work.py").write_text(CODE)
    (project / "pyproject.toml").write_text("")
    (project / "requirements.lock").write_text("# A lock.\nray==2.60.0\nnumpy==2.4.6\n")
    (project / "monitoring").mkdir()
    (project / "monitoring" / "prometheus.yaml").write_text("scrape_configs: []\n")
    return project


def test_sound_project_passes(starter: Path):
    checks = by_name(checklist.check([starter]))
    assert {check.status for check in checks.values()} == {"ok"}
    assert len(checks) == 6
    assert checks["checkpoints on"].found == (
        "mine: checkpoint.every_epochs=1, checkpoint.every_steps=0"
    )


def replaced(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(project: Path) -> None:
        file = project / path
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return change


CONF = "src/mine/conf/config.yaml"


@pytest.mark.parametrize(
    ("change", "name", "status", "found"),
    [
        (
            replaced("src/mine/work.py", "(num_cpus=1)", ""),
            "resources stated",
            "failed",
            "mine: src/mine/work.py:3",
        ),
        (
            replaced(CONF, "every_epochs: 1", "every_epochs: 0"),
            "checkpoints on",
            "failed",
            "checkpoint.every_epochs=0",
        ),
        (
            replaced(CONF, "max_failures: 3", "max_failures: 0"),
            "retries on",
            "failed",
            "failure.max_failures=0",
        ),
        (replaced(CONF, "search: random", "search: grid"), "no grid search", "failed", "=grid"),
        (
            replaced("requirements.lock", "numpy==2.4.6", "numpy>=2"),
            "pinned lock",
            "failed",
            "not pinned: numpy>=2",
        ),
        (
            lambda project: (project / "requirements.lock").unlink(),
            "pinned lock",
            "failed",
            "no requirements.lock",
        ),
        (
            lambda project: (project / "monitoring" / "prometheus.yaml").unlink(),
            "monitoring",
            "warning",
            "no Prometheus configuration",
        ),
    ],
)
def test_what_is_missing_is_found(
    starter: Path, change: Callable[[Path], None], name: str, status: str, found: str
):
    change(starter)
    checks = checklist.check([starter])
    assert wrong(checks) == {name: status}
    assert found in by_name(checks)[name].found
    assert by_name(checks)[name].hint.endswith(".")


def test_grid_search_in_the_code_is_found_where_nothing_chooses(starter: Path):
    replaced(CONF, "  - search: random\n", "")(starter)
    assert by_name(checklist.check([starter]))["no grid search"].status == "not checked"
    (starter / "src" / "mine" / "tune.py").write_text("space = tune.grid_search([1, 2])\n")
    check = by_name(checklist.check([starter]))["no grid search"]
    assert (check.status, check.found) == ("failed", "mine: src/mine/tune.py:1")


def test_search_without_a_name_is_not_checked(starter: Path):
    replaced("src/mine/conf/search/random.yaml", "name: random", "num_trials: 4")(starter)
    check = by_name(checklist.check([starter]))["no grid search"]
    assert (check.status, check.found) == ("not checked", "mine: no search.name")


def test_files_in_another_encoding_are_read_or_named(starter: Path):
    (starter / "monitoring" / "old.yaml").write_bytes("# für uns".encode("latin-1"))
    with (starter / "requirements.lock").open("ab") as lock:
        lock.write("# für uns\n".encode("latin-1"))
    work = starter / "src" / "mine" / "work.py"
    work.write_bytes(b"# coding: latin-1\n" + "# für uns\n".encode("latin-1") + CODE.encode())
    assert wrong(checklist.check([starter])) == {}
    work.write_bytes("name = 'für uns'\n".encode("latin-1"))
    (starter / CONF).write_bytes(CONFIG.encode() + "# für uns\n".encode("latin-1"))
    checks = by_name(checklist.check([starter]))
    assert checks["resources stated"].found.startswith("mine: work.py:1: no Python: ")
    assert checks["retries on"].found.startswith("mine: config.yaml does not compose: ")


def test_broken_files_are_named(starter: Path):
    replaced(CONF, "search: random", "search: none_such")(starter)
    (starter / "src" / "mine" / "work.py").write_text("def work(:\n")
    checks = by_name(checklist.check([starter]))
    assert "work.py:1: no Python" in checks["resources stated"].found
    assert "config.yaml does not compose" in checks["checkpoints on"].found
    assert checks["retries on"].status == "failed"


def test_several_projects_share_a_line(starter: Path, tmp_path: Path):
    other = made(tmp_path / "other")
    replaced(CONF, "failure: {max_failures: 3}\n", "")(other)
    (other / "monitoring" / "prometheus.yaml").unlink()
    checks = by_name(checklist.check([starter, other]))
    assert checks["retries on"].found == "in 1 project(s); does not apply to other"
    assert checks["monitoring"].status == "warning"
    assert checks["monitoring"].found == "other: no Prometheus configuration, no dashboard"


def test_no_project_is_not_a_project_in_order():
    (check,) = checklist.check([])
    assert check.status == "not checked"


@pytest.mark.parametrize(
    "code",
    [
        "@ray.remote\ndef f(): pass",
        "@ray.remote(max_retries=0)\ndef f(): pass",
        "from ray import remote as task\n@task\ndef f(): pass",
        "f.options(name='x').remote()",
        "@serve.deployment\nclass A: pass",
        "from ray.train import ScalingConfig\nScalingConfig(num_workers=2)",
        "ds.map_batches(f)",
        "f.options(name='x').method.remote()",
        "A.options(name='x').bind()",
        "worker = A.options(lifetime='detached')",
        "import ray as r\nr.remote(f)",
        "from ray.train.torch import TorchTrainer\nTorchTrainer(loop)",
        "from ray.train import torch\ntorch.TorchTrainer(loop)",
        "ray.train.xgboost.XGBoostTrainer(loop)",
    ],
)
def test_unstated_resources_are_found(code: str):
    ((_, lacks),) = remote(ast.parse(code))
    assert " without " in lacks


@pytest.mark.parametrize(
    "code",
    [
        "A.options(num_cpus=0.5, name='a').remote()",
        "@serve.deployment(ray_actor_options={'num_cpus': 1})\nclass A: pass",
        "handle.options(stream=True).remote()",
        "from ray.train.torch import TorchTrainer\nTorchTrainer(loop, scaling_config=scaling)",
    ],
)
def test_stated_resources_are_right(code: str):
    ((_, lacks),) = remote(ast.parse(code))
    assert lacks == ""


@pytest.mark.parametrize(
    "code",
    [
        "@app.options('/items')\ndef allow(): ...",
        "requests.options(url, timeout=5).raise_for_status()",
        "transformers.Trainer(model)",
        "def fit(trainer: ray.train.torch.TorchTrainer): ...",
    ],
)
def test_what_is_not_remote_states_nothing(code: str):
    assert list(remote(ast.parse(code))) == []


def test_projects_of_this_repository_pass(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parent)
    projects = configured().project_folders()
    assert len(projects) > 1
    assert wrong(checklist.check(projects)) == {}
