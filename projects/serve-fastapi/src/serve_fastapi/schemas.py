"""What requests and answers look like; FastAPI checks them and makes the OpenAPI page of them."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from serve_fastapi.config import MAX_ROWS

MAX_SIDE = 256
"""The most pixels along a side of an image."""
DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d", re.ASCII)


def _date_and_time(value: Any) -> Any:
    # pydantic would take 0 and "0" as seconds since 1970, and a date as its midnight.
    if not (isinstance(value, str) and DATE_TIME.match(value)):
        raise ValueError("must be a date and time such as 2026-01-07T17:30:00")
    return value


# Each list fails at its first wrong element: a body of 1 MB can hold half a million of them, and
# pydantic would need seconds and hundreds of MB to describe them all.
Pixel = Annotated[float, Field(ge=0, le=255, allow_inf_nan=False)]
Image = Annotated[
    list[Annotated[list[Pixel], FailFast(), Field(min_length=1, max_length=MAX_SIDE)]],
    FailFast(),
    Field(min_length=1, max_length=MAX_SIDE, description="Rows of gray values; 0 is background."),
]
# Not strict: FastAPI checks what JSON became in Python, and that is a string and no datetime.
DateTime = Annotated[datetime, BeforeValidator(_date_and_time), Field(strict=False)]


class Strict(BaseModel):
    """No conversion but of whole numbers to floats, and no field that nobody knows."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DigitRequest(Strict):
    """One image."""

    image: Image


class TripRequest(Strict):
    """One trip, before it begins."""

    pickup_at: DateTime = Field(description="Local time; an offset, if there is one, is ignored.")
    distance_miles: float = Field(ge=0, le=500, allow_inf_nan=False)
    pickup_zone: int = Field(ge=1, le=9999)
    dropoff_zone: int = Field(ge=1, le=9999)
    passengers: float | None = Field(default=None, ge=0, le=9, allow_inf_nan=False)
    vendor: int = Field(default=1, ge=0, le=99)
    ratecode: int | None = Field(default=None, ge=1, le=99)


class DigitsBatch(Strict):
    """Many images."""

    images: Annotated[list[Image], FailFast()] = Field(min_length=1, max_length=MAX_ROWS)


class TripsBatch(Strict):
    """Many trips."""

    trips: Annotated[list[TripRequest], FailFast()] = Field(min_length=1, max_length=MAX_ROWS)


class Answer(BaseModel):
    """Who answered, and how long that took."""

    model: str = Field(description="Name of the model.")
    version: str = Field(description="The first digits of the hash of its files.")
    latency_ms: float = Field(description="From the whole request read to the answer known.")


class DigitAnswer(Answer):
    """A digit."""

    label: str
    probabilities: list[float] = Field(description="One for each class, in the model's order.")


class TripAnswer(Answer):
    """A duration."""

    minutes: float


class Model(BaseModel):
    """A model that is served."""

    name: str
    kind: str
    framework: str
    version: str
    default: bool
    metrics: dict[str, float]


class Version(BaseModel):
    """What is running."""

    project: str
    versions: dict[str, str]
    models: dict[str, str] = Field(description="Name of a model to its version.")


class Problem(BaseModel):
    """Every answer that is not 200."""

    error: str
    request_id: str
    details: list[dict[str, Any]] | None = None
