"""Fixtures of all tests of this project."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ray_shared.testing import Job, ray_tmpdir, start_job
from ray_shared.testing_s3 import s3_server

# Before Keras is imported: it writes a file into the home directory. Jobs inherit this.
os.environ["KERAS_HOME"] = os.devnull

__all__ = ["ray_tmpdir", "s3_server"]

StartJob = Callable[..., AbstractContextManager[Job]]


@pytest.fixture
def start(tmp_path: Path, ray_tmpdir: Path) -> StartJob:
    """Starts `python -m tf_train` in the test's own directory."""

    def begin(*overrides: str, env: dict[str, str] | None = None) -> AbstractContextManager[Job]:
        return start_job("tf_train", overrides, tmp_path, env)

    return begin
