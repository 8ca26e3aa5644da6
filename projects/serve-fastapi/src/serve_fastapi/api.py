"""The HTTP interface: plain FastAPI over a `Service`, without Ray, so that tests need none.

`app.py` puts Ray Serve behind it; `LocalService` is the same without.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import FastAPI, File, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from serve_fastapi import images, schemas
from serve_fastapi.batching import BusyError
from serve_fastapi.models import Description, defaults

logger = logging.getLogger("ray.serve")
ROWS_PER_EVENT = 50
"""Rows of a `/batch` request between two events."""
PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": text}
    for status, text in {
        400: "The body is no JSON, or no form.",
        401: "No API key, or not a valid one.",
        404: "No such model.",
        408: "The body did not come in time.",
        413: "Too long.",
        422: "Not what this route takes.",
        429: "Too many requests; see `Retry-After`.",
        503: "Too busy; see `Retry-After`.",
        504: "Not done before the deadline.",
    }.items()
}
X_MODEL = {
    "name": "X-Model",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Name of a model.",
}
PREDICTS: dict[str, Any] = {"responses": PROBLEMS, "openapi_extra": {"parameters": [X_MODEL]}}
"""What the routes have in common that ask a model."""
T = TypeVar("T")


class Service(Protocol):
    """What the routes need of whatever serves the models."""

    models: dict[str, Description]
    """Name to description; the first of a kind is its default."""

    async def predict(self, model: str, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers for some rows, in their order.

        Raises:
            BusyError: If there is too much to do.
        """

    async def not_ready(self) -> str | None:
        """Why requests should not come yet; None if they may."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_rows: int
    deadline_s: float


def make_api(service: Service, limits: Limits, versions: dict[str, str]) -> FastAPI:
    """The routes.

    Args:
        service: Who predicts.
        limits: What one request may ask for.
        versions: Of the libraries, for `/version`.
    """
    api = FastAPI(title="serve-fastapi", version="1", redoc_url=None, responses={})
    _add_problems(api)
    _add_pages(api)
    _add_keys(api)

    default = {m.kind: m for m in reversed(service.models.values())}

    # Reads the header by itself: a dependency of FastAPI would cost a tenth of a request.
    def choose(kind: str, request: Request) -> Description:
        name = request.headers.get("x-model")
        if name is None and kind in default:
            return default[kind]
        known = [m.name for m in service.models.values() if m.kind == kind]
        if name not in known:
            allowed = f"must be one of {', '.join(known)}" if known else "none is served"
            raise HTTPException(404, f"no model {name!r} of {kind}: {allowed}")
        return service.models[name]

    async def answer(model: Description, row: Any) -> Response:
        started = time.perf_counter()
        (found,) = await within(limits.deadline_s, service.predict(model.name, [row]))
        latency_ms = round((time.perf_counter() - started) * 1000, 3)
        content = found | {"model": model.name, "latency_ms": latency_ms}
        return Response(json.dumps(content), media_type="application/json")

    def stream(model: Description, rows: list[Any]) -> Response:
        if len(rows) > limits.max_rows:
            raise HTTPException(413, f"{len(rows)} rows: at most {limits.max_rows} are allowed")
        events = _events(service, model, rows, limits.deadline_s)
        return StreamingResponse(events, media_type="text/event-stream")

    @api.get("/healthz")
    async def alive() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @api.get("/readyz", responses={503: PROBLEMS[503]})
    async def ready() -> dict[str, str]:
        """Whether its models are loaded."""
        if (reason := await service.not_ready()) is not None:
            raise HTTPException(503, reason, {"Retry-After": "1"})
        return {"status": "ready"}

    @api.get("/version")
    async def version() -> schemas.Version:
        """What is running."""
        found = {m.name: m.version for m in service.models.values()}
        return schemas.Version(project="serve-fastapi", versions=versions, models=found)

    @api.get("/v1/models", responses=_problems(401, 429))
    async def list_models() -> list[schemas.Model]:
        """The models and their metrics."""
        first = defaults(service.models)
        return [
            schemas.Model(default=m.name in first, **_public(m)) for m in service.models.values()
        ]

    @api.post("/v1/digits", response_model=schemas.DigitAnswer, **PREDICTS)
    async def predict_digit(request: Request, body: schemas.DigitRequest) -> Response:
        """Which digit an array of gray values shows."""
        model = choose("digits", request)
        check_image(body.image, model)
        return await answer(model, body.image)

    @api.post("/v1/digits/image", response_model=schemas.DigitAnswer, **PREDICTS)
    async def predict_picture(
        request: Request, file: Annotated[UploadFile, File(description="A PNG or JPEG.")]
    ) -> Response:
        """Which digit a picture shows."""
        model = choose("digits", request)
        content = await file.read()
        try:
            decoded = await asyncio.to_thread(images.decode, content, model.shape, model.maximum)
        except images.ImageError as error:
            raise HTTPException(422, str(error)) from None
        return await answer(model, decoded.tolist())

    @api.post("/v1/trips", response_model=schemas.TripAnswer, **PREDICTS)
    async def predict_trip(request: Request, body: schemas.TripRequest) -> Response:
        """How many minutes a taxi trip will take."""
        model = choose("trips", request)
        check_trip(body, model)
        return await answer(model, body.model_dump())

    @api.post("/v1/digits/batch", response_class=StreamingResponse, **PREDICTS)
    async def predict_digits(request: Request, body: schemas.DigitsBatch) -> Response:
        """Many digits: a stream of server-sent events with progress and answers."""
        model = choose("digits", request)
        for image in body.images:
            check_image(image, model)
        return stream(model, body.images)

    @api.post("/v1/trips/batch", response_class=StreamingResponse, **PREDICTS)
    async def predict_trips(request: Request, body: schemas.TripsBatch) -> Response:
        """Many trips: a stream of server-sent events with progress and answers."""
        model = choose("trips", request)
        for trip in body.trips:
            check_trip(trip, model)
        return stream(model, [trip.model_dump() for trip in body.trips])

    return api


async def within(seconds: float, answer: Awaitable[T]) -> T:
    """The answer; gives up after some seconds: what was begun is cancelled, and it is 504."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise HTTPException(504, f"not done after {seconds:g} s") from None


