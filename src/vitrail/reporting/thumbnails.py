"""Pixels as part of a page: an address that holds the whole picture."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

_SMALL = 64  # pixels a side; smaller images are enlarged with their pixels to be seen


class Thumbnail(NamedTuple):
    """A `data:` address; the page enlarges a `small` one pixel by pixel."""

    address: str
    small: bool


def reduced(pixels: np.ndarray, widest: int) -> np.ndarray:
    """Give pixels, H W C uint8, as H W 3, its longer side at most `widest`."""
    tall, wide = pixels.shape[:2]
    colour = np.ascontiguousarray(np.broadcast_to(pixels, (tall, wide, 3)))
    times = widest / max(tall, wide)
    if times >= 1:
        return colour
    size = max(round(wide * times), 1), max(round(tall * times), 1)
    return np.asarray(Image.fromarray(colour).resize(size, reducing_gap=2.0))


def thumbnail(pixels: np.ndarray) -> Thumbnail:
    """Embed pixels, H W 3 uint8: small ones as they are, photos as JPEG; nothing but pixels."""
    small = max(pixels.shape[:2]) <= _SMALL
    kind = "png" if small else "jpeg"
    return Thumbnail(address(Image.fromarray(pixels), kind), small)


def address(image: Image.Image, kind: str) -> str:
    """Give a picture as a `data:` address."""
    file = io.BytesIO()
    more = {"optimize": True} if kind == "png" else {"quality": 82}
    image.save(file, format=kind, **more)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
