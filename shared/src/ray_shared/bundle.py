"""The model bundle: a directory that one project writes and another one loads.

`bundle.json` names the format, the framework, the task, the inputs and classes, the metrics, the
library versions and the SHA-256 of every other file. Nothing in it is pickled.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
MANIFEST = "bundle.json"


class BundleError(ValueError):
    """The bundle is damaged or of another format; the message names the file."""


@dataclass
class Bundle:
    """The content of `bundle.json`."""

    framework: str
    """`torch`, `keras` or `xgboost`."""
    task: str
    """`classification` or `regression`."""
    features: list[dict[str, Any]]
    """Name, dtype and shape of each input, in order."""
    classes: list[str]
    """Class names in the order of the outputs; empty for regression."""
    model: dict[str, Any]
    """What the project needs to build the model again."""
    preprocessor: dict[str, Any]
    """The fitted preprocessor."""
    metrics: dict[str, float]
    versions: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    """File name to SHA-256; filled by `write_bundle`."""
    format_version: int = FORMAT_VERSION


def write_bundle(directory: Path, bundle: Bundle) -> None:
    """Hashes the files that lie in `directory` and writes `bundle.json` beside them."""
    names = sorted(p.name for p in directory.iterdir() if p.is_file() and p.name != MANIFEST)
    bundle.files = {name: sha256(directory / name) for name in names}
    (directory / MANIFEST).write_text(json.dumps(asdict(bundle), indent=2) + "\n")


def read_bundle(directory: Path) -> Bundle:
    """Reads `bundle.json` and checks every file it names.

    Raises:
        BundleError: If the manifest or a file is missing, damaged or of another format.
    """
    manifest = directory / MANIFEST
    try:
        content = json.loads(manifest.read_text())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise BundleError(f"{manifest}: format_version is {version}, this code reads 1")
        bundle = Bundle(**content)
    except BundleError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{manifest}: not a bundle manifest ({error})") from None
    for name, expected in bundle.files.items():
        path = directory / name
        if path.parent != directory or not path.is_file():
            raise BundleError(f"{path}: named by {MANIFEST}, but missing")
        if sha256(path) != expected:
            raise BundleError(f"{path}: its SHA-256 is not the one in {MANIFEST}")
    return bundle


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
