"""Fixtures of all tests of this project."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ray_shared.testing import Job, ray_tmpdir, start_job

__all__ = ["ray_tmpdir"]

StartJob = Callable[..., AbstractContextManager[Job]]


@pytest.fixture
def start(tmp_path: Path, ray_tmpdir: Path) -> StartJob:
    """Starts `python -m core_parameter_server` in the test's own directory."""

    def begin(*overrides: str, env: dict[str, str] | None = None) -> AbstractContextManager[Job]:
        return start_job("core_parameter_server", overrides, tmp_path, env)

    return begin
