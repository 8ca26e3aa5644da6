"""Requests that would cost more than they should, or that say something other than they mean."""

import io
import json
import random
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from serve_fastapi import images, schemas
from serve_fastapi.config import MAX_ROWS

from .local import LocalService, make_app
from .test_api import DIGITS, GOOD, TRIP, get, picture, post, upload

SHAPE = (8, 8)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def service(bundles: dict[str, str]) -> LocalService:
    return LocalService(bundles)


def saved(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png(*chunks: Chunk) -> bytes:
    """A PNG of these chunks, each with its right checksum."""
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return SIGNATURE + b"".join(parts)


def chunks_of(content: bytes) -> list[Chunk]:
    found, at = [], len(SIGNATURE)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += length + 12
    return found


@pytest.mark.parametrize("size", [(4_000_000, 1), (1, 4_000_000), (4097, 20)])
def test_picture_that_is_too_long_is_refused(service: LocalService, size: tuple[int, int]):
    answer = upload(make_app(service), saved(np.zeros(size[::-1], np.uint8)))
    assert answer.status_code == 422
    assert answer.json()["error"] == (
        f"a picture of {size[0]} x {size[1]} pixels: "
        "at most 4,000,000, and 4,096 along a side, are allowed"
    )


@pytest.mark.parametrize("size", [(4096, 20), (20, 4096)])
def test_long_picture_costs_what_its_pixels_cost(size: tuple[int, int]):
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[2:-2, 2:-2] = 255
    content = saved(pixels)
    images.decode(content, SHAPE, 16.0)  # What is made once, such as Pillow's plugins.
    tracemalloc.start()
    try:
        decoded = images.decode(content, SHAPE, 16.0)
        peak_mb = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak_mb < 8  # A square of its longest side is 64 MB.
    assert 0 < decoded.sum() < 64 * 16 * 17 / 4092


@pytest.mark.parametrize("size", [(80, 80), (80, 40), (40, 80), (80, 6), (8, 16)])
def test_drawn_part_is_centred_and_averaged(size: tuple[int, int]):
    drawn = np.random.default_rng(0).integers(100, 256, size[::-1]).astype(np.uint8)
    decoded = images.decode(saved(np.pad(drawn, ((9, 30), (20, 5)))), SHAPE, 255.0)
    side = max(size)
    rows, columns = (side - drawn.shape[0]) // 2, (side - drawn.shape[1]) // 2
    square = np.pad(drawn, ((rows, rows), (columns, columns))).astype(float)
    expected = square.reshape(8, side // 8, 8, side // 8).mean(axis=(1, 3))
    np.testing.assert_allclose(decoded, expected, atol=0.01)
    assert decoded.dtype == np.float32


def test_small_picture_of_a_digit_stays_like_it():
    errors = [
        np.abs(images.decode(picture(digit, size=20), SHAPE, 16.0) - digit).mean()
        for digit in DIGITS.images[:200]
    ]
    assert np.mean(errors) < 1.5  # It was 1.7 when the square had whole pixels only.


BOMB = zlib.compress(bytes(2 << 20))
HEADER = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
DATA = (b"IDAT", zlib.compress(bytes(9 * 8)))
END = (b"IEND", b"")
ODD: list[Chunk] = [
    (b"zTXt", b"key\0\0" + BOMB),
    (b"iTXt", b"key\0\1\0\0\0" + BOMB),
    (b"iCCP", b"name\0\0" + BOMB),
    (b"tRNS", b"\0"),
    (b"gAMA", b"\0"),
    (b"pHYs", b"\0"),
    (b"cHRM", b"\0"),
    (b"sRGB", b""),
    (b"acTL", b"\0"),
    (b"fcTL", b"\0"),
]


def test_made_png_is_read():
    assert images.decode(png(HEADER, DATA, END), SHAPE, 16.0).shape == SHAPE


@pytest.mark.parametrize("odd", ODD, ids=lambda chunk: chunk[0].decode())
def test_odd_chunk_is_refused(service: LocalService, odd: Chunk):
    answer = upload(make_app(service), png(HEADER, odd, DATA, END))
    assert answer.status_code == 422, answer.text
    assert "not a PNG or JPEG that can be read" in answer.json()["error"]


def test_palette_that_is_missing_is_refused(service: LocalService):
    header = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0))
    answer = upload(make_app(service), png(header, DATA, END))
    assert answer.status_code == 422, answer.text
    assert "not a PNG or JPEG that can be read" in answer.json()["error"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "PNG with right checksums", "JPEG"])
def test_changed_bytes_are_read_or_refused(kind: str):
    generator = random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20)).astype(np.uint8)
    valid = saved(pixels, kind[:4].strip(), dpi=(72, 72), icc_profile=bytes(99))
    refused = 0
    for _ in range(300):
        if "checksums" in kind:
            chunks = chunks_of(valid)
            at = generator.randrange(len(chunks))
            name, data = chunks[at]
            changed = bytearray(data[: generator.randint(0, 2 * len(data))])
            if changed:
                changed[generator.randrange(len(changed))] = generator.randrange(256)
            chunks[at] = (name, bytes(changed))
            content = png(*chunks)
        else:
            changed = bytearray(valid)
            changed[generator.randrange(len(changed))] = generator.randrange(256)
            content = bytes(changed)
        try:
            images.decode(content, SHAPE, 16.0)
        except images.ImageError:
            refused += 1
    assert 5 < refused < 300


