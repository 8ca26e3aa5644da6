"""Fixtures of all tests of the shared package."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ray_shared.testing import Job, ray_tmpdir, start_job
from ray_shared.testing_s3 import s3_server

__all__ = ["ray_tmpdir", "s3_server"]

StartJob = Callable[..., AbstractContextManager[Job]]


@pytest.fixture(scope="session", autouse=True)
def _tiny_job_on_path() -> Iterator[None]:
    """Makes `tiny_job` importable here, in jobs and in Ray's workers, as if it were installed."""
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        patch.setenv("PYTHONPATH", here, prepend=os.pathsep)
        yield


@pytest.fixture
def start(tmp_path: Path, ray_tmpdir: Path) -> StartJob:
    """Starts `python -m tiny_job` in the test's own directory."""

    def begin(*overrides: str, env: dict[str, str] | None = None) -> AbstractContextManager[Job]:
        return start_job("tiny_job", overrides, tmp_path, env)

    return begin
