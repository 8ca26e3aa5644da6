"""Small models for a first start, in a few seconds: two of digits, one of trips.

The digits are scikit-learn's. The trips are generated: whoever wants real ones trains them with
data-preprocessing and names the bundle.
"""

import math
import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from ray_shared.bundle import Bundle, BundleError, read_bundle, write_bundle
from ray_shared.report import versions

from serve_fastapi.config import PROJECT
from serve_fastapi.trips import Trip, TripFeatures

NAMES = ("digits", "digits-small", "trips")
BOROUGHS = ("Manhattan", "Brooklyn", "Queens")
NUM_ZONES = 30
NUM_TRIPS = 20_000


def named(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with these models in them if they name none.

    They are made where they are needed: a replica may be on a machine that has none yet.
    """
    if settings["models"]["bundles"]:
        return settings
    bundles = ensure(Path(settings["storage"]["path"]) / "serve-fastapi-models")
    return settings | {"models": settings["models"] | {"bundles": bundles}}


def ensure(directory: Path) -> dict[str, str]:
    """Makes those of the models that are not there yet.

    Returns:
        Name to directory of each.
    """
    make = {"digits": _digits, "digits-small": _digits_small, "trips": _trips}
    for name, build in make.items():
        target = directory / name
        try:
            read_bundle(target)
            continue
        except BundleError:
            shutil.rmtree(target, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, whoever else makes them at the same time.
        with tempfile.TemporaryDirectory(dir=directory) as part:
            made = Path(part, name)
            made.mkdir()
            write_bundle(made, build(made))
            try:
                made.rename(target)
            except OSError:
                read_bundle(target)
    return {name: str((directory / name).absolute()) for name in NAMES}


def _digits(directory: Path) -> Bundle:
    return _boosted_digits(directory, rounds=60, max_depth=4)


def _digits_small(directory: Path) -> Bundle:
    return _boosted_digits(directory, rounds=10, max_depth=2)


def _boosted_digits(directory: Path, rounds: int, max_depth: int) -> Bundle:
    import xgboost as xgb
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    test, train = order[:300], order[300:]
    pixels = digits.data.astype(np.float32)
    params = {
        "objective": "multi:softprob",
        "num_class": 10,
        "max_depth": max_depth,
        "eta": 0.3,
        "seed": 0,
        "nthread": 2,
    }
    booster = xgb.train(params, xgb.DMatrix(pixels[train], digits.target[train]), rounds)
    found = booster.inplace_predict(pixels[test]).argmax(axis=1)
    booster.save_model(directory / "model.ubj")
    names = [f"pixel_{i}" for i in range(64)]
    return Bundle(
        framework="xgboost",
        task="classification",
        features=[{"name": name, "dtype": "float32", "shape": []} for name in names],
        classes=[str(i) for i in range(10)],
        model={"file": "model.ubj"},
        preprocessor={},
        metrics={"accuracy": float((found == digits.target[test]).mean())},
        versions=versions(PROJECT),
    )


def _trips(directory: Path) -> Bundle:
    import xgboost as xgb

    trips, minutes = generated_trips(NUM_TRIPS, seed=0)
    state = _fit(trips, minutes)
    names = [*state["scales"]]  # type: ignore[misc]
    features = TripFeatures(state, names).transform(trips)
    test = slice(0, NUM_TRIPS // 10)
    train = slice(NUM_TRIPS // 10, None)
    params = {"objective": "reg:squarederror", "max_depth": 5, "eta": 0.2, "seed": 0, "nthread": 2}
    booster = xgb.train(params, xgb.DMatrix(features[train], minutes[train]), 60)
    error = booster.inplace_predict(features[test]) - minutes[test]
    booster.save_model(directory / "model.ubj")
    return Bundle(
        framework="xgboost",
        task="regression",
        features=[{"name": name, "dtype": "float32", "shape": []} for name in names],
        classes=[],
        model={"file": "model.ubj", "label": "duration_min", "unit": "minutes"},
        preprocessor=state,
        metrics={"rmse": float(np.sqrt(np.mean(error**2)))},
        versions=versions(PROJECT),
    )


def generated_trips(number: int, seed: int) -> tuple[list[Trip], np.ndarray]:
    """Trips, and how many minutes each took: slower in the rush hours and in Manhattan."""
    rng = np.random.default_rng(seed)
    distance = rng.gamma(1.6, 1.9, number).clip(0.2, 40).round(2)
    start = rng.integers(0, 28 * 24 * 60, number)
    zones = rng.integers(1, NUM_ZONES + 1, (number, 2))
    first = datetime(2026, 1, 5)
    trips: list[Trip] = [
        {
            "pickup_at": first + timedelta(minutes=int(start[i])),
            "distance_miles": float(distance[i]),
            "pickup_zone": int(zones[i, 0]),
            "dropoff_zone": int(zones[i, 1]),
            "passengers": 1.0,
            "vendor": 1,
            "ratecode": 1,
        }
        for i in range(number)
    ]
    hour = start // 60 % 24
    rush = np.exp(-((hour - 8.5) ** 2) / 6) + np.exp(-((hour - 17.5) ** 2) / 8)
    mph = (18 - 7 * rush) * np.where(zones[:, 0] <= NUM_ZONES // 3, 0.7, 1.0)
    return trips, (2 + distance / mph * 60 * rng.lognormal(0, 0.1, number)).astype(np.float32)


def _fit(trips: list[Trip], minutes: np.ndarray) -> dict[str, object]:
    """The state of a preprocessor, with what `TripFeatures` needs."""
    zone = np.array([trip["pickup_zone"] for trip in trips])
    distance = np.array([trip["distance_miles"] for trip in trips])
    mean = float(minutes.mean())
    encoded = {str(z): float(minutes[zone == z].mean()) for z in range(1, NUM_ZONES + 1)}
    circle = [0.0, math.sqrt(0.5)]
    logs = np.log1p(distance)
    return {
        "version": 1,
        "zones": {str(z): BOROUGHS[(z - 1) * 3 // NUM_ZONES] for z in range(1, NUM_ZONES + 1)},
        "scales": {
            "trip_distance": [float(distance.mean()), float(distance.std())],
            "log_distance": [float(logs.mean()), float(logs.std())],
            "hour_sin": circle,
            "hour_cos": circle,
            "is_weekend": [2 / 7, math.sqrt(10) / 7],
            "pickup_minutes": [mean, float(np.std(list(encoded.values())))],
        },
        "categories": {},
        "pickup_hour": {},
        "pickup": encoded,
        "dropoff": {},
        "unseen": {"minutes": mean, "mph": 12.0, "log_trips": 0.0},
    }