def check_image(image: list[list[float]], model: Description) -> None:
    """Refuses an image of another size or range than the model's."""
    height, width = model.shape
    if len(image) != height or any(len(row) != width for row in image):
        found = f"{len(image)} rows of {min(map(len, image))} to {max(map(len, image))} values"
        raise HTTPException(422, f"image: {found}: must be {height} rows of {width}")
    if max(map(max, image)) > model.maximum:
        largest = max(map(max, image))
        raise HTTPException(422, f"image: a value of {largest:g}: must be <= {model.maximum:g}")


def check_trip(trip: schemas.TripRequest, model: Description) -> None:
    """Refuses a zone that the model does not know."""
    for key, zone in (("pickup_zone", trip.pickup_zone), ("dropoff_zone", trip.dropoff_zone)):
        if zone not in model.zones:
            raise HTTPException(422, f"{key}: the model knows no zone {zone}")


async def _events(
    service: Service, model: Description, rows: list[Any], deadline_s: float
) -> AsyncIterator[str]:
    """Server-sent events: `answers` after every few rows, then `done`, or `error`."""
    for start in range(0, len(rows), ROWS_PER_EVENT):
        part = rows[start : start + ROWS_PER_EVENT]
        try:
            found = await within(deadline_s, service.predict(model.name, part))
        except Exception as error:
            reason = "too busy" if isinstance(error, BusyError) else "an internal error"
            if isinstance(error, HTTPException):
                reason = str(error.detail)
            elif not isinstance(error, BusyError):
                logger.exception("a batch failed")
            yield _event("error", {"error": reason, "done": start, "total": len(rows)})
            return
        done = start + len(part)
        yield _event("answers", {"done": done, "total": len(rows), "answers": found})
    yield _event("done", {"total": len(rows), "model": model.name})


def _event(name: str, content: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: PROBLEMS[status] for status in statuses}


def _public(model: Description) -> dict[str, Any]:
    kept = ("name", "kind", "framework", "version", "metrics")
    return {name: value for name, value in asdict(model).items() if name in kept}


def _add_problems(api: FastAPI) -> None:
    """Every answer that is not 200 looks like `schemas.Problem`; none shows how the code looks."""

    def problem(
        request: Request, status: int, error: str, headers: Any = None, details: Any = None
    ) -> JSONResponse:
        request_id = request.headers.get("x-request-id", "")
        content = schemas.Problem(error=error, request_id=request_id, details=details)
        return JSONResponse(content.model_dump(exclude_none=True), status, headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Without the input, and names cut: either may be very long, or what JSON cannot write.
        details = [
            {
                "loc": [part[:100] if isinstance(part, str) else part for part in e["loc"]],
                "msg": e["msg"],
                "type": e["type"],
            }
            for e in error.errors()[:10]
        ]
        return problem(request, 422, "the request is not valid", None, details)

    @api.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return problem(request, error.status_code, str(error.detail), error.headers)

    @api.exception_handler(BusyError)
    async def busy(request: Request, _: BusyError) -> Response:
        return problem(request, 503, "too busy; try again", {"Retry-After": "1"})

    @api.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        return problem(request, 500, "an internal error; the log knows this request_id")


def _add_pages(api: FastAPI) -> None:
    folder = resources.files("serve_fastapi.web")

    def add(path: str, name: str) -> None:
        content = (folder / name).read_text()
        media_type = MEDIA_TYPES[name.rpartition(".")[2]]

        @api.get(path, include_in_schema=False)
        async def page() -> Response:
            return Response(content, media_type=media_type)

    for path, name in PAGE.items():
        add(path, name)


def _add_keys(api: FastAPI) -> None:
    """Tells the API's page of the keys, for its "Authorize"; `security.py` checks them."""
    describe = api.openapi

    def openapi() -> dict[str, Any]:
        found = describe()
        found.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, operations in found["paths"].items():
            if path.startswith("/v1/"):
                for operation in operations.values():  # {}: without keys, everybody may ask.
                    operation["security"] = [{}, {"bearer": []}, {"key": []}]
        return found

    api.openapi = openapi  # type: ignore[method-assign]
