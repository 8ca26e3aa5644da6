"""What is known of each request afterwards: a line in the log, and numbers to count."""

import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_fastapi.security import path_of

Record = Callable[[str, str, int, float], None]
"""Takes route, method, status and seconds."""


def observe(
    app: ASGIApp,
    record: Record,
    logger: logging.Logger,
    requests: str,
    known: frozenset[str] = frozenset(),
) -> ASGIApp:
    """Tells of each request once it is answered.

    Args:
        app: The application.
        record: Counts it.
        logger: Where the lines go.
        requests: Which ones get a line: `none`, `errors` or `all`.
        known: The application's paths, for what is refused before a route is looked for.
    """

    async def observed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # Nobody waits for an answer any more.

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_observed)
        finally:
            seconds = time.perf_counter() - started
            # What was asked for may be anything; a route is one of a few.
            path = path_of(scope)
            route = getattr(scope.get("route"), "path", path if path in known else "other")
            record(route, scope["method"], status, seconds)
            if requests == "all" or (requests == "errors" and status >= 500):
                request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
                fields = {
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "ms": round(seconds * 1000, 2),
                }
                # Ray Serve's formatter makes keys of JSON of them.
                logger.info("%(method)s %(path)s %(status)d", fields, extra=fields)

    return observed
