"""The trained model in two forms: a model bundle with a `.keras` file, and a SavedModel.

Both take uint8 images [N, H, W, C] and return probabilities, float32 [N, classes].

Source: https://keras.io/api/models/model_saving_apis/export/
"""

import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ray_shared.bundle import Bundle, read_bundle, write_bundle
from ray_shared.errors import JobError
from ray_shared.storage import Storage

from tf_train.backend import keras, stderr_dropped, tf
from tf_train.config import Config
from tf_train.data import load_split
from tf_train.model import classifier

logger = logging.getLogger(__name__)
MODEL = "model.keras"
PARTS = ("bundle", "saved_model")
NUM_COMPARED = 256
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
"""By which the probabilities of another device or process may differ."""


def write(
    model: "keras.Model",
    config: Config,
    metrics: dict[str, float],
    versions: dict[str, str],
    images: np.ndarray,
    run_dir: Storage,
) -> np.ndarray:
    """Writes both forms, to `bundle` and `saved_model` in the run's directory.

    Args:
        model: The trained network, with logits.
        config: What is written into the bundle's description.
        metrics: Likewise.
        versions: Likewise; of the libraries on the driver, where the project is installed.
        images: The test images; uint8 [N, H, W, C].
        run_dir: The run's directory.

    Returns:
        What the model says of the first `NUM_COMPARED` images; float32 [NUM_COMPARED, classes].
    """
    trained = classifier(model)
    described = Bundle(
        framework="keras",
        task="classification",
        features=[{"name": "image", "dtype": "uint8", "shape": list(config.data.shape)}],
        classes=[str(i) for i in range(config.data.num_classes)],
        model=asdict(config.model),
        preprocessor={},
        metrics=metrics,
        versions=versions,
    )
    with tempfile.TemporaryDirectory() as name:
        bundle, saved = (Path(name, part) for part in PARTS)
        bundle.mkdir()
        trained.save(bundle / MODEL)
        write_bundle(bundle, described)
        # Read anew: what the strategy has placed is not what a server should load.
        keras.models.load_model(bundle / MODEL).export(saved, verbose=False)
        for part in PARTS:
            run_dir.child(part).upload(Path(name, part))
    predictions: np.ndarray = trained(images[:NUM_COMPARED]).numpy()
    return predictions


def reload(config: Config, run_dir: Storage, returned: dict[str, Any]) -> None:
    """Loads both forms, as a server would, and compares them with the workers' model.

    Args:
        config: Of the run.
        run_dir: The run's directory.
        returned: What the workers returned. `passed_over` and `predictions` are taken out; the
            places of both forms and `reloaded_max_difference`, the largest difference of a
            probability, are put in.

    Raises:
        JobError: If a probability differs by more than `TOLERANCE`.
    """
    for line in returned.pop("passed_over", ()):
        logger.warning("damaged checkpoint passed over: %s", line)
    expected = returned.pop("predictions", None)
    if expected is None:
        return  # Training has stopped before.
    images = tf.constant(load_split(config.data, "test").images[:NUM_COMPARED])
    with tempfile.TemporaryDirectory() as name:
        bundle, saved = (Path(name, part) for part in PARTS)
        for part in PARTS:
            Path(name, part).mkdir()
            run_dir.child(part).download(Path(name, part))
            returned[part] = run_dir.child(part).uri
        read_bundle(bundle)
        with stderr_dropped():
            signature = tf.saved_model.load(str(saved)).signatures["serving_default"]
        (served,) = signature(images).values()
        model = keras.models.load_model(bundle / MODEL)
        found = dict(zip(PARTS, (model(images).numpy(), served.numpy()), strict=True))
    differences = {part: float(np.abs(found[part] - expected).max()) for part in PARTS}
    for part, difference in differences.items():
        if not difference <= TOLERANCE[config.train.precision]:
            raise JobError(
                f"{returned[part]} predicts otherwise than the workers: probabilities differ by up "
                f"to {difference:.2g}"
            )
    returned["reloaded_max_difference"] = max(differences.values())
