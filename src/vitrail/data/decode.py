"""Bytes of an image file to pixels."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from vitrail.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 100_000_000  # a photo of 12,000 x 8,000; a bomb has billions

# Of odd metadata; errors still come. Once for all: `catch_warnings` is not for threads, which
# would leave each other's filters behind.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes) -> Image.Image:
    """Give the upright image as mode L or RGB: transparency over white, 16 bits scaled to 8.

    Raises `DataError` for bytes that are no image of `FORMATS`, are cut short, or have more than
    `MOST_PIXELS`.
    """
    image = _open(data)
    try:
        return upright(image)
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        raise DataError(_reason(data, error)) from error


def size_of(data: bytes) -> tuple[int, int]:
    """Give the width and height that the header says; raises `DataError` as `decode` does."""
    return _open(data).size


def _open(data: bytes) -> Image.Image:
    if not data:
        raise DataError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"it has more than {MOST_PIXELS:,} pixels, which is the limit") from error
    except Exception as error:
        raise DataError(_reason(data, error)) from error
    if image.width * image.height > MOST_PIXELS:
        raise DataError(f"{image.width} x {image.height} pixels; the limit is {MOST_PIXELS:,}")
    return image


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
        deep = np.nan_to_num(np.asarray(image).astype(np.float64))
        top = 65535.0 if image.mode.startswith("I;16") or deep.max(initial=0) > 255 else 255.0
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
