"""The HTTP API of a Ray cluster's dashboard, with deadlines, and errors in one sentence.

Source: https://docs.ray.io/en/releases-2.60.0/ray-security/token-auth.html
"""

import contextlib
import importlib.util
import logging
import os
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import ray_shared  # noqa: F401 - before Ray, which reads the authentication mode once
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from ray_shared.errors import JobError, UserError

TIMEOUTS_S = (5.0, 120.0)
"""To connect, and until an answer begins; Ray's own client would wait for ever. Ray answers late
while a cluster starts."""
POLL_S = 1.0
SERVE = "/api/serve/applications/"


CHATTY = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
"""Loggers of Ray's client that tell of every package and connection."""


class LostError(JobError):
    """The dashboard did not answer."""


class RefusedError(JobError):
    """The dashboard answered that it cannot do this."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Dashboard(JobSubmissionClient):
    """The HTTP API of one cluster. Made by `connect`."""

    def __init__(self, address: str):
        # These two would win over the address that was asked for.
        with _without("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            super().__init__(address)
        self._ssl_context = ssl.create_default_context()  # Ray has None, which aiohttp calls old.

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        """Every request goes through here: with a deadline, and with errors in one sentence.

        Raises:
            UserError: If the token is missing or wrong.
            LostError: If nothing answers.
        """
        try:
            return super()._do_request(method, endpoint, timeout=TIMEOUTS_S, **kwargs)
        except AuthenticationError:
            given = any(name.lower() == "authorization" for name in self._headers)
            found = (
                "refuses this token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to its own"
                if given
                else "wants a token, and none is sent because of RAY_AUTH_MODE=disabled"
            )
            raise UserError(f"cluster.address={self._address}: the cluster {found}") from None
        except requests.RequestException as error:
            reason = os_reason(error)
            raise LostError(f"{self._address}: the dashboard does not answer ({reason})") from error

    def _raise_error(self, r: requests.Response) -> NoReturn:
        """Called by Ray's client for every answer but the one that it wants."""
        message = f"the cluster answers {r.status_code}: {reason_in(r.text)}"
        raise RefusedError(message, r.status_code)

    def upload(self, packages: Sequence[Path]) -> list[str]:
        """Stores packages on the cluster, unless it has them; their `gcs://` URIs.

        They stay until nothing on the cluster uses them any more.
        """
        env = {"py_modules": [str(package) for package in packages]}
        self._upload_py_modules_if_needed(env)
        return env["py_modules"]

    def serve(self, method: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request to Serve's REST API; the answer's content, or an empty dict.

        Raises:
            UserError: If Serve finds a mistake in what it is told.
            JobError: If it fails.
        """
        response = self._do_request(method, SERVE, json_data=content)
        if response.status_code == requests.codes.bad_request:
            raise UserError(f"Serve refuses the configuration: {reason_in(response.text)}")
        if not response.ok:
            self._raise_error(response)
        return dict(response.json()) if response.content else {}

    def serve_states(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """The applications by name, about every second, until the time is over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(LostError, RefusedError):
                yield self.serve("GET")["applications"]
            time.sleep(POLL_S)


def connect(address: str) -> Dashboard:
    """Makes sure that a Ray dashboard answers, and takes the token.

    The token comes from `RAY_AUTH_TOKEN`, the file `RAY_AUTH_TOKEN_PATH` or `~/.ray/auth_token`;
    with `RAY_AUTH_MODE=disabled` none is sent.

    Args:
        address: `http://host:8265` or `https://...`.

    Raises:
        UserError: If there is no dashboard, or the token is missing or wrong.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"cluster.address={address}: must be the address of a Ray dashboard, as in "
            "http://127.0.0.1:8265"
        )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return Dashboard(address)
    except AuthenticationError:
        raise UserError(
            f"cluster.address={address}: no token to send: set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH (or RAY_AUTH_MODE=disabled for a cluster that asks for none)"
        ) from None
    except LostError as error:
        reason = os_reason(error.__cause__)
        raise UserError(
            f"cluster.address={address}: no dashboard answers there ({reason})"
        ) from None
    except (RuntimeError, KeyError, TypeError, ValueError, requests.RequestException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cluster.address={address}: what answers there is no dashboard of Ray"
        ) from None


def locate(package: str, folder: Path | None = None) -> Path:
    """The directory of an import package, to be shipped.

    Args:
        package: Its name.
        folder: Where to look, a project's `src`; None: where Python finds it.

    Raises:
        UserError: If it is not there.
    """
    if folder is None:
        spec = importlib.util.find_spec(package)
        found = Path(spec.origin).parent if spec and spec.origin else None
    else:
        found = folder / package
    if found is None or not (found / "__init__.py").is_file():
        where = folder or "this environment"
        raise UserError(f"{package}: no such package in {where}, so it cannot be shipped")
    return found.resolve()


def reason_in(text: str) -> str:
    """The line of a message that says it: of a traceback the last, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    return lines[-1] if "Traceback (most recent call last)" in text else lines[0]


def why_not(app: dict[str, Any]) -> str:
    """The state of an application, with the words of its first deployment that says something."""
    words = [deployment["message"] for deployment in app["deployments"].values()]
    reason = next(filter(None, [*words, app["message"]]), None)
    return app["status"] + (f": {reason_in(reason)}" if reason else "")


def os_reason(error: BaseException | None) -> str:
    """What the system said, below what the HTTP libraries made of it."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if isinstance(error, TimeoutError | requests.Timeout):
            return "nothing came in time"
        inner = getattr(error, "reason", None)
        inner = inner if isinstance(inner, BaseException) else None
        error = error.__cause__ or error.__context__ or inner
    return "no connection"


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """This process's environment without these variables, for the length of a block."""
    found = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(found)
