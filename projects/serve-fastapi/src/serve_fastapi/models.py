"""Loads model bundles and applies them: three stages, each plain Python, testable without Ray.

    rows -> Preprocess -> float32 array -> Predict -> array and version -> Postprocess -> answers

A bundle's hashes are checked before anything in it is used. Nothing is unpickled.
"""

import hashlib
import json
import math
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray_shared.bundle import Bundle, BundleError, read_bundle
from ray_shared.errors import UserError
from ray_shared.storage import open_storage

from serve_fastapi.trips import TripFeatures

KINDS = ("digits", "trips")
Array = NDArray[np.float32]
Infer = Callable[[Array], Array]
"""float32 [N, ...] -> float32 [N] or [N, classes]; vectorised over the rows."""
STAGES = ("preprocess", "predict", "postprocess")


@dataclass(frozen=True)
class Description:
    """What a client may know of a model."""

    name: str
    kind: str
    """One of `KINDS`."""
    framework: str
    version: str
    """The first 12 digits of a SHA-256 of all that answers depend on."""
    shape: tuple[int, int]
    """digits: (height, width) of an image; trips: (0, 0)."""
    maximum: float
    """digits: the largest value of a pixel."""
    metrics: dict[str, float]
    zones: frozenset[int]
    """trips: the zones that the model knows."""


def find(bundles: dict[str, str]) -> dict[str, Description]:
    """Describes every bundle, without loading a model.

    Raises:
        UserError: If one is missing, damaged, or of a kind that is not served.
    """
    described = {}
    for name, path in bundles.items():
        try:
            with _local(path) as directory:
                described[name] = describe(name, read_bundle(directory))
        except (BundleError, OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"models.bundles.{name}={path}: {error}") from None
    return described


def describe(name: str, bundle: Bundle) -> Description:
    """What a client may know of the model in a bundle.

    Raises:
        BundleError: If it is neither of images nor of trips.
    """
    kind, shape, maximum, zones = "trips", (0, 0), 0.0, frozenset[int]()
    if bundle.task == "classification":
        kind, shape = "digits", _image_shape(bundle)
        # The digits of scikit-learn have 17 shades, other images 256.
        maximum = 16.0 if shape == (8, 8) else 255.0
    elif bundle.model.get("label") != "duration_min":
        raise BundleError("bundle.json: a regression, but not of trips' durations")
    else:
        zones = frozenset(int(zone) for zone in bundle.preprocessor["zones"])
    return Description(
        name, kind, bundle.framework, version(bundle), shape, maximum, dict(bundle.metrics), zones
    )


