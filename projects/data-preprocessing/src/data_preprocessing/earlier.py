"""What earlier runs have left for this one: prepared rows to train on, a model to score with."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_shared.bundle import MANIFEST as BUNDLE_FILE
from ray_shared.bundle import Bundle, BundleError, read_bundle
from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage, reason_of

from data_preprocessing.config import Config
from data_preprocessing.features import LABEL, Preprocessor
from data_preprocessing.output import read_manifest


def newest_run(storage: Storage, kind: str, key: str) -> Storage:
    """The run that was completed last.

    Args:
        storage: The directory of all runs.
        kind: What its manifest says it is: `features`, `model` or `predictions`.
        key: The configuration key that would name one.

    Raises:
        UserError: If there is none.
    """
    found = []
    for name in storage.names():
        manifest = read_manifest(storage.child(name))
        if manifest is not None and manifest["kind"] == kind:
            found.append((manifest["made"], name))
    if not found:
        action = {"features": "prepare", "model": "train"}[kind]
        raise UserError(f"{key}=null: no finished run of action={action} in {storage.uri}")
    return storage.child(max(found)[1])


def find_dataset(config: Config) -> tuple[Storage, dict[str, Any]]:
    """The prepared run to train on, and its manifest.

    Raises:
        UserError: If there is none.
    """
    if config.dataset is None:
        dataset = newest_run(open_storage(config.storage.path), "features", "dataset")
    else:
        dataset = open_storage(config.dataset, retries=2, key="dataset")
    with asked_for("dataset", dataset.uri):
        manifest = read_manifest(dataset)
    if manifest is None or manifest["kind"] != "features":
        raise UserError(f"dataset={config.dataset}: must be the directory of a prepared run")
    return dataset, manifest


def bundle_place(config: Config) -> Storage:
    """Where the bundle to score with lies: the one that is named, or the newest.

    Raises:
        UserError: If there is none.
    """
    if config.score.bundle is None:
        runs = open_storage(config.storage.path)
        return newest_run(runs, "model", "score.bundle").child("bundle")
    bundle = open_storage(config.score.bundle, retries=2, key="score.bundle")
    with asked_for("score.bundle", bundle.uri):
        if not bundle.child(BUNDLE_FILE).exists():
            raise UserError(f"score.bundle={bundle.uri}: no bundle there")
    return bundle


def find_bundle(config: Config) -> tuple[Storage, Bundle]:
    """The bundle to score with, and its description.

    Raises:
        UserError: If there is none, if it is damaged, or of another project.
    """
    bundle = bundle_place(config)
    with tempfile.TemporaryDirectory() as directory, asked_for("score.bundle", bundle.uri):
        bundle.download(Path(directory))
        try:
            described = read_bundle(Path(directory))
        except BundleError as error:
            reason = str(error).replace(directory, bundle.uri)
            raise UserError(f"score.bundle: {reason}") from None
    if described.framework != "xgboost" or described.model.get("label") != LABEL:
        raise UserError(f"score.bundle={bundle.uri}: not a model of trip durations")
    try:
        Preprocessor(described.preprocessor)
    except (ValueError, KeyError) as error:
        raise UserError(f"score.bundle={bundle.uri}: its preprocessor: {error}") from None
    return bundle, described


@contextmanager
def asked_for(key: str, uri: str) -> Iterator[None]:
    """Turns what the storage answers into a sentence that names the key.

    Raises:
        UserError: If the storage fails.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}={uri}: cannot be read: {reason_of(error)}") from None


def locked(config: Config) -> dict[str, Any]:
    """What a run of the same name must not change, with the content of what it starts from."""
    found = config.locked()
    if config.action == "train":
        dataset, manifest = find_dataset(config)
        found["dataset"] = f"{dataset.uri} of {manifest['made']}"
    if config.action == "score":
        bundle = bundle_place(config)
        with asked_for("score.bundle", bundle.uri):
            content = hashlib.sha256(bundle.child(BUNDLE_FILE).read_bytes()).hexdigest()
        found["score"] = {"bundle": f"{bundle.uri} ({content[:12]})"}
    return found
