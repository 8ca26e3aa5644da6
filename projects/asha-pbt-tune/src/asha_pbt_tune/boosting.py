"""XGBoost as an objective: an epoch is a boosting round."""

from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb
from ray_shared.bundle import Bundle
from ray_shared.report import versions

from asha_pbt_tune import data
from asha_pbt_tune.config import PROJECT, Config

MODEL = "model.ubj"


class Boosting:
    """Gradient-boosted trees on a table. See `objectives.Objective`."""

    def __init__(self, config: Config, hyperparameters: dict[str, Any], num_threads: int):
        objective = config.objective
        self.table = data.load(objective.dataset, objective.path, objective.split_seed)
        self.seed = config.train.seed
        self.epoch = 0
        self.fixed: dict[str, Any] = {"tree_method": "hist", "nthread": num_threads}
        if config.trial.use_gpu:
            self.fixed["device"] = "cuda"
        if self.table.classes:
            classes = len(self.table.classes)
            self.fixed |= {"objective": "multi:softprob", "num_class": classes}
            self.metrics = ["mlogloss", "merror"]
        else:
            self.fixed |= {"objective": "reg:squarederror"}
            self.metrics = ["rmse"]
        train = self.table.splits["train"]
        self.train = xgb.QuantileDMatrix(train.features, train.labels, nthread=num_threads)
        # Into the bins of the training rows.
        self.val, self.held_out = (
            xgb.QuantileDMatrix(rows.features, rows.labels, ref=self.train, nthread=num_threads)
            for rows in (self.table.splits["val"], self.table.splits["test"])
        )
        self.set(hyperparameters)
        self.booster = self._booster(None)

    def set(self, hyperparameters: dict[str, Any]) -> None:
        """From the next round on."""
        self.hyperparameters = hyperparameters
        if self.epoch:
            self.booster.set_param(hyperparameters)

    def train_epoch(self) -> dict[str, float]:
        """One round: a tree, or one for each class."""
        self.booster.update(self.train, self.epoch)
        self.epoch += 1
        return {f"val_{name}": value for name, value in self._evaluate(self.val).items()}

    def save(self, directory: Path) -> None:
        """Writes the trees, and goes on from them.

        The random numbers of subsampling are a state of the booster that is not in the file. As
        the booster begins anew here, too, a trial that is interrupted after this makes the same
        trees as one that is not.
        """
        self.booster.save_model(directory / MODEL)
        self.load(directory)

    def load(self, directory: Path) -> None:
        """Takes over the trees."""
        self.booster = self._booster(directory / MODEL)
        self.epoch = self.booster.num_boosted_rounds()
        self.booster.set_param({"seed": self.seed + self.epoch})

    def test(self) -> dict[str, float]:
        """Metrics on the test rows."""
        return {f"test_{name}": value for name, value in self._evaluate(self.held_out).items()}

    def bundle(self, directory: Path) -> Bundle:
        """Writes the trees."""
        self.booster.save_model(directory / MODEL)
        names = self.table.names
        return Bundle(
            framework="xgboost",
            task="classification" if self.table.classes else "regression",
            features=[{"name": name, "dtype": "float32", "shape": []} for name in names],
            classes=self.table.classes,
            model={"file": MODEL},
            preprocessor=self.table.preprocessor,
            metrics={},
            versions=versions(PROJECT),
        )

    def _booster(self, trees: Path | None) -> xgb.Booster:
        # A list, because a parameter that is given twice counts twice only there.
        params = [*self.fixed.items(), *self.hyperparameters.items(), ("seed", self.seed)]
        params += [("eval_metric", name) for name in self.metrics]
        return xgb.Booster(params, [self.train, self.val, self.held_out], trees)

    def _evaluate(self, matrix: xgb.QuantileDMatrix) -> dict[str, float]:
        # A line of fields between tabs: the round, then metrics such as `x-mlogloss:0.25`.
        fields = self.booster.eval_set([(matrix, "x")], self.epoch).split("\t")[1:]
        found = {f.split(":")[0].removeprefix("x-"): float(f.split(":")[1]) for f in fields}
        if "rmse" in found:
            return {"rmse": found["rmse"]}
        return {"logloss": found["mlogloss"], "accuracy": float(np.round(1 - found["merror"], 12))}
