"""Keys, limits and headers, without Ray."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI, Request, UploadFile
from fastapi.responses import PlainTextResponse
from ray_shared.errors import UserError
from serve_fastapi.security import (
    Guard,
    RateLimit,
    is_known,
    protect,
    read_keys,
)
from starlette.types import ASGIApp, Message

from .local import client

KEY, OTHER = "k" * 20, "o" * 20
PAGE = "https://page.example"
echo = FastAPI()


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@echo.post("/json")
async def of_json(body: Annotated[Any, Body()]) -> PlainTextResponse:
    return PlainTextResponse(str(len(body)))


@echo.post("/file")
async def of_file(file: UploadFile) -> PlainTextResponse:
    return PlainTextResponse(str(len(await file.read())))


@echo.post("/ids")
async def of_ids(request: Request) -> list[str]:
    return request.headers.getlist("x-request-id")


@echo.post("/headers")
async def of_headers(request: Request) -> list[str]:
    return request.headers.keys()


@echo.post("/{path:path}")
async def of_anything(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def app(
    keys: set[str] | None = None, max_body: int = 2000, per_minute: int = 0, max_body_s: float = 30
) -> ASGIApp:
    guard = Guard(frozenset(map(digest, keys or set())), max_body, per_minute, max_body_s)
    return protect(echo, guard, echo_request_id=True)


def ask(made: ASGIApp, *requests: dict[str, Any]) -> list[Any]:
    async def all_of_them() -> list[Any]:
        async with client(made) as session:
            return [
                await session.request(r.pop("method", "POST"), r.pop("path", "/x"), **r)
                for r in requests
            ]

    return asyncio.run(all_of_them())


def test_keys_are_asked_for_in_either_header():
    made = app({KEY, OTHER})
    answers = ask(
        made,
        {"headers": {"Authorization": f"Bearer {KEY}"}},
        {"headers": {"X-API-Key": OTHER}},
        {"headers": {"X-API-Key": "wrong"}},
        {"headers": {"Authorization": f"Basic {KEY}"}},
        {"headers": {"X-API-Key": b"\xe9" * 20}},
        {},
        {"path": "/healthz"},
        {"path": "/version"},
        {"path": "/openapi.json"},  # /docs reads it.
        {"method": "OPTIONS"},
    )
    assert [a.status_code for a in answers] == [200] * 2 + [401] * 4 + [200] * 3 + [401]
    assert answers[2].headers["www-authenticate"] == "Bearer"


def test_every_key_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    known = [digest(KEY), digest(OTHER)]
    assert is_known(KEY, known)
    assert compared == known
    assert not is_known("", known)


def test_keys_come_from_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEYS", f" {KEY} ,{OTHER}")
    file = tmp_path / "keys"
    file.write_text("f" * 20 + "\n\n")
    assert read_keys("KEYS", str(file)) == {digest(KEY), digest(OTHER), digest("f" * 20)}
    monkeypatch.delenv("KEYS")
    assert read_keys("KEYS", None) == frozenset()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        ("\n", "holds no key"),
        ("short\n", "a key of 5 characters: must have at least 16"),
    ],
)
def test_wrong_key_file_is_refused(tmp_path: Path, content: str | None, sentence: str):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=sentence) as error:
        read_keys("NONE", str(file))
    assert str(error.value).startswith(f"security.keys_file={file}: ")
    assert "short" not in str(error.value)


def test_body_that_is_too_long_is_refused_before_it_is_read():
    declared, lying, allowed = ask(
        app(),
        {"content": b"x" * 2001},
        {"content": b"x" * 10, "headers": {"content-length": "9" * 30}},
        {"content": b"x" * 2000},
    )
    assert (declared.status_code, lying.status_code) == (413, 413)
    assert declared.json()["error"] == "the body is longer than 2000 bytes"
    assert allowed.text == "2000"


JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
FIELD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
BODIES = pytest.mark.parametrize(
    ("path", "headers", "start"),
    [("/x", {}, b""), ("/json", JSON, b""), ("/file", FORM, FIELD)],
    ids=["raw", "json", "file"],
)
"""What FastAPI reads in a way of its own each; of all errors it lets only one through."""


@BODIES
def test_long_body_is_refused_while_it_is_read(path: str, headers: dict[str, str], start: bytes):
    async def chunks() -> AsyncIterator[bytes]:
        yield start
        for _ in range(3):
            yield b" " * 1000

    (answer,) = ask(app(), {"path": path, "content": chunks(), "headers": headers})
    assert answer.status_code == 413


@BODIES
def test_slow_body_is_refused(path: str, headers: dict[str, str], start: bytes):
    async def chunks() -> AsyncIterator[bytes]:
        yield start
        while True:
            await asyncio.sleep(0.02)
            yield b" "

    made = app(max_body_s=0.2)
    (answer,) = ask(made, {"path": path, "content": chunks(), "headers": headers})
    assert answer.status_code == 408
    assert answer.json() == {"detail": "no whole body in 0.2 s"}
    assert answer.headers["connection"] == "close"


def test_time_of_a_body_ends_with_it():
    async def late(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        told.append(await receive())

    async def receive() -> Message:
        if not told:
            told.append({"type": "http.request", "body": b""})
            return told[0]
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    told: list[Message] = []
    guard = Guard(frozenset(), 2000, 0, max_body_s=0.01)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(protect(late, guard, echo_request_id=True)(scope, receive, None))  # type: ignore[arg-type]
    assert told[1] == {"type": "http.disconnect"}


def test_rate_is_limited_for_each_client():
    now = [0.0]
    limit = RateLimit(60, lambda: now[0])
    assert [limit.wait_s("a") for _ in range(60)] == [0.0] * 60
    assert 0 < limit.wait_s("a") <= 1
    assert limit.wait_s("b") == 0
    now[0] = 1.0
    assert limit.wait_s("a") == 0
    assert limit.wait_s("a") > 0


def test_too_many_requests_are_told_when_to_come_again():
    made = app({KEY, OTHER}, per_minute=2)
    answers = ask(
        made,
        *({"headers": {"X-API-Key": KEY}} for _ in range(3)),
        {"headers": {"X-API-Key": OTHER}},
    )
    assert [a.status_code for a in answers] == [200, 200, 429, 200]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 31


def test_busy_application_refuses_before_it_reads():
    guard = Guard(frozenset(), 2000, 0)
    made = protect(echo, guard, echo_request_id=True, is_busy=lambda: True)
    refused, alive = ask(made, {"content": b"x" * 5000}, {"path": "/healthz"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert alive.status_code == 200