@pytest.mark.parametrize("num_more", [images.MAX_SCANS - 10, 10_000])
def test_jpeg_of_many_scans_is_refused(service: LocalService, num_more: int):
    content = saved(np.zeros((200, 200), np.uint8), "JPEG", progressive=True)
    last = content[content.rindex(images.START_OF_SCAN) : -2]
    answer = upload(make_app(service), content[:-2] + last * num_more + content[-2:])
    if num_more < images.MAX_SCANS:
        assert answer.status_code == 200, answer.text
    else:
        assert answer.status_code == 422
        assert answer.json()["error"] == "a JPEG of more than 64 scans"


def nested(value: str, *nums: int) -> str:
    """JSON of a value in a list in a list, and so on."""
    for num in nums:
        value = f"[{','.join([value] * num)}]"
    return value


@pytest.mark.parametrize(
    ("path", "body", "loc"),
    [
        ("trips/batch", f'{{"trips":{nested("0", 500_000)}}}', ["body", "trips", 0]),
        ("digits/batch", f'{{"images":{nested("0", 500_000)}}}', ["body", "images", 0]),
        ("digits/batch", f'{{"images":{nested("0", 256, 500)}}}', ["body", "images", 0, 0]),
        (
            "digits/batch",
            f'{{"images":{nested("-1", 256, 256, 5)}}}',
            ["body", "images", 0, 0, 0],
        ),
        ("digits", f'{{"image":{nested("-1", 256, 256)}}}', ["body", "image", 0, 0]),
    ],
    ids=["trips", "images", "rows", "pixels", "image"],
)
def test_first_error_of_a_list_is_the_only_one(
    service: LocalService, path: str, body: str, loc: list[Any]
):
    answer = post(make_app(service), f"/v1/{path}", body.encode())
    assert answer.status_code == 422
    assert [detail["loc"] for detail in answer.json()["details"]] == [loc]


@pytest.mark.parametrize(
    ("batch", "key", "row"),
    [(schemas.TripsBatch, "trips", TRIP), (schemas.DigitsBatch, "images", [[0]])],
)
def test_batch_that_is_too_long_is_refused(batch: type[schemas.Strict], key: str, row: Any):
    batch.model_validate({key: [row] * MAX_ROWS})
    with pytest.raises(ValidationError, match="at most 10000 items") as raised:
        batch.model_validate({key: [row] * (MAX_ROWS + 1)})
    assert [error["type"] for error in raised.value.errors()] == ["too_long"]


@pytest.mark.parametrize(
    "changed",
    [
        {"distance_miles": "3.2"},
        {"distance_miles": True},
        {"distance_miles": 10**400},
        {"pickup_zone": "5"},
        {"pickup_zone": True},
        {"passengers": "1"},
        {"vendor": False},
        {"vendor": None},
        {"ratecode": "1"},
        {"pickup_at": 0},
        {"pickup_at": 0.5},
        {"pickup_at": True},
        {"pickup_at": None},
        {"pickup_at": "0"},
        {"pickup_at": "1767807000"},
        {"pickup_at": "2026-01-07"},
        {"pickup_at": "٢٠٢٦-01-07T17:30:00"},
        {"pickup_at": "2026-13-07T17:30:00"},
        {"pickup_at": ["2026-01-07T17:30:00"]},
    ],
    ids=str,
)
def test_nothing_is_converted(service: LocalService, changed: dict[str, Any]):
    answer = post(make_app(service), "/v1/trips", TRIP | changed)
    assert answer.status_code == 422, answer.text
    (detail,) = answer.json()["details"]
    assert detail["loc"] == ["body", *changed]


@pytest.mark.parametrize("pixel", ["1", True, None, [1]], ids=str)
def test_pixel_that_is_no_number_is_refused(service: LocalService, pixel: Any):
    answer = post(make_app(service), "/v1/digits", {"image": [[pixel] * 8] * 8})
    assert answer.status_code == 422, answer.text
    assert answer.json()["details"][0]["loc"] == ["body", "image", 0, 0]


@pytest.mark.parametrize(
    "changed",
    [
        {"distance_miles": 3},
        {"passengers": 1},
        {"passengers": None, "ratecode": None},
        {"pickup_at": "2026-01-07T17:30"},
        {"pickup_at": "2026-01-07 17:30:00"},
        {"pickup_at": "2026-01-07T17:30:00.25Z"},
        {"pickup_at": "2026-01-07T17:30:00+14:00"},
    ],
    ids=str,
)
def test_what_means_the_same_is_taken(service: LocalService, changed: dict[str, Any]):
    answer = post(make_app(service), "/v1/trips", TRIP | changed)
    assert answer.status_code == 200, answer.text


def test_whole_numbers_are_pixels(service: LocalService):
    whole = [[int(pixel) for pixel in row] for row in GOOD]
    assert "." not in json.dumps(whole)
    answer = post(make_app(service), "/v1/digits", {"image": whole})
    assert answer.json()["label"] == str(DIGITS.target[0])


def test_openapi_page_says_what_is_taken(service: LocalService):
    found = get(make_app(service), "/openapi.json").json()["components"]["schemas"]
    at = found["TripRequest"]["properties"]["pickup_at"]
    assert (at["type"], at["format"]) == ("string", "date-time")
    for name, key in (("TripsBatch", "trips"), ("DigitsBatch", "images")):
        rows = found[name]["properties"][key]
        assert (rows["type"], rows["minItems"], rows["maxItems"]) == ("array", 1, MAX_ROWS)


def test_name_of_an_unknown_field_is_cut(service: LocalService):
    answer = post(make_app(service), "/v1/trips", TRIP | {"x" * 500_000: 1})
    assert answer.status_code == 422
    assert [d["loc"] for d in answer.json()["details"]] == [["body", "x" * 100]]
