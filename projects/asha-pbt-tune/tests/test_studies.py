"""Studies on one cluster in this process: what the counts say is what happened."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asha_pbt_tune import tune
from asha_pbt_tune.config import Config
from asha_pbt_tune.environment import RAY_DEFAULTS
from ray_shared import cluster
from ray_shared.report import Report

from .counting import configuration, epochs_of


@pytest.fixture(scope="module")
def connected(ray_tmpdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in RAY_DEFAULTS.items():
            patch.setenv(variable, value)
        report = Report("asha-pbt-tune", tmp_path_factory.mktemp("out"), {})
        config = dataclasses.replace(configuration().cluster, num_cpus=2)
        with cluster.connect(config, cluster.Demand(1, 1), report, "asha_pbt_tune"):
            yield


def study(directory: Path, config: Config) -> tuple[Report, list[dict[str, Any]]]:
    """Runs a study; its report and its events."""
    config.storage.path = str(directory / "runs")
    report = Report("asha-pbt-tune", directory, dataclasses.asdict(config))
    tune.run(config, report)
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return report, [json.loads(line) for line in lines]


@pytest.mark.usefixtures("connected")
def test_members_of_a_population_take_over(tmp_path: Path):
    config = configuration("objective=torch", "scheduler=pbt", "tune.num_trials=4")
    config.train.epochs = 12
    report, events = study(tmp_path, config)
    exploits = [e for e in events if e["event"] == "exploit"]
    assert report.metrics["num_exploits"] == len(exploits) >= 1
    assert report.metrics["num_perturbations"] >= 1
    assert report.metrics["num_finished"] == 4
    values = {e["trial"]: e["hyperparameters"] for e in events if e["event"] == "trial"}
    for event in exploits:
        assert event["epoch"] in (4, 8)
        after, before = event["hyperparameters"], values[event["donor"]]
        # What cannot change in mid-training is the donor's; what can is inside the space.
        assert after["width"] == before["width"]
        assert 0 <= after["dropout"] <= 0.6
        assert after["batch_size"] in (32, 64, 128, 256)
        values[event["trial"]] = after
    # Only the best member's model is left of all the checkpoints.
    run = Path(report.artifacts["run"])
    assert len(list(run.glob("*/checkpoint_*"))) == 1
    assert (run / "bundle" / "model.safetensors").exists()


@pytest.mark.usefixtures("connected")
def test_trials_share_processes_and_a_grid_makes_each_combination_once(tmp_path: Path):
    config = configuration("search=grid", "space=xgboost_grid", "scheduler=none")
    config.train.epochs = 2
    report, events = study(tmp_path, config)
    drawn = [tuple(e["hyperparameters"].values()) for e in events if e["event"] == "trial"]
    assert len(drawn) == len(set(drawn)) == 6
    assert report.metrics["num_finished"] == 6
    assert {tuple(epochs) for epochs in epochs_of(events).values()} == {(1, 2)}
    # A new process for each trial would take seconds to import.
    assert len({e["pid"] for e in events if e["event"] == "epoch"}) <= 2
