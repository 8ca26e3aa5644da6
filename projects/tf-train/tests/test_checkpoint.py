"""What is written can be read, and what is not whole is not trusted."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ray.train import Checkpoint
from ray_shared.bundle import sha256
from tf_train import checkpoint as ckpt
from tf_train.backend import keras
from tf_train.config import ModelConfig
from tf_train.model import build_model

Trained = tuple["keras.Model", "keras.optimizers.Optimizer"]


def built(width: int = 8, seed: int = 0, name: str = "mlp") -> Trained:
    model = build_model(ModelConfig(name, width), [8, 8, 1], 10, 5.0, 6.0, "fp32", seed)
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.build(model.trainable_variables)
    return model, optimizer


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a model after one step."""
    monkeypatch.chdir(tmp_path)
    model, optimizer = built()
    optimizer.apply([v.value * 0 + 1 for v in model.trainable_variables])
    return Path(ckpt.save(model, optimizer, ckpt.Position(epoch=2, step=40)).path)


def test_everything_comes_back(saved: Path):
    checkpoint = Checkpoint.from_directory(str(saved))
    expected, moved = built()
    moved.apply([v.value * 0 + 1 for v in expected.trainable_variables])
    model, optimizer = built(seed=5)
    assert ckpt.damage(checkpoint, model) is None
    position = ckpt.restore(checkpoint, model, optimizer)
    assert (position.epoch, position.step) == (2, 40)
    for ours, theirs in (
        (model.variables, expected.variables),
        (optimizer.variables, moved.variables),
    ):
        for got, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(got.numpy(), wanted.numpy())


@pytest.mark.parametrize("file", [ckpt.MODEL, ckpt.OPTIMIZER, ckpt.POSITION])
@pytest.mark.parametrize(("harm", "word"), [("cut", "damaged"), ("remove", "missing")])
def test_harm_to_any_file_is_found(saved: Path, file: str, harm: str, word: str):
    if harm == "cut":
        os.truncate(saved / file, (saved / file).stat().st_size // 2)
    else:
        (saved / file).unlink()
    checkpoint = Checkpoint.from_directory(str(saved))
    assert ckpt.damage(checkpoint, built()[0]) == f"{file} is {word}"


@pytest.mark.parametrize("content", [None, "{"])
def test_harm_to_the_manifest_is_found(saved: Path, content: str | None):
    (saved / ckpt.MANIFEST).unlink()
    if content is not None:
        (saved / ckpt.MANIFEST).write_text(content)
    found = ckpt.damage(Checkpoint.from_directory(str(saved)), built()[0])
    assert found == "manifest.json is missing or damaged"


@pytest.mark.parametrize(("width", "name"), [(16, "mlp"), (8, "cnn")])
def test_model_of_another_architecture_is_refused(saved: Path, width: int, name: str):
    other, _ = built(width, name=name)
    other.save(saved / ckpt.MODEL)
    # Whole, as far as the hashes know.
    hashes = json.loads((saved / ckpt.MANIFEST).read_text())
    hashes[ckpt.MODEL] = sha256(saved / ckpt.MODEL)
    (saved / ckpt.MANIFEST).write_text(json.dumps(hashes))
    found = ckpt.damage(Checkpoint.from_directory(str(saved)), built()[0])
    assert found == "model.keras is a model of another architecture"


def test_mean_and_spread_of_the_data_are_no_architecture(saved: Path):
    other = build_model(ModelConfig("mlp", 8), [8, 8, 1], 10, 1.0, 2.0, "fp32", 0)
    assert ckpt.damage(Checkpoint.from_directory(str(saved)), other) is None


def test_the_first_good_one_is_found_behind_the_others(saved: Path, tmp_path: Path):
    good = tmp_path / "good"
    shutil.copytree(saved, good)
    (saved / ckpt.OPTIMIZER).unlink()
    both = [Checkpoint.from_directory(str(path)) for path in (saved, good)]
    model, _ = built()
    assert ckpt.damaged_first(both, model) == [f"{saved.name}: optimizer.npz is missing"]
