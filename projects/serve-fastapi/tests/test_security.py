"""Keys, limits and headers, without Ray."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ray_shared.errors import UserError
from serve_fastapi.security import Guard, RateLimit, is_known, protect, read_keys
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from .local import client

KEY, OTHER = "k" * 20, "o" * 20


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def app(keys: set[str] = frozenset(), max_body: int = 2000, per_minute: int = 0) -> Any:  # type: ignore[assignment]
    guard = Guard(frozenset(map(digest, keys)), max_body, per_minute)
    return protect(echo, guard, echo_request_id=True)


def ask(made: Any, *requests: dict[str, Any]) -> list[Any]:
    async def all_of_them() -> list[Any]:
        async with client(made) as session:
            return [await session.request("POST", r.pop("path", "/x"), **r) for r in requests]

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
    )
    assert [a.status_code for a in answers] == [200, 200, 401, 401, 401, 401, 200, 200]
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
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000

    declared, streamed, lying, allowed = ask(
        app(),
        {"content": b"x" * 2001},
        {"content": chunks()},
        {"content": b"x" * 10, "headers": {"content-length": "9" * 30}},
        {"content": b"x" * 2000},
    )
    assert (declared.status_code, lying.status_code) == (413, 413)
    assert declared.json()["error"] == "the body is longer than 2000 bytes"
    assert allowed.text == "2000"
    assert streamed.status_code in (413, 500)  # The layer inside, FastAPI, makes it 413.


def test_rate_is_limited_for_each_client():
    now = [0.0]
    limit = RateLimit(60, lambda: now[0])
    assert [limit.wait_s("a") for _ in range(60)] == [0.0] * 60
    assert 0 < limit.wait_s("a") <= 1
    assert limit.wait_s("b") == 0
    now[0] = 1.0
    assert limit.wait_s("a") == 0
    assert limit.wait_s("a") > 0


def test_limit_forgets_whom_it_has_not_seen_for_long():
    limit = RateLimit(1)
    for number in range(10_050):
        limit.wait_s(str(number))
    assert len(limit.buckets) == 10_000


def test_too_many_requests_are_told_when_to_come_again():
    made = app({KEY, OTHER}, per_minute=2)
    answers = ask(
        made,
        *({"headers": {"X-API-Key": KEY}} for _ in range(3)),
        {"headers": {"X-API-Key": OTHER}},
    )
    assert [a.status_code for a in answers] == [200, 200, 429, 200]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 31


def test_answers_carry_security_headers_and_an_id():
    (answer,) = ask(app(), {"headers": {"X-Request-ID": "mine"}})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    (other,) = ask(app(), {})
    assert len(other.headers["x-request-id"]) == 32


def test_busy_application_refuses_before_it_reads():
    guard = Guard(frozenset(), 2000, 0)
    made = protect(echo, guard, echo_request_id=True, is_busy=lambda: True)
    refused, alive = ask(made, {"content": b"x" * 5000}, {"path": "/healthz"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert alive.status_code == 200
