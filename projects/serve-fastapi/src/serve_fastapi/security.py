"""Who may ask, how much, and how: one plain ASGI layer around the application.

It comes before FastAPI reads anything: a body that is too long or a key that is wrong costs
nothing. Starlette's `BaseHTTPMiddleware` would cost as much as the rest of a request.
"""

import asyncio
import hashlib
import hmac
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_shared.errors import UserError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_fastapi.config import SecurityConfig, ServeConfig

PAGES = {"/", "/page.js", "/page.css", "/docs", "/openapi.json"}
OPEN_PATHS = PAGES | {"/healthz", "/readyz", "/version"}
"""Answered without a key: they tell nothing that a key protects."""
RequestHeaders = list[tuple[bytes, bytes]]
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
"""What a client may call its request: short, and harmless in a log."""
RAY_HEADERS = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve-multiplexed-model-id",
    b"x-session-id",
}
"""Ray Serve obeys these, whoever sends them; with `_` for `-` as well."""
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    # For images, scripts and the like: browsers do not look at it where CORS has been asked for.
    (b"cross-origin-resource-policy", b"same-origin"),
]
SELF = b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# FastAPI's page of the API loads Swagger UI from there, and starts it with a line of its own.
CDN = b"https://cdn.jsdelivr.net"
DOCS = SELF + b"; script-src 'self' 'unsafe-inline' %s; style-src %s; img-src 'self' data: " % (
    CDN,
    CDN,
)
DOCS += b"https://fastapi.tiangolo.com"


@dataclass(frozen=True)
class Guard:
    """What `protect` enforces."""

    keys: frozenset[bytes]
    """SHA-256 of each API key; none: everybody may ask."""
    max_body_bytes: int
    per_minute: int
    """Requests a minute for each key, without keys for all together; 0: no limit."""
    max_body_s: float = 30.0
    """Until the whole body must have come."""


def read_keys(env: str, path: str | None) -> frozenset[bytes]:
    """Hashes of the API keys from an environment variable and a file.

    Raises:
        UserError: If the file cannot be read, or a key is too short to be one.
    """
    keys = [key.strip() for key in os.environ.get(env, "").split(",") if key.strip()]
    if path is not None:
        try:
            keys += [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise UserError(f"security.keys_file={path}: cannot be read: {reason}") from None
        if not keys:
            raise UserError(f"security.keys_file={path}: holds no key")
    for key in keys:
        if len(key) < 16:
            where = f"security.keys_env={env}" if path is None else f"security.keys_file={path}"
            raise UserError(f"{where}: a key of {len(key)} characters: must have at least 16")
    return frozenset(hashlib.sha256(key.encode()).digest() for key in keys)


def check_keys(serve: ServeConfig, security: SecurityConfig) -> None:
    """Refuses to listen beyond this machine without API keys.

    Raises:
        UserError: Also if the keys cannot be read.
    """
    keys = read_keys(security.keys_env, security.keys_file)
    if serve.open_to_network and not keys and not security.allow_open:
        raise UserError(
            f"serve.host={serve.host}: others could reach it without a key; set "
            f"{security.keys_env} or security.keys_file (or security.allow_open=true)"
        )


def is_known(key: str, keys: Iterable[bytes]) -> bool:
    """Whether the key is one of those, in a time that does not tell which, or how nearly."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    found = False
    for known in keys:
        found |= hmac.compare_digest(digest, known)
    return found


class RateLimit:
    """A token bucket for each client: `per_minute` at once, then one every so many seconds."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.per_minute = per_minute
        self.clock = clock
        # As many as there are keys: nobody else gets as far as here.
        self.buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, client: str) -> float:
        """Takes a token; 0, or the seconds until there is one."""
        now = self.clock()
        tokens, since = self.buckets.get(client, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - since) * self.per_minute / 60)
        allowed = tokens >= 1
        self.buckets[client] = (tokens - 1 if allowed else tokens, now)
        return 0.0 if allowed else (1 - tokens) * 60 / self.per_minute


