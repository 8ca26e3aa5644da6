"""Requests and answers, without Ray."""

import asyncio
import io
import json
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serve_fastapi import api, builtin
from serve_fastapi.security import Guard
from sklearn.datasets import load_digits

from .local import LocalService, client, make_app

TRIP = {
    "pickup_at": "2026-01-07T17:30:00",
    "distance_miles": 3.2,
    "pickup_zone": 5,
    "dropoff_zone": 17,
}
DIGITS = load_digits()


@pytest.fixture(scope="module")
def service(bundles: dict[str, str]) -> LocalService:
    return LocalService(bundles)


@pytest.fixture(autouse=True)
def fresh(service: LocalService) -> None:
    service.seconds, service.error, service.reason = 0.0, None, None
    service.cancelled = 0
    service.asked.clear()


def post(app: Any, path: str, content: Any, **headers: str) -> Any:
    """The answer to one request."""

    async def ask() -> Any:
        async with client(app, **{"content-type": "application/json"} | headers) as session:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            return await session.post(path, content=body)

    return asyncio.run(ask())


def get(app: Any, path: str, **headers: str) -> Any:
    async def ask() -> Any:
        async with client(app, **headers) as session:
            return await session.get(path)

    return asyncio.run(ask())


def test_digit_is_answered_with_model_and_probabilities(service: LocalService):
    app = make_app(service)
    hits = 0
    for image, label in zip(DIGITS.images[:20], DIGITS.target[:20], strict=True):
        answer = post(app, "/v1/digits", {"image": image.tolist()})
        assert answer.status_code == 200
        content = answer.json()
        hits += content["label"] == str(label)
        assert sum(content["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert (content["model"], content["version"]) == (
            "digits",
            service.models["digits"].version,
        )
    assert hits >= 18


def test_trip_is_answered_in_minutes(service: LocalService):
    app = make_app(service)
    short, long = (
        post(app, "/v1/trips", TRIP | {"distance_miles": miles}).json()["minutes"]
        for miles in (1.0, 12.0)
    )
    assert 1 < short < long < 120


def test_model_is_chosen_by_header(service: LocalService):
    app = make_app(service)
    body = {"image": DIGITS.images[0].tolist()}
    assert post(app, "/v1/digits", body, **{"X-Model": "digits-small"}).json()["model"] == (
        "digits-small"
    )
    wrong = post(app, "/v1/digits", body, **{"X-Model": "trips"})
    assert wrong.status_code == 404
    assert wrong.json()["error"] == (
        "no model 'trips' of digits: must be one of digits, digits-small"
    )


def picture(image: np.ndarray, kind: str = "PNG", invert: bool = False, size: int = 160) -> bytes:
    pixels = (image * (255 / 16)).astype(np.uint8)
    drawn = Image.fromarray(255 - pixels if invert else pixels)
    drawn = drawn.resize((size, size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    drawn.save(file, kind)
    return file.getvalue()


def upload(app: Any, content: bytes) -> Any:
    async def ask() -> Any:
        async with client(app) as session:
            return await session.post("/v1/digits/image", files={"file": ("x.png", content)})

    return asyncio.run(ask())


@pytest.mark.parametrize(("kind", "invert"), [("PNG", False), ("PNG", True), ("JPEG", False)])
def test_uploaded_picture_is_recognized(service: LocalService, kind: str, invert: bool):
    app = make_app(service)
    answers = [upload(app, picture(image, kind, invert)) for image in DIGITS.images[:20]]
    assert [a.status_code for a in answers] == [200] * 20
    hits = [a.json()["label"] == str(t) for a, t in zip(answers, DIGITS.target, strict=False)]
    assert sum(hits) >= 15


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", picture(DIGITS.images[0])[:60], b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"],
)
def test_what_is_no_picture_is_refused(service: LocalService, content: bytes):
    answer = upload(make_app(service), content)
    assert answer.status_code == 422
    assert "not a PNG or JPEG" in answer.json()["error"]


def test_picture_of_too_many_pixels_is_refused(service: LocalService):
    file = io.BytesIO()
    Image.new("L", (3000, 3000)).save(file, "PNG")
    answer = upload(make_app(service), file.getvalue())
    assert answer.status_code == 422
    assert "a picture of 3000 x 3000 pixels" in answer.json()["error"]


GOOD = DIGITS.images[0].tolist()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/digits", b"{", 422),
        ("/v1/digits", b"", 422),
        ("/v1/digits", b"\xff\xfe", 422),
        ("/v1/digits", b"[" * 100_000, 400),
        ("/v1/digits", b'{"image": [[NaN]]}', 422),
        ("/v1/digits", b'{"image": [[1e999]]}', 422),
        ("/v1/digits", b'{"image": [[' + b"9" * 5000 + b"]]}", 400),
        ("/v1/digits", {}, 422),
        ("/v1/digits", {"image": []}, 422),
        ("/v1/digits", {"image": [[]]}, 422),
        ("/v1/digits", {"image": [[1, 2], [3]]}, 422),
        ("/v1/digits", {"image": GOOD[:7]}, 422),
        ("/v1/digits", {"image": [[17.0] * 8] * 8}, 422),
        ("/v1/digits", {"image": [[-1.0] * 8] * 8}, 422),
        ("/v1/digits", {"image": [[0] * 2000]}, 422),
        ("/v1/digits", {"image": GOOD, "more": 1}, 422),
        ("/v1/digits/batch", {"images": []}, 422),
        ("/v1/digits/batch", {"images": [GOOD] * 201}, 413),
        ("/v1/trips", TRIP | {"pickup_zone": 5000}, 422),
        ("/v1/trips", TRIP | {"distance_miles": -1}, 422),
        ("/v1/trips", TRIP | {"pickup_at": "yesterday"}, 422),
        ("/v1/trips", TRIP | {"passengers": "many"}, 422),
        ("/v1/nothing", {}, 404),
        ("/healthz", {}, 405),
    ],
)
def test_wrong_request_is_refused_and_never_an_error_of_the_server(
    service: LocalService, path: str, body: Any, status: int
):
    answer = post(make_app(service), path, body)
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert content["error"]
    assert content["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert service.asked == []


def test_error_of_the_server_shows_nothing_of_its_code(service: LocalService):
    service.error = KeyError("a secret")
    answer = post(make_app(service), "/v1/digits", {"image": GOOD})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_busy_service_says_when_to_come_again(service: LocalService):
    service.error = api.BusyError()
    answer = post(make_app(service), "/v1/digits", {"image": GOOD})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_deadline_is_kept_and_reaches_the_model(service: LocalService):
    service.seconds = 30
    app = make_app(service, limits=api.Limits(200, 0.2))
    answer = post(app, "/v1/digits", {"image": GOOD})
    assert answer.status_code == 504
    assert answer.json()["error"] == "not done after 0.2 s"
    assert service.cancelled == 1


def test_readiness_is_not_liveness(service: LocalService):
    app = make_app(service)
    assert get(app, "/readyz").status_code == 200
    service.reason = "model digits does not answer"
    answer = get(app, "/readyz")
    assert (answer.status_code, answer.json()["error"]) == (503, service.reason)
    assert get(app, "/healthz").status_code == 200


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_batch_is_a_stream_of_events_with_progress(service: LocalService):
    answer = post(make_app(service), "/v1/digits/batch", {"images": [GOOD] * 120})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    assert [name for name, _ in found] == ["answers"] * 3 + ["done"]
    assert [e["done"] for name, e in found if name == "answers"] == [50, 100, 120]
    labels = [a["label"] for name, e in found if name == "answers" for a in e["answers"]]
    assert labels == ["0"] * 120


def test_batch_that_fails_in_the_middle_says_how_far_it_came(service: LocalService):
    service.error = api.BusyError()
    found = events(post(make_app(service), "/v1/trips/batch", {"trips": [TRIP] * 3}).text)
    assert found == [("error", {"error": "too busy", "done": 0, "total": 3})]


def test_generated_trips_are_what_the_route_takes(service: LocalService):
    trips, minutes = builtin.generated_trips(100, seed=9)
    content = [trip | {"pickup_at": trip["pickup_at"].isoformat()} for trip in trips]
    found = events(post(make_app(service), "/v1/trips/batch", {"trips": content}).text)
    predicted = [a["minutes"] for name, e in found if name == "answers" for a in e["answers"]]
    errors = np.abs(np.array(predicted) - minutes)
    assert errors.mean() < 0.5 * np.abs(minutes - minutes.mean()).mean()


def test_pages_and_models_are_there(service: LocalService):
    app = make_app(service)
    assert "<canvas" in get(app, "/").text
    assert get(app, "/page.js").headers["content-type"].startswith("text/javascript")
    listed = get(app, "/v1/models").json()
    assert [(m["name"], m["default"]) for m in listed] == [
        ("digits", True),
        ("digits-small", False),
        ("trips", True),
    ]
    assert get(app, "/version").json()["models"].keys() == {"digits", "digits-small", "trips"}
    paths = get(app, "/openapi.json").json()["paths"]
    assert {"/v1/digits", "/v1/trips", "/v1/digits/batch", "/readyz"} <= paths.keys()


def test_each_request_is_counted_and_logged_by_its_id(
    service: LocalService, caplog: pytest.LogCaptureFixture
):
    seen: list[tuple[str, str, int]] = []
    app = make_app(
        service, record=lambda route, method, status, _: seen.append((route, method, status))
    )
    with caplog.at_level(logging.INFO, "serve_fastapi.test"):
        post(app, "/v1/digits", {"image": GOOD}, **{"X-Request-ID": "mine"})
        get(app, "/v1/anything/else")
    assert seen == [("/v1/digits", "POST", 200), ("other", "GET", 404)]
    first = vars(caplog.records[0])
    assert first["message"] == "POST /v1/digits 200"
    assert (first["request_id"], first["status"], first["path"]) == ("mine", 200, "/v1/digits")


def test_guard_is_the_first_to_see_a_request(service: LocalService):
    guard = Guard(frozenset({b"x" * 32}), 1 << 20, 0)
    answer = post(make_app(service, guard), "/v1/digits", b"{")
    assert answer.status_code == 401
    assert service.asked == []
