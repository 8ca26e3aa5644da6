"""A task uses a module that only the driver finds.

Run: python docs/tests/errors/module_not_found.py
"""

# ruff: noqa: T201

import sys
import tempfile
import traceback
from pathlib import Path

import ray

CODE = '"""A module beside the driver."""\n\n\ndef double(x):\n    return 2 * x\n'


def make_package(directory: str) -> str:
    """Writes the package `helpers`, which this process can import and a worker cannot."""
    package = Path(directory, "helpers")
    package.mkdir()
    (package / "__init__.py").write_text(CODE)
    sys.path.insert(0, directory)
    return str(package)


def double_four() -> int:
    """Calls the package's function in a task."""
    from helpers import double  # type: ignore[import-not-found]

    value: int = ray.get(ray.remote(num_cpus=1)(double).remote(4))
    return value


def broken() -> None:
    """The worker knows the function by its module's name, and has no such module."""
    ray.init(address="local", num_cpus=1, include_dashboard=False)
    try:
        double_four()
    except RuntimeError:
        traceback.print_exc()


def mended(package: str) -> None:
    """The package travels with the job."""
    runtime_env = {"py_modules": [package]}
    ray.init(address="local", num_cpus=1, include_dashboard=False, runtime_env=runtime_env)
    print("doubled:", double_four())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        package = make_package(directory)
        broken()
        ray.shutdown()
        mended(package)
