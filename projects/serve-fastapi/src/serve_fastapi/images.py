"""An uploaded picture becomes the small gray image that a model takes."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 4_000_000
FORMATS = ("PNG", "JPEG")


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
    try:
        picture: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            size = f"{picture.width} x {picture.height}"
            raise ImageError(f"a picture of {size} pixels: at most {MAX_PIXELS:,} are allowed")
        if picture.has_transparency_data:
            ground = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(ground, picture.convert("RGBA"))
        gray = np.asarray(picture.convert("L"), np.float32)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"not a PNG or JPEG that can be read ({type(error).__name__})") from None
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    if np.median(edge) > 127:
        gray = 255 - gray
    return _fit(gray, shape) * (maximum / 255)


def _fit(gray: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    height, width = shape
    drawn = gray > 64
    if (height, width) == gray.shape or not drawn.any():
        content = gray
    else:
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        cut = gray[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        # The digits of the training set fill their square from top to bottom.
        side = max(cut.shape[0], round(cut.shape[1] * height / width))
        content = np.zeros((side, max(cut.shape[1], round(side * width / height))), np.float32)
        top, left = (content.shape[0] - cut.shape[0]) // 2, (content.shape[1] - cut.shape[1]) // 2
        content[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    resized = Image.fromarray(content).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized, np.float32)
