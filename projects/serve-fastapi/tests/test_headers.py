"""Headers of requests and answers: ids, other origins, what Ray obeys; without Ray."""

import logging
import os
from typing import Any

import pytest
from ray_shared.config import compose
from serve_fastapi.config import Config
from serve_fastapi.environment import environment
from serve_fastapi.observe import observe
from serve_fastapi.security import (
    Entrance,
    entrance,
    with_cors,
)

from .test_security import KEY, PAGE, app, ask, echo


def test_answers_carry_security_headers_and_an_id():
    (answer,) = ask(app(), {})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("wrap", [lambda made: made, Entrance], ids=["guard", "entrance"])
@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ([b"mine-1._A"], True),
        ([b"x" * 128], True),
        ([b"x" * 129], False),
        ([b""], False),
        ([b"a b"], False),
        ([b'a"b'], False),
        ([b"a\n"], False),
        ([b"\xff"], False),
        ([b"one", b"two"], False),
        ([b"one", b"one"], False),
    ],
    ids=str,
)
def test_everybody_sees_the_same_plain_id(
    wrap: Any, sent: list[bytes], kept: bool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("serve_fastapi.test")
    made = observe(wrap(app()), lambda *_: None, logger, "all")
    (answer,) = ask(made, {"path": "/ids", "headers": [("x-request-id", i) for i in sent]})
    (found,) = answer.json()
    assert answer.headers.get_list("x-request-id") == [found]
    assert [getattr(r, "request_id", found) for r in caplog.records if r.name == logger.name] == [
        found
    ]
    assert (found.encode() == sent[0]) if kept else (len(found) == 32)


def test_headers_that_ray_obeys_are_taken_out():
    (middleware,) = entrance()
    made = middleware.cls(echo, *middleware.args, **middleware.kwargs)
    headers = [
        ("X-Request-Timeout-Seconds", b"\xff"),
        ("X-Request-Disconnect-Disabled", b"?1"),
        ("serve_multiplexed_model_id", b"m"),
        ("Serve-Multiplexed-Model-Id", b"m"),
        ("x-session-id", b"s"),
        ("x-model", b"digits"),
    ]
    (answer,) = ask(made, {"path": "/headers", "headers": headers})
    names = {name for name in answer.json() if name.startswith(("x-", "serve"))}
    assert names == {"x-model", "x-request-id"}


def test_ray_serve_knows_the_entrance():
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    with environment(compose(Config, "serve_fastapi.conf")):
        path = os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    found = validate_http_proxy_callback_return(call_function_from_import_path(path))
    assert [middleware.cls for middleware in found] == [Entrance]


def test_refusals_are_counted_under_their_route():
    counted = []
    made = observe(
        app({KEY}, per_minute=1),
        lambda *seen: counted.append(seen[:3]),
        logging.getLogger("serve_fastapi.test"),
        "none",
        frozenset({"/json"}),
    )
    headers = {"X-API-Key": KEY}
    ask(
        made,
        {"path": "/json"},
        {"path": "/json", "headers": headers, "json": []},
        {"path": "/json", "headers": headers, "json": []},
        {"path": "/never/seen"},
    )
    assert counted == [
        ("/json", "POST", 401),
        ("/json", "POST", 200),
        ("/json", "POST", 429),
        ("other", "POST", 401),
    ]


def test_pages_of_other_origins_may_call_if_they_are_named():
    preflight = {
        "method": "OPTIONS",
        "headers": {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key, x-model, content-type",
        },
    }
    called = {"headers": {"Origin": PAGE, "X-API-Key": KEY}}
    refused = {"headers": {"Origin": PAGE}}
    stranger = {"headers": {"Origin": "https://other.example", "X-API-Key": KEY}}
    answers = ask(
        with_cors(app({KEY}), [PAGE]),
        *({**request} for request in (preflight, called, refused, stranger)),
    )
    assert [a.status_code for a in answers] == [200, 200, 401, 200]
    origins = [a.headers.get("access-control-allow-origin") for a in answers]
    assert origins == [PAGE, PAGE, PAGE, None]
    assert answers[0].headers["access-control-allow-methods"] == "GET, POST"
    exposed = answers[2].headers["access-control-expose-headers"]
    assert exposed == "Retry-After, X-Request-ID"


def test_pages_of_other_origins_may_not_call_otherwise():
    made = app({KEY})
    assert with_cors(made, []) is made
    answers = ask(
        made,
        {"method": "OPTIONS", "headers": {"Origin": PAGE, "Access-Control-Request-Method": "POST"}},
        {"headers": {"Origin": PAGE, "X-API-Key": KEY}},
    )
    assert [a.status_code for a in answers] == [401, 200]
    assert [n for a in answers for n in a.headers if n.startswith("access-control")] == []
