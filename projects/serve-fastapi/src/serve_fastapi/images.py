"""An uploaded picture becomes the small gray image that a model takes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 4_000_000
MAX_SIDE = 4096
MAX_SCANS = 64
"""Of a progressive JPEG; about ten are usual."""
FORMATS = ("PNG", "JPEG")
START_OF_SCAN = b"\xff\xda"


class ImageError(ValueError):
    """Not a picture that can be read; the message says why."""


def decode(content: bytes, shape: tuple[int, int], maximum: float) -> NDArray[np.float32]:
    """Reads a PNG or JPEG.

    A dark digit on a light ground is turned round, since the models were trained on the opposite;
    what is drawn is cut out and centred, as in the training images.

    Args:
        content: The file.
        shape: (height, width) of the result.
        maximum: What white becomes.

    Returns:
        float32 [height, width], 0 to `maximum`.

    Raises:
        ImageError: If it is neither, damaged, or too large.
    """
    with _damage_refused():
        picture: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    if picture.width * picture.height > MAX_PIXELS or max(picture.size) > MAX_SIDE:
        size = f"{picture.width} x {picture.height}"
        allowed = f"at most {MAX_PIXELS:,}, and {MAX_SIDE:,} along a side, are allowed"
        raise ImageError(f"a picture of {size} pixels: {allowed}")
    # A scan may be of 14 bytes, and goes through all pixels.
    if picture.format != "PNG" and content.count(START_OF_SCAN) > MAX_SCANS:
        raise ImageError(f"a JPEG of more than {MAX_SCANS} scans")
    with _damage_refused():
        if picture.has_transparency_data:
            ground = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(ground, picture.convert("RGBA"))
        gray = np.asarray(picture.convert("L"), np.float32)
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    if np.median(edge) > 127:
        gray = 255 - gray
    return _fit(gray, shape) * (maximum / 255)


@contextmanager
def _damage_refused() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Pillow documents OSError, but damage also comes as SyntaxError, ValueError, IndexError and
        # AssertionError.
        raise ImageError(f"not a PNG or JPEG that can be read ({type(error).__name__})") from error


def _fit(gray: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    height, width = shape
    if gray.shape == shape:
        return gray
    drawn = gray > 64
    if drawn.any():
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        gray = gray[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # The digits of the training set fill their square from top to bottom.
    side = max(gray.shape[0], gray.shape[1] * height / width)
    vertical = _weights(gray.shape[0], side, height)
    horizontal = _weights(gray.shape[1], side * width / height, width)
    return np.asarray(vertical @ gray @ horizontal.T, np.float32)


def _weights(num_pixels: int, side: float, num_parts: int) -> NDArray[np.float32]:
    """How much of each of the equal parts of a side is covered by each of the pixels at its middle.

    So the side, which may be much longer than what was drawn, is never made.

    Returns:
        float32 [num_parts, num_pixels], 0 to 1.
    """
    part = side / num_parts
    start = np.arange(num_parts)[:, None] * part - (side - num_pixels) / 2
    pixel = np.arange(num_pixels)
    covered = np.minimum(start + part, pixel + 1) - np.maximum(start, pixel)
    return (covered.clip(min=0) / part).astype(np.float32)
