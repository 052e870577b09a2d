"""Bytes of an image file to pixels: uint8, H W C, upright, in 1 (grey) or 3 (RGB) channels.

| the file has | the pixels are |
|---|---|
| EXIF or XMP orientation | turned and mirrored as it says |
| transparency: alpha, or a colour of the palette | laid over white |
| more than 8 bits | scaled to 8, never clipped; beyond 16 refused |
| a palette, 1 bit | looked up, 0 or 255 |
| CMYK, YCCK | the colours they print, as Pillow reckons them without a profile |
| several frames | the first |
| a single byte of a JPEG amiss that its decoder notices | refused, with the decoder's reason |
"""

import io
import warnings
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from vitrail.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 100_000_000  # a photo of 12,000 x 8,000; a bomb has billions
MOST_ASPECT = 100  # a strip of 3 x 9,000 brought to 224 pixels would take gigabytes
_ORIENTATION = 0x0112

# Of odd metadata; errors still come. Once for all: `catch_warnings` is not for threads, which
# would leave each other's filters behind.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Jpeg(NamedTuple):
    """A JPEG whose header was read: the size it has upright is known, its pixels wait."""

    data: bytes
    height: int
    width: int
    orientation: int  # EXIF's, 1 to 8
    grey: bool

    def pixels(self, shrink: Literal[1, 2, 4, 8] = 1) -> np.ndarray:
        """Decode all of it, or, in less time, a `shrink`-th of its sides, by its DCT's own scale.

        Every byte is read either way: `DataError` where the decoder warns of any of them.
        """
        sides = (self.height, self.width)
        tall, wide = sides if self.orientation < 5 else sides[::-1]
        try:
            stored = simplejpeg.decode_jpeg(
                self.data,
                "GRAY" if self.grey else "RGB",
                min_height=-(-tall // shrink),
                min_width=-(-wide // shrink),
            )
        except ValueError as error:
            raise DataError(_reason(self.data, error)) from error
        return _turned(stored, self.orientation)


class Look(NamedTuple):
    """What an image file was found to be; the size is the one it has upright."""

    format: str
    width: int
    height: int


def open_image(data: bytes) -> Jpeg | np.ndarray:
    """Give a JPEG by its header, so that it can be decoded at a part of its size, or pixels.

    Raises `DataError` for bytes that are no image of `FORMATS`, are cut short, have more than
    `MOST_PIXELS`, or a side of more than `MOST_ASPECT` times the other.
    """
    if not data.startswith(b"\xff\xd8"):
        return _pixels(data)
    try:
        tall, wide, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DataError(_reason(data, error)) from error
    tall, wide = int(tall), int(wide)
    check_size(wide, tall)
    if colours not in ("YCbCr", "RGB", "Gray"):
        return _pixels(data)
    orientation = _jpeg_orientation(data)
    height, width = (tall, wide) if orientation < 5 else (wide, tall)
    return Jpeg(data, height, width, orientation, colours == "Gray")


def decode(data: bytes) -> np.ndarray:
    """Give all pixels of an image file; raises `DataError` as `open_image` does."""
    image = open_image(data)
    return image.pixels() if isinstance(image, Jpeg) else image


def look(data: bytes) -> Look:
    """Decode an image to its last pixel; raises `DataError` as `decode` does."""
    if data.startswith(b"\xff\xd8"):
        height, width = decode(data).shape[:2]
        return Look("JPEG", width, height)
    image = _open(data)
    height, width = _upright(data, image).shape[:2]
    return Look(image.format or "", width, height)


def size_of(data: bytes) -> tuple[int, int]:
    """Give the width and height that the header says; raises `DataError` as `open_image` does."""
    return _open(data).size


def check_size(width: int, height: int) -> None:
    """Raise `DataError` for a size that would take too much memory, or none at all."""
    short, long = sorted((width, height))
    if width * height > MOST_PIXELS:
        raise DataError(f"{width} x {height} pixels; the limit is {MOST_PIXELS:,}")
    if not short or long > MOST_ASPECT * short:
        raise DataError(
            f"{width} x {height} pixels; one side may be up to {MOST_ASPECT} times the other"
        )


def upright(image: Image.Image) -> np.ndarray:
    """Give the pixels of a PIL image as those of a file are given."""
    check_size(*image.size)
    form = image.format  # no longer known of a turned one
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        deep = np.nan_to_num(np.asarray(image).astype(np.float64))
        low, high = deep.min(), deep.max()
        if low < 0 or high > 65535:
            raise DataError(f"its values go from {low:g} to {high:g}; up to 16 bits can be read")
        # Pillow brings a deep PGM to 16 bits, however dark it is.
        is_deep = image.mode.startswith("I;16") or form == "PPM" or high > 255
        white = 65535 if is_deep else 1 if image.mode == "F" and high <= 1 else 255
        return np.rint(deep * (255 / white)).astype(np.uint8)[..., None]
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return np.asarray(Image.alpha_composite(white, over).convert("RGB"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def _pixels(data: bytes) -> np.ndarray:
    return _upright(data, _open(data))


def _upright(data: bytes, image: Image.Image) -> np.ndarray:
    try:
        return upright(image)
    except DataError:
        raise
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        raise DataError(_reason(data, error)) from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise DataError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"it has more than {MOST_PIXELS:,} pixels, which is the limit") from error
    except Exception as error:
        raise DataError(_reason(data, error)) from error
    check_size(*image.size)
    return image


def _jpeg_orientation(data: bytes) -> int:
    """Read it by Pillow, which takes longer than a header does, so only where there is one."""
    header = data[: data.find(b"\xff\xda")]  # the pixels come after; a thumbnail is inside Exif
    if b"Exif\0\0" not in header and b"tiff:Orientation" not in header:
        return 1
    try:
        found = Image.open(io.BytesIO(data), formats=("JPEG",)).getexif().get(_ORIENTATION)
    except Exception:  # whatever broken metadata leads Pillow to: it spoils no photo
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror H W C as EXIF's orientation asks; gives a view."""
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels if orientation < 5 else pixels.swapaxes(0, 1)


def _reason(data: bytes, error: Exception) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "this is an HTML page, not an image"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the image itself; `git lfs pull` fetches it"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"this is no image of a known format ({', '.join(FORMATS)})"
    if "Premature end of JPEG" in str(error):  # libjpeg's own words
        return f"the image is truncated: {error}"
    return f"the image cannot be decoded: {error}"
