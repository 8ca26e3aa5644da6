"""Fixtures of all tests of this project."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ray_shared.testing import Job, ray_tmpdir, start_job
from ray_shared.testing_s3 import s3_server

__all__ = ["ray_tmpdir", "s3_server"]

StartJob = Callable[..., AbstractContextManager[Job]]


@pytest.fixture
def start(tmp_path: Path, ray_tmpdir: Path) -> StartJob:
    """Starts `python -m asha_pbt_tune` in the test's own directory."""

    def begin(*overrides: str, env: dict[str, str] | None = None) -> AbstractContextManager[Job]:
        return start_job("asha_pbt_tune", overrides, tmp_path, env)

    return begin
