import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from vitrail.data import decode as decoding
from vitrail.data.decode import MOST_ASPECT, MOST_PIXELS, Jpeg, decode, open_image
from vitrail.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def stored(image: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **how)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return decode(data)


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
    for form in ("PNG", "JPEG"):
        grey = Image.fromarray(RGB[..., 0])

        read = pixels(stored(grey, form))

        assert read.dtype == np.uint8 and read.shape == (20, 30, 1)
        assert np.array_equal(read[..., 0], np.asarray(Image.open(io.BytesIO(stored(grey, form)))))


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

    assert np.array_equal(
        pixels(stored(Image.fromarray(deep), form))[..., 0], np.rint(deep / 257.0)
    )


@pytest.mark.parametrize("top", [200, 300, 65535])
def test_a_deep_pgm_is_scaled_whatever_its_brightest_is(top: int) -> None:
    deep = np.array([[0, top // 2, top]], ">u2")

    assert np.array_equal(pixels(b"P5 3 1 65535\n" + deep.tobytes())[..., 0], np.rint(deep / 257.0))


@pytest.mark.parametrize("values", [[0, 65536], [-1, 9]])
@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_beyond_sixteen_bits_are_refused(values: list[int], kind: type) -> None:
    data = stored(Image.fromarray(np.array([values], kind)), "TIFF")

    with pytest.raises(DataError, match=f"from {values[0]} to {values[1]}; up to 16 bits"):
        decode(data)


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floating_point_is_scaled_by_the_white_that_none_is_above(white: float) -> None:
    deep = np.array([[0.0, 0.5 * white, white]], np.float32)

    read = pixels(stored(Image.fromarray(deep), "TIFF"))[0, :, 0]

    assert read.tolist() == [0, 128, 255]


def test_one_bit_is_black_and_white() -> None:
    bits = np.array([[True, False, True]])

    assert pixels(stored(Image.fromarray(bits))).tolist() == [[[255], [0], [255]]]


def test_cmyk_is_read_as_the_colours_it_prints() -> None:
    red = stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)

    image = decode(red)

    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - (255, 0, 0)).max() <= 6  # JPEG is not exact


TURNS = [
    (1, lambda a: a),
    (2, np.fliplr),
    (3, lambda a: np.rot90(a, 2)),
    (4, np.flipud),
    (5, np.transpose),
    (6, lambda a: np.rot90(a, -1)),
    (7, lambda a: np.rot90(a, 2).T),
    (8, np.rot90),
]


@pytest.mark.parametrize(("orientation", "upright"), TURNS)
def test_the_image_stands_upright(
    orientation: int, upright: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(RGB[..., 0])

    for form in ("PNG", "JPEG"):
        read = pixels(stored(picture, form, exif=exif))

        lying = pixels(stored(picture, form))
        assert np.array_equal(read[..., 0], upright(lying[..., 0]))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_jpeg_decodes_at_a_part_of_its_size(orientation: int, shrink: Literal[2, 4, 8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.fromarray(RGB).resize((208, 120), Image.Resampling.BICUBIC)
    image = open_image(stored(smooth, "JPEG", quality=95, exif=exif))
    assert isinstance(image, Jpeg)

    small = image.pixels(shrink).astype(int)

    tall, wide = -(-image.height // shrink), -(-image.width // shrink)
    whole = Image.fromarray(image.pixels()).resize((wide, tall), Image.Resampling.BOX)
    assert small.shape == (tall, wide, 3)
    assert np.abs(small - np.asarray(whole)).mean() < 4  # a DCT's low frequencies are no box


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_a_jpeg_has_the_pixels_that_pillow_reads(mode: str, how: dict[str, Any]) -> None:
    data = stored(Image.fromarray(RGB).resize((301, 203)).convert(mode), "JPEG", **how)

    read = pixels(data)

    wanted = np.asarray(Image.open(io.BytesIO(data))).reshape(read.shape)
    assert np.abs(read.astype(int) - wanted).max() <= 1


def test_xmp_turns_a_jpeg_too() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    data = stored(Image.fromarray(RGB), "JPEG", xmp=xmp)

    assert pixels(data).shape == (30, 20, 3)


def test_a_damaged_jpeg_is_refused_where_pillow_reads_it_in_silence() -> None:
    whole = stored(Image.fromarray(RGB).resize((200, 160)), "JPEG")
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 2] = b"\xff\xd3"  # a marker amid the pixels
    Image.open(io.BytesIO(damaged)).load()

    with pytest.raises(DataError, match="cannot be decoded: Corrupt JPEG"):
        decode(bytes(damaged))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_thread_of_an_image_is_refused_by_its_header(form: str) -> None:
    data = stored(Image.new("L", (1, MOST_ASPECT + 1)), form)

    with pytest.raises(DataError, match=f"up to {MOST_ASPECT} times"):
        open_image(data)
    assert decode(stored(Image.new("L", (1, MOST_ASPECT)), form)).shape == (MOST_ASPECT, 1, 1)


def test_a_jpeg_of_too_many_pixels_is_refused_by_its_header() -> None:
    data = bytearray(stored(Image.new("L", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)

    with pytest.raises(DataError, match=f"{MOST_PIXELS:,}"):
        open_image(bytes(data))


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
            assert decode(damaged.tobytes()).shape[2] in (1, 3)
        except DataError as error:
            assert str(error)


def test_threads_that_decode_leave_the_warning_filters_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = {name: threading.Event() for name in "ab"}
    go_on = {name: threading.Event() for name in "ab"}
    turn = decoding.upright

    def waits(image: Image.Image) -> np.ndarray:
        name = threading.current_thread().name
        inside[name].set()
        assert go_on[name].wait(10)
        return turn(image)

    monkeypatch.setattr(decoding, "upright", waits)
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=decode, args=(stored(Image.fromarray(RGB)),), name=name)
        for name in "ab"
    ]

    for thread in threads:
        thread.start()
        assert inside[thread.name].wait(10)
    for thread in threads:
        go_on[thread.name].set()
        thread.join()

    assert warnings.filters == before
