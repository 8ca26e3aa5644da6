"""The objectives by themselves: they learn, and an interrupted one goes on as if it were not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asha_pbt_tune import data, objectives
from asha_pbt_tune.network import perceptron
from ray_shared.errors import UserError
from safetensors.torch import load_file

from .counting import configuration

RANDOM_PARTS = {
    "xgboost": {"subsample": 0.5, "colsample_bytree": 0.5},
    "torch": {"dropout": 0.3, "batch_size": 100},
}


def made(name: str, *overrides: str, **hyperparameters: Any) -> objectives.Objective:
    """An untrained objective."""
    config = configuration(f"objective={name}", *overrides)
    return objectives.build(config, hyperparameters, num_threads=1)


@pytest.mark.parametrize("name", ["xgboost", "torch"])
def test_a_trial_learns(name: str):
    objective = made(name)
    scores = [objective.train_epoch() for _ in range(8)]
    assert scores[-1]["val_logloss"] < 0.7 * scores[0]["val_logloss"]
    assert scores[-1]["val_accuracy"] > 0.85
    assert objective.epoch == 8
    assert objective.test()["test_accuracy"] > 0.8


@pytest.mark.parametrize("name", ["xgboost", "torch"])
def test_interrupted_trial_makes_the_same_model(name: str, tmp_path: Path):
    undisturbed, first = made(name, **RANDOM_PARTS[name]), made(name, **RANDOM_PARTS[name])
    for objective in (undisturbed, first):
        for _ in range(3):
            objective.train_epoch()
        objective.save(tmp_path)
    second = made(name, **RANDOM_PARTS[name])
    second.load(tmp_path)
    assert second.epoch == 3
    expected = [undisturbed.train_epoch() for _ in range(3)]
    assert [second.train_epoch() for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("name", "values"), [("xgboost", {"learning_rate": 1e-6}), ("torch", {"lr": 0.0})]
)
def test_hyperparameters_change_in_the_course_of_training(name: str, values: dict[str, float]):
    objective = made(name)
    before = objective.train_epoch()["val_logloss"]
    config = configuration(f"objective={name}")
    objective.set(config.objective.hyperparameters | values)
    # With no learning rate nothing is learned.
    assert objective.train_epoch()["val_logloss"] == pytest.approx(before, rel=1e-3)


def test_a_schedule_is_followed_from_any_epoch():
    changes = "[{after_epoch: 2, lr: 0.5}, {after_epoch: 4, lr: 0.7, dropout: 0.2}]"
    config = configuration("objective=torch", "action=train", f"objective.schedule={changes}")
    found = [objectives.values_at(config, {}, epoch) for epoch in range(6)]
    assert [values["lr"] for values in found] == [0.001, 0.001, 0.5, 0.5, 0.7, 0.7]
    assert [values["dropout"] for values in found] == [0.1, 0.1, 0.1, 0.1, 0.2, 0.2]
    assert "after_epoch" not in found[-1]


def test_metric_that_is_not_reported_is_named_at_the_first_epoch():
    config = configuration()
    with pytest.raises(ValueError, match="tune.metric=val_logloss: the objective reports only f1"):
        objectives.check_reported(config, {"f1": 0.5})
    objectives.check_reported(config, {"val_logloss": 0.5})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["checkpoint.every_epochs=3", "train.epochs=8"], [3, 6, 8]),
        (["scheduler=pbt", "scheduler.perturbation_epochs=4", "train.epochs=10"], [4, 8, 10]),
    ],
)
def test_checkpoints_are_due(overrides: list[str], expected: list[int]):
    config = configuration(*overrides)
    epochs = range(1, config.train.epochs + 1)
    assert [e for e in epochs if objectives.checkpoint_due(config, e)] == expected


@pytest.mark.parametrize("dataset", ["breast_cancer", "wine", "diabetes"])
def test_xgboost_takes_each_of_scikit_learns_tables(dataset: str):
    objective = made("xgboost", f"objective.dataset={dataset}")
    metrics = configuration(f"objective.dataset={dataset}").objective.metrics
    assert objective.train_epoch().keys() == metrics.keys()


def test_splits_are_disjoint_and_complete():
    table = data.load("digits", None, 0)
    rows = np.concatenate([split.features for split in table.splits.values()])
    assert [len(split.labels) for split in table.splits.values()] == [1258, 270, 269]
    assert len(np.unique(rows, axis=0)) == len(np.unique(_digits(), axis=0))


def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().data, np.float32)


def test_torch_bundle_predicts_what_the_trial_predicts(tmp_path: Path):
    objective = made("torch", width=16, num_layers=1)
    for _ in range(5):
        objective.train_epoch()
    bundle = objective.bundle(tmp_path)
    model = bundle.model
    network = perceptron(model["num_inputs"], model["width"], model["num_layers"], 10).eval()
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    test = data.load("digits", None, 0).splits["test"]
    scaled = (test.features - bundle.preprocessor["mean"]) / bundle.preprocessor["std"]
    right = network(torch.from_numpy(scaled)).argmax(1).numpy() == test.labels
    assert right.mean() == pytest.approx(objective.test()["test_accuracy"])


def prepare(directory: Path) -> None:
    """Writes what `action=prepare` of data-preprocessing leaves, with a label of 2 * a - b."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = []
    generator = np.random.default_rng(0)
    for split, count in (("train", 400), ("val", 100), ("test", 100)):
        folder = directory / "attempt-1" / "features" / f"split={split}"
        folder.mkdir(parents=True)
        a, b = generator.normal(size=(2, count)).astype(np.float32)
        columns = {"row": np.arange(count), "b": b, "duration_min": 2 * a - b, "a": a}
        pq.write_table(pa.table(columns), folder / "part-0.parquet")
        files.append({"path": f"features/split={split}/part-0.parquet", "rows": count})
    manifest = {"kind": "features", "attempt": "attempt-1", "features": ["a", "b"]}
    manifest |= {"label": "duration_min", "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "attempt-1" / "preprocessor.json").write_text(json.dumps({"version": 1}))


def test_xgboost_reads_what_data_preprocessing_writes(tmp_path: Path):
    prepare(tmp_path)
    objective = made("xgboost", f"objective.path={tmp_path}")
    for _ in range(20):
        scores = objective.train_epoch()
    assert scores.keys() == {"val_rmse"}
    assert scores["val_rmse"] < 0.6  # The labels' deviation is 2.2.
    bundle = objective.bundle(tmp_path / "attempt-1")
    assert [feature["name"] for feature in bundle.features] == ["a", "b"]
    assert (bundle.task, bundle.preprocessor) == ("regression", {"version": 1})


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no manifest.json that can be read"),
        ("{", "a damaged manifest.json"),
        ('{"kind": "model"}', "the output of another action (model)"),
    ],
)
def test_wrong_prepared_run_is_refused(tmp_path: Path, content: str | None, found: str):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="objective.path=") as error:
        data.check_prepared(str(tmp_path))
    assert found in str(error.value)
