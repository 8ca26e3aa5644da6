"""What each objective can be told, what it reports, and which ways to search are compared.

Plain tables, so that a mistake in a search space is found before anything heavy is imported.
"""

from dataclasses import dataclass

CLASSIFICATION_METRICS = {"val_logloss": "min", "val_accuracy": "max"}
REGRESSION_METRICS = {"val_rmse": "min"}
DATASETS = {
    "digits": CLASSIFICATION_METRICS,
    "breast_cancer": CLASSIFICATION_METRICS,
    "wine": CLASSIFICATION_METRICS,
    "diabetes": REGRESSION_METRICS,
}
"""Those inside scikit-learn, and their metrics with the better end of each."""
VARIANTS = {
    "random": ("random", "none"),
    "asha": ("random", "asha"),
    "asha_tpe": ("optuna", "asha"),
    "pbt": ("random", "pbt"),
}
"""What `action=compare` compares: search and scheduler."""


@dataclass(frozen=True)
class Hyperparameter:
    """One key of an objective."""

    kind: type[int] | type[float]
    mutable: bool = True
    """Whether it may change while a model is trained, as PBT does."""


OBJECTIVES = {
    # https://xgboost.readthedocs.io/en/release_3.2.0/parameter.html
    "xgboost": {
        "learning_rate": Hyperparameter(float),
        "max_depth": Hyperparameter(int),
        "min_child_weight": Hyperparameter(float),
        "gamma": Hyperparameter(float),
        "subsample": Hyperparameter(float),
        "colsample_bytree": Hyperparameter(float),
        "reg_lambda": Hyperparameter(float),
        "reg_alpha": Hyperparameter(float),
    },
    "torch": {
        "lr": Hyperparameter(float),
        "weight_decay": Hyperparameter(float),
        "dropout": Hyperparameter(float),
        "label_smoothing": Hyperparameter(float),
        "batch_size": Hyperparameter(int),
        "width": Hyperparameter(int, mutable=False),
        "num_layers": Hyperparameter(int, mutable=False),
    },
}
