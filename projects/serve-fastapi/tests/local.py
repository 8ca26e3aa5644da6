"""The application without Ray: what the ingress does, in this process."""

import asyncio
import logging
from typing import Any

import httpx
from ray_shared.config import compose
from serve_fastapi import api, models
from serve_fastapi.config import Config
from serve_fastapi.observe import observe
from serve_fastapi.security import Guard, protect, with_cors
from starlette.types import ASGIApp

CONF = "serve_fastapi.conf"


class LocalService:
    """Predicts in a thread; can be told to be slow, busy or not ready."""

    def __init__(self, bundles: dict[str, str]):
        config = compose(Config, CONF)
        config.models.bundles = bundles
        self.models = models.find(bundles)
        self.stages = models.LocalStages(config.settings()["models"])
        for name in bundles:  # Not with the first request: that has a deadline.
            self.stages.load(name)
        self.seconds = 0.0
        self.error: Exception | None = None
        self.reason: str | None = None
        self.cancelled = 0
        self.asked: list[tuple[str, int]] = []

    async def predict(self, model: str, rows: list[Any]) -> list[dict[str, Any]]:
        self.asked.append((model, len(rows)))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return await asyncio.to_thread(self.stages.apply, model, rows)

    async def not_ready(self) -> str | None:
        return self.reason


def make_app(
    service: LocalService,
    guard: Guard | None = None,
    limits: api.Limits | None = None,
    cors: list[str] | None = None,
    record: Any = lambda *_: None,
) -> ASGIApp:
    """The whole application, but for Ray."""
    limits = limits or api.Limits(max_rows=200, deadline_s=5)
    made = api.make_api(service, limits, {"python": "3"})
    known = frozenset(getattr(route, "path", "") for route in made.routes)
    guard = guard or Guard(frozenset(), 1 << 20, 0)
    app = with_cors(protect(made, guard, echo_request_id=True), cors or [])
    return observe(app, record, logging.getLogger("serve_fastapi.test"), "all", known)


def client(app: ASGIApp, **headers: str) -> httpx.AsyncClient:
    """A client of an application in this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers)