class Entrance:
    """Comes before Ray Serve reads headers: it decodes some as UTF-8, and fails if they are not."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Takes Ray's own headers out, and leaves one plain `X-Request-ID`."""
        if scope["type"] != "lifespan":
            kept = [h for h in scope["headers"] if h[0].replace(b"_", b"-") not in RAY_HEADERS]
            scope["headers"], _ = with_one_id(kept)
        await self.app(scope, receive, send)


def entrance() -> list[Middleware]:
    """Ray Serve's hook: what comes before all of its own, in each process that listens."""
    return [Middleware(Entrance)]


def with_one_id(headers: RequestHeaders) -> tuple[RequestHeaders, bytes]:
    """The headers with exactly one `X-Request-ID`, and its value: the client's, or a new one."""
    found = [value for name, value in headers if name == b"x-request-id"]
    if len(found) == 1 and REQUEST_ID.fullmatch(found[0]):
        return headers, found[0]
    made = uuid.uuid4().hex.encode()
    others = [header for header in headers if header[0] != b"x-request-id"]
    return [*others, (b"x-request-id", made)], made


def with_cors(app: ASGIApp, origins: list[str]) -> ASGIApp:
    """Lets pages of other origins call, and read refusals as well; goes around the guard.

    A browser asks by `OPTIONS` first, and without the key.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Model", "X-Request-ID"],
        expose_headers=["Retry-After", "X-Request-ID"],
    )


def protect(
    app: ASGIApp, guard: Guard, echo_request_id: bool, is_busy: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """Puts the guard before an application.

    Args:
        app: The application.
        guard: What to enforce.
        echo_request_id: Whether to add `X-Request-ID` to answers; Ray Serve does so by itself.
        is_busy: Whether there is too much to do to begin with one more.
    """
    limit = RateLimit(guard.per_minute) if guard.per_minute else None

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        scope["headers"], request_id = with_one_id(scope["headers"])
        headers, path = dict(scope["headers"]), path_of(scope)
        added = [*HEADERS, (b"content-security-policy", DOCS if path == "/docs" else SELF)]
        if echo_request_id:
            added.append((b"x-request-id", request_id))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        async def refuse(status: int, error: str, *extra: tuple[bytes, bytes]) -> None:
            await _answer(send_with_headers, status, error, request_id, extra)

        if path not in OPEN_PATHS:
            client = ""  # Whose address it is, only the front end knows.
            if guard.keys:
                client = _key(headers)
                if not is_known(client, guard.keys):
                    challenge = (b"www-authenticate", b"Bearer")
                    await refuse(401, "no API key, or not a valid one", challenge)
                    return
            if limit is not None and (wait := limit.wait_s(client)):
                after = (b"retry-after", str(int(wait) + 1).encode())
                await refuse(429, f"more than {guard.per_minute} requests a minute", after)
                return
            if is_busy():
                await refuse(503, "too busy; try again", (b"retry-after", b"1"))
                return
        too_long = f"the body is longer than {guard.max_body_bytes} bytes"
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > guard.max_body_bytes:
            await refuse(413, too_long)
            return
        seen, due = 0, asyncio.get_running_loop().time() + guard.max_body_s
        complete = False

        # Of all errors, FastAPI lets only HTTPException through.
        async def receive_at_most() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                # What is left of the body must not come as the next request.
                close = {"Connection": "close"}
                raise HTTPException(
                    408, f"no whole body in {guard.max_body_s:g} s", close
                ) from None
            complete = not message.get("more_body", False)
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > guard.max_body_bytes:
                    raise HTTPException(413, too_long)
            return message

        await app(scope, receive_at_most, send_with_headers)

    return guarded


def path_of(scope: Scope) -> str:
    """The path within the application, wherever that is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _key(headers: dict[bytes, bytes]) -> str:
    """The API key of a request: `Authorization: Bearer …` or `X-API-Key: …`."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        key = headers.get(b"x-api-key", b"")
    return key.strip().decode("latin-1")


async def _answer(
    send: Send, status: int, error: str, request_id: bytes, extra: Iterable[tuple[bytes, bytes]]
) -> None:
    content: dict[str, Any] = {"error": error, "request_id": request_id.decode("latin-1")}
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *extra]})
    await send({"type": "http.response.body", "body": body})
