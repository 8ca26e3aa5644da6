"""Fixtures of all tests of the doctor."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ray_doctor.check import Check
from ray_doctor.config import Config
from ray_shared.config import compose
from ray_shared.testing import Job, ray_tmpdir, start_job
from ray_shared.testing_s3 import s3_server

__all__ = ["ray_tmpdir", "s3_server"]

StartJob = Callable[..., AbstractContextManager[Job]]


@pytest.fixture
def start(tmp_path: Path, ray_tmpdir: Path) -> StartJob:
    """Starts `python -m ray_doctor` in the test's own directory."""

    def begin(*overrides: str, env: dict[str, str] | None = None) -> AbstractContextManager[Job]:
        return start_job("ray_doctor", overrides, tmp_path, env)

    return begin


@functools.cache
def configured(*overrides: str) -> Config:
    return compose(Config, "ray_doctor.conf", overrides)


def by_name(checks: Sequence[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def wrong(checks: Sequence[Check]) -> dict[str, str]:
    """Names of the checks that found something, with their status."""
    return {c.name: c.status for c in checks if c.status in ("failed", "warning")}
