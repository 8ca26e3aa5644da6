"""What is exported is loaded again, and compared."""

from pathlib import Path

import pytest
from ray_shared.bundle import read_bundle
from ray_shared.config import compose
from ray_shared.errors import JobError
from ray_shared.storage import open_storage
from tf_train import data, export
from tf_train.config import Config
from tf_train.model import build_model


def test_export_that_predicts_otherwise_fails_the_job(tmp_path: Path):
    config = compose(Config, "tf_train.conf", ["model=mlp", "model.width=8"])
    images = data.load(config.data).splits["test"].images
    model = build_model(config.model, [8, 8, 1], 10, 5.0, 6.0, "fp32", 0)
    run_dir = open_storage(str(tmp_path))
    predictions = export.write(model, config, {"accuracy": 0.5}, {"keras": "3"}, images, run_dir)
    bundle = read_bundle(tmp_path / "bundle")
    assert (bundle.metrics, bundle.versions) == ({"accuracy": 0.5}, {"keras": "3"})

    returned = {"predictions": predictions}
    export.reload(config, run_dir, returned)
    assert returned["reloaded_max_difference"] < 1e-5
    with pytest.raises(JobError, match="predicts otherwise than the workers"):
        export.reload(config, run_dir, {"predictions": predictions + 0.01})
