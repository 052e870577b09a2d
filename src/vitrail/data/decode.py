"""Bytes of an image file to pixels."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from vitrail.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 100_000_000  # a photo of 12,000 x 8,000; a bomb has billions


def decode(data: bytes) -> Image.Image:
    """Give the upright image as mode L or RGB: transparency over white, 16 bits scaled to 8.

    Raises `DataError` for bytes that are no image of `FORMATS`, are cut short, or have more than
    `MOST_PIXELS`.
    """
    if not data:
        raise DataError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; errors still come
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{image.width} x {image.height} pixels; the limit is {MOST_PIXELS:,}"
                )
            return upright(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(_reason(data, error)) from error


def to_array(image: Image.Image, channels: int) -> np.ndarray:
    """Give the pixels as uint8, C H W, in 1 (grey) or 3 (RGB) channels."""
    if channels not in (1, 3):
        raise DataError(f"images are read in 1 or 3 channels, and the model wants {channels}")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)


def upright(image: Image.Image) -> Image.Image:
    """Give an open image as `decode` does: turned as its EXIF says, as mode L or RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        deep = np.asarray(image).astype(np.float64)
        top = 65535.0 if deep.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.rint(deep.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _reason(data: bytes, error: Exception) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "this is an HTML page, not an image"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the image itself; `git lfs pull` fetches it"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"this is no image of a known format ({', '.join(FORMATS)})"
    return f"the image cannot be decoded: {error}"
