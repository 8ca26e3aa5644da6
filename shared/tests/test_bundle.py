"""The model bundle: written, read, damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
from ray_shared.bundle import MANIFEST, Bundle, BundleError, read_bundle, sha256, write_bundle

FIELDS: dict[str, Any] = {
    "framework": "torch",
    "task": "classification",
    "features": [{"name": "image", "dtype": "uint8", "shape": [1, 8, 8]}],
    "classes": ["0", "1"],
    "model": {"width": 8},
    "preprocessor": {"mean": [0.5]},
    "metrics": {"accuracy": 0.97},
    "versions": {"python": "3.11"},
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 1000)
    (tmp_path / "preprocessor.json").write_text("{}")
    write_bundle(tmp_path, Bundle(**FIELDS))
    return tmp_path


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bundle_comes_back_as_it_was_written(directory: Path):
    bundle = read_bundle(directory)
    weights, preprocessor = directory / "model.safetensors", directory / "preprocessor.json"
    files = {weights.name: sha256(weights), preprocessor.name: sha256(preprocessor)}
    assert bundle == Bundle(**FIELDS, files=files)
    assert files["preprocessor.json"].startswith("44136fa355b3678a")  # The SHA-256 of `{}`.


def test_bundle_written_again_hashes_the_new_files(directory: Path):
    (directory / "model.safetensors").write_bytes(b"other weights")
    write_bundle(directory, Bundle(**FIELDS))
    assert read_bundle(directory).files.keys() == {"model.safetensors", "preprocessor.json"}


def test_file_changed_by_one_byte_is_named(directory: Path):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"model\.safetensors: its SHA-256 is not the one"):
        read_bundle(directory)


def test_truncated_file_is_named(directory: Path):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BundleError, match=r"model\.safetensors: its SHA-256"):
        read_bundle(directory)


def test_missing_file_is_named(directory: Path):
    (directory / "preprocessor.json").unlink()
    with pytest.raises(BundleError, match=r"preprocessor\.json: named by bundle\.json, but miss"):
        read_bundle(directory)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_file_outside_the_bundle_is_refused(directory: Path, name: str):
    (directory.parent / "outside").write_text("x")
    edit_manifest(directory, files={name: "0" * 64})
    with pytest.raises(BundleError, match="named by bundle.json, but missing"):
        read_bundle(directory)


def test_other_format_version_is_named(directory: Path):
    edit_manifest(directory, format_version=2)
    with pytest.raises(BundleError, match=r"bundle\.json: format_version is 2, this code reads 1"):
        read_bundle(directory)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 1}', "null"])
def test_damaged_manifest_is_named(directory: Path, content: str):
    (directory / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.json: not a bundle manifest"):
        read_bundle(directory)


def test_manifest_with_an_unknown_key_is_named(directory: Path):
    edit_manifest(directory, weights="pickle")
    with pytest.raises(BundleError, match=r"bundle\.json: not a bundle manifest .*weights"):
        read_bundle(directory)


def test_missing_manifest_is_named(tmp_path: Path):
    with pytest.raises(BundleError, match=r"bundle\.json: not a bundle manifest"):
        read_bundle(tmp_path)