def version(bundle: Bundle) -> str:
    """See `Description.version`."""
    parts = ("framework", "features", "classes", "model", "preprocessor", "files")
    content = json.dumps({name: getattr(bundle, name) for name in parts}, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def _image_shape(bundle: Bundle) -> tuple[int, int]:
    """(height, width); a model of single pixels must have a square number of them."""
    sizes = bundle.features[0]["shape"]
    if bundle.framework == "keras":
        height, width, channels = sizes
    elif len(sizes) == 3:
        channels, height, width = sizes
    else:
        number = sizes[0] if sizes else len(bundle.features)
        height = width = math.isqrt(number)
        channels = 1 if height * width == number else 0
    if channels != 1:
        raise BundleError("bundle.json: its features are not a gray image")
    return height, width


class Preprocess:
    """Makes the model's input of what a request holds."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle
        self.trips = None
        if bundle.task == "regression":
            self.trips = TripFeatures(bundle.preprocessor, [f["name"] for f in bundle.features])

    def __call__(self, rows: Sequence[Any]) -> Array:
        """float32 [N, ...] of images (nested lists or arrays) or of trips."""
        if self.trips is not None:
            return self.trips.transform(list(rows))
        images = np.asarray(rows, np.float32)
        if self.bundle.framework == "keras":
            return images[..., None]
        flat = len(self.bundle.features[0]["shape"]) < 3
        images = images.reshape(len(images), -1) if flat else images[:, None]
        fitted = self.bundle.preprocessor
        if "mean" in fitted and "std" in fitted:
            images = (images - fitted["mean"]) / fitted["std"]
        return np.ascontiguousarray(images, np.float32)


class Predict:
    """Applies the model."""

    def __init__(self, bundle: Bundle, directory: Path, num_threads: int):
        self.infer = FRAMEWORKS[bundle.framework](bundle, directory, num_threads)
        self.version = version(bundle)

    def __call__(self, inputs: Array) -> tuple[Array, str]:
        """What the model returns, and which version of it did."""
        return self.infer(inputs), self.version


class Postprocess:
    """Makes answers of what the model returns."""

    def __init__(self, bundle: Bundle):
        self.classes = bundle.classes

    def __call__(self, predicted: tuple[Array, str]) -> list[dict[str, Any]]:
        """One answer for each row: a label with probabilities, or minutes; and the version."""
        outputs, version = predicted
        if not self.classes:
            minutes = outputs.astype(float).round(4).tolist()
            return [{"minutes": value, "version": version} for value in minutes]
        best = outputs.argmax(axis=1).tolist()
        return [
            {"label": self.classes[index], "probabilities": row, "version": version}
            for index, row in zip(best, outputs.astype(float).round(6).tolist(), strict=True)
        ]


def load(path: str, stage: str, num_threads: int) -> Any:
    """One stage of a bundle.

    Args:
        path: The bundle: a directory or a URI.
        stage: One of `STAGES`.
        num_threads: For the model.

    Raises:
        BundleError: If a file is missing, damaged or of another format.
    """
    with _local(path) as directory:
        bundle = read_bundle(directory)
        if stage == "preprocess":
            return Preprocess(bundle)
        if stage == "postprocess":
            return Postprocess(bundle)
        return Predict(bundle, directory, num_threads)


def defaults(described: dict[str, Description]) -> list[str]:
    """The first model of each kind: what answers where no header chooses."""
    first = {model.kind: model.name for model in reversed(described.values())}
    return list(first.values())


class LocalStages:
    """All three stages in this process; the models asked for last stay loaded."""

    def __init__(self, settings: dict[str, Any]):
        """Takes the section `models` of the configuration."""
        self.settings = settings
        self.loaded: OrderedDict[str, list[Any]] = OrderedDict()
        self.lock = threading.Lock()

    def load(self, name: str) -> None:
        """Loads a model, and lets go of one if there are too many now."""
        path, num_threads = self.settings["bundles"][name], self.settings["num_threads"]
        self.loaded[name] = [load(path, stage, num_threads) for stage in STAGES]
        if len(self.loaded) > self.settings["max_loaded"]:
            self.loaded.popitem(last=False)

    def apply(self, name: str, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers for some rows; may be called from several threads."""
        with self.lock:
            if name not in self.loaded:
                self.load(name)
            self.loaded.move_to_end(name)
            stages = self.loaded[name]
        data: Any = rows
        for stage in stages:
            data = stage(data)
        return data


def _load_xgboost(bundle: Bundle, directory: Path, num_threads: int) -> Infer:
    import xgboost as xgb

    booster = xgb.Booster(model_file=_checked(bundle, directory, bundle.model["file"]))
    booster.set_param({"nthread": num_threads})
    return booster.inplace_predict


def _load_torch(bundle: Bundle, directory: Path, num_threads: int) -> Infer:
    import torch
    from safetensors.torch import load_file

    from serve_fastapi import networks

    torch.set_num_threads(num_threads)
    shape = bundle.features[0]["shape"]
    network = networks.build(bundle.model, shape, len(bundle.classes))
    network.load_state_dict(load_file(_checked(bundle, directory, "model.safetensors")))
    network.eval()

    @torch.inference_mode()
    def infer(inputs: Array) -> Array:
        return torch.softmax(network(torch.from_numpy(inputs)), dim=1).numpy()

    return infer


def _load_keras(bundle: Bundle, directory: Path, num_threads: int) -> Infer:
    import keras  # type: ignore[import-not-found,unused-ignore]
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    model = keras.models.load_model(_checked(bundle, directory, "model.keras"))
    return lambda inputs: model(inputs.astype(np.uint8), training=False).numpy()


def _checked(bundle: Bundle, directory: Path, name: str) -> Path:
    """A file of the bundle, if its hash is one of those that were compared."""
    if name not in bundle.files:
        raise BundleError(f"bundle.json: files: no {name}")
    return directory / name


FRAMEWORKS: dict[str, Callable[[Bundle, Path, int], Infer]] = {
    "xgboost": _load_xgboost,
    "torch": _load_torch,
    "keras": _load_keras,
}


@contextmanager
def _local(path: str) -> Iterator[Path]:
    """The bundle as a directory on this machine."""
    if "://" not in path:
        yield Path(os.path.expanduser(path))  # noqa: PTH111 - no such user: not found
        return
    with tempfile.TemporaryDirectory() as name:
        open_storage(path).download(Path(name))
        yield Path(name)


def _example_trip(model: Description) -> dict[str, Any]:
    return {
        "pickup_at": datetime(2026, 1, 7, 17, 30),
        "distance_miles": 3.2,
        "pickup_zone": min(model.zones),
        "dropoff_zone": max(model.zones),
        "passengers": 1.0,
        "vendor": 1,
        "ratecode": 1,
    }


def _example_digit(model: Description) -> list[list[float]]:
    """A ring, which is a zero."""
    height, width = model.shape

    def value(row: int, column: int) -> float:
        y, x = (2 * row + 1) / height - 1, 2 * ((2 * column + 1) / width - 1)
        return model.maximum if 0.5 < y * y + x * x < 1.3 else 0.0

    return [[value(row, column) for column in range(width)] for row in range(height)]


EXAMPLES: dict[str, Callable[[Description], Any]] = {
    "digits": _example_digit,
    "trips": _example_trip,
}
"""A row that each kind of model takes."""
