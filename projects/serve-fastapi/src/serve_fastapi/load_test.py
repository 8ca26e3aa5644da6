"""Asks an application for predictions, from many clients at a time, and counts.

It can be pointed at any address: `action=load_test load.address=http://host:8000`. Each client has
a connection of its own and sends its next request when the answer to the one before is there.

Source: https://docs.aiohttp.org/en/stable/client_quickstart.html
"""

import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from ray_shared.errors import JobError

from serve_fastapi import builtin
from serve_fastapi.config import Config

START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 30.0
NUM_BODIES = 64


def ask(config: Config, address: str, kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """One prediction; waits until the application answers.

    Args:
        config: For the API key.
        address: Of the application.
        kind: `digits` or `trips`.
        row: A request that the default model of this kind takes.

    Raises:
        JobError: If it does not, or not with a prediction.
    """

    async def until_answered() -> dict[str, Any]:
        deadline, reason = time.monotonic() + START_TIMEOUT_S, "nothing"
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(headers=_headers(config), timeout=timeout) as session:
            while time.monotonic() < deadline:
                try:
                    async with session.post(f"{address}/v1/{kind}", data=_json(row)) as got:
                        content: dict[str, Any] = await got.json(content_type=None)
                        if got.status == 200:
                            return content
                        reason = f"{got.status} {content}"
                        if 400 <= got.status < 500:
                            break
                except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                    reason = str(error) or type(error).__name__
                await asyncio.sleep(0.02)
        raise JobError(f"{address} does not answer with a prediction: {reason}")

    return asyncio.run(until_answered())


def run(config: Config, address: str) -> dict[str, Any]:
    """Loads the application for `load.duration_s`; see `Load.run`."""
    return asyncio.run(Load(config, address).run())


class Load:
    """Requests from `load.concurrency` clients at a time."""

    def __init__(self, config: Config, address: str):
        self.settings, self.headers = config.load, _headers(config)
        if config.load.model is not None:
            self.headers["x-model"] = config.load.model
        self.method, self.url = _method(config), _url(config, address)
        self.bodies = _bodies(config)
        self.latencies_s: list[float] = []
        """Of each answer so far."""
        self.failures = Counter[str]()
        """Status, or kind of error, to count."""
        self.num_retries = 0
        self.stopped = False

    def stop(self) -> None:
        """Ends it before its time; may be called from another thread."""
        self.stopped = True

    async def run(self) -> dict[str, Any]:
        """Asks until it is over.

        Returns:
            `rps`, `p50_ms`, `p95_ms`, `p99_ms`, `num_requests`, `num_failed`, `num_retries` and
            `failures`. A request that was sent again and then answered has not failed.
        """
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        started = time.perf_counter()
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self.headers
        ) as session:
            until = started + self.settings.duration_s
            await asyncio.gather(
                *(self._client(i, session, until) for i in range(self.settings.concurrency))
            )
        seconds = time.perf_counter() - started
        times = np.array(self.latencies_s or [0.0]) * 1000
        p50, p95, p99 = (float(p) for p in np.percentile(times, [50, 95, 99]))
        num_failed = sum(self.failures.values())
        return {
            "rps": len(self.latencies_s) / seconds,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "num_requests": len(self.latencies_s) + num_failed,
            "num_failed": num_failed,
            "num_retries": self.num_retries,
            "failures": dict(self.failures),
        }

    async def _client(self, turn: int, session: aiohttp.ClientSession, until: float) -> None:
        while time.perf_counter() < until and not self.stopped:
            body, turn = self.bodies[turn % len(self.bodies)], turn + 1
            began = time.perf_counter()
            problem = await self._send(session, body)
            for attempt in range(self.settings.retries):
                if problem is None or problem.startswith("4"):
                    break
                self.num_retries += 1
                await asyncio.sleep(0.05 * 2**attempt)
                problem = await self._send(session, body)
            if problem is None:
                self.latencies_s.append(time.perf_counter() - began)
            else:
                self.failures[problem] += 1

    async def _send(self, session: aiohttp.ClientSession, body: bytes) -> str | None:
        """What went wrong with a request, in a word; None if it was answered."""
        try:
            async with session.request(self.method, self.url, data=body) as response:
                await response.read()
                return None if response.status == 200 else str(response.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__


def _headers(config: Config) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    keys = os.environ.get(config.security.keys_env, "").split(",")
    if config.security.keys_file is not None:
        keys += Path(config.security.keys_file).read_text().splitlines()
    known = [key.strip() for key in keys if key.strip()]
    return headers | ({"authorization": f"Bearer {known[0]}"} if known else {})


def _url(config: Config, address: str) -> str:
    path = "healthz" if config.load.kind == "health" else f"v1/{config.load.kind}"
    return f"{address.rstrip('/')}/{path}"


def _method(config: Config) -> str:
    return "GET" if config.load.kind == "health" else "POST"


def _bodies(config: Config) -> list[bytes]:
    if config.load.kind == "health":
        return [b""]
    if config.load.kind == "digits":
        from sklearn.datasets import load_digits

        images = load_digits().images[:NUM_BODIES]
        return [json.dumps({"image": image.tolist()}).encode() for image in images]
    trips, _ = builtin.generated_trips(NUM_BODIES, seed=1)
    return [_json(trip) for trip in trips]


def _json(row: Any) -> bytes:
    return json.dumps(row, default=lambda at: at.isoformat()).encode()
