import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.data import decode as decoding
from vitrail.data.decode import MOST_PIXELS, decode
from vitrail.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def stored(image: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **how)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data))


def png_claiming(width: int, height: int) -> bytes:
    """Make a tiny PNG whose header claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_colours_come_out_as_they_went_in(form: str) -> None:
    assert np.array_equal(pixels(stored(Image.fromarray(RGB), form)), RGB)


def test_grey_stays_grey() -> None:
    image = decode(stored(Image.fromarray(RGB[..., 0])))

    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), RGB[..., 0])


def test_a_palette_is_looked_up() -> None:
    few = Image.fromarray(RGB).quantize(16)

    assert np.array_equal(pixels(stored(few)), np.asarray(few.convert("RGB")))


def test_a_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)

    assert pixels(stored(image, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize(("alpha", "wanted"), [(0, 255), (128, 177), (255, 100)])
@pytest.mark.parametrize(("mode", "colour"), [("LA", (100,)), ("RGBA", (100, 100, 100))])
def test_transparency_lies_over_white(
    mode: str, colour: tuple[int, ...], alpha: int, wanted: int
) -> None:
    read = pixels(stored(Image.new(mode, (3, 2), (*colour, alpha))))

    assert read.shape == (2, 3, 3)
    assert np.abs(read.astype(int) - wanted).max() <= 1  # Pillow rounds down


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("top", [200, 300, 65535])
def test_sixteen_bits_are_scaled_whatever_the_brightest_is(form: str, top: int) -> None:
    deep = np.array([[0, top // 2, top]], np.uint16)

    assert np.array_equal(pixels(stored(Image.fromarray(deep), form)), np.rint(deep / 257.0))


def test_one_bit_is_black_and_white() -> None:
    bits = np.array([[True, False, True]])

    assert pixels(stored(Image.fromarray(bits))).tolist() == [[255, 0, 255]]


def test_cmyk_is_read_as_the_colours_it_prints() -> None:
    red = stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)

    image = decode(red)

    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 6  # JPEG is not exact


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).T),
        (8, np.rot90),
    ],
)
def test_the_image_stands_upright(
    orientation: int, upright: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    read = pixels(stored(Image.fromarray(RGB[..., 0]), exif=exif))

    assert np.array_equal(read, upright(RGB[..., 0]))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage!", b"Exif\0\0II*\0\x08\0\0\0\x05\0", b"Exif\0\0II*\0\xff\xff\xff\xff"],
)
@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_broken_exif_spoils_no_photo(exif: bytes) -> None:
    assert pixels(stored(Image.fromarray(RGB), "JPEG", exif=exif)).shape == RGB.shape


JPEG = stored(Image.fromarray(RGB), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (JPEG[:-100], "truncated"),
        (JPEG[:30], "image"),
        (stored(Image.fromarray(RGB))[:-200], "truncated"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"\n <HTML><body>sign in</body>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"just some words", "no image of a known format"),
        (b"\0" * 500, "no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (png_claiming(60_000, 60_000), f"{MOST_PIXELS:,} pixels"),
        (png_claiming(11_000, 11_000), f"{MOST_PIXELS:,}"),
    ],
)
def test_what_is_no_whole_image_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(data)


def test_damaged_bytes_are_an_image_or_a_data_error() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "words", {0x9000: b"0230"}
    whole = np.frombuffer(stored(Image.fromarray(RGB), "JPEG", exif=exif), np.uint8)
    draw = np.random.default_rng(0)

    for _ in range(1500):
        damaged = whole.copy()
        damaged[draw.integers(0, 150, 3)] = draw.choice([0, 1, 2, 127, 255], 3)
        try:
            assert decode(damaged.tobytes()).mode in ("L", "RGB")
        except DataError as error:
            assert str(error)


def test_threads_that_decode_leave_the_warning_filters_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = {name: threading.Event() for name in "ab"}
    go_on = {name: threading.Event() for name in "ab"}
    turn = decoding.upright

    def waits(image: Image.Image) -> Image.Image:
        name = threading.current_thread().name
        inside[name].set()
        assert go_on[name].wait(10)
        return turn(image)

    monkeypatch.setattr(decoding, "upright", waits)
    before = list(warnings.filters)
    threads = [threading.Thread(target=decode, args=(JPEG,), name=name) for name in "ab"]

    for thread in threads:
        thread.start()
        assert inside[thread.name].wait(10)
    for thread in threads:
        go_on[thread.name].set()
        thread.join()

    assert warnings.filters == before
