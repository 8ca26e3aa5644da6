"""Fixtures of all tests of this project."""

import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from kuberay_deploy import crds
from ray_shared.testing import Job, ray_tmpdir, start_job

from .checked import crds_directory

__all__ = ["ray_tmpdir"]

# Ray reads the token once in a process: all clusters of these tests have the same.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

StartJob = Callable[..., AbstractContextManager[Job]]
PROJECT = Path(__file__).parents[1]


@pytest.fixture
def start(tmp_path: Path) -> StartJob:
    """Starts `python -m kuberay_deploy` in the test's own directory."""

    def begin(*overrides: str, env: dict[str, str] | None = None) -> AbstractContextManager[Job]:
        return start_job("kuberay_deploy", overrides, tmp_path, env)

    return begin


@pytest.fixture(scope="session")
def crds_path() -> Path:
    """The directory of KubeRay's definitions; where CI is set, they must be there."""
    return crds_directory()


@pytest.fixture(scope="session")
def definitions(crds_path: Path) -> crds.Crds:
    """Their schemas."""
    return crds.from_directory(crds_path)
