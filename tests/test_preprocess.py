import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data import resize as resizing
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def stripes(*colours: tuple[int, int, int], side: int = 10) -> Image.Image:
    """Put squares of these colours side by side."""
    row = [np.full((side, side, 3), colour, np.uint8) for colour in colours]
    return Image.fromarray(np.concatenate(row, axis=1))


def wide() -> Image.Image:
    return stripes(RED, GREEN, BLUE)


def test_shortest_keeps_the_middle_of_a_long_image() -> None:
    across = Preprocess(size=(10, 10)).pixels(wide())
    down = Preprocess(size=(10, 10)).pixels(wide().transpose(Image.Transpose.ROTATE_90))

    for pixels in (across, down):
        assert pixels.shape == (3, 10, 10) and pixels.dtype == np.uint8
        assert np.array_equal(pixels, np.broadcast_to(np.array(GREEN)[:, None, None], (3, 10, 10)))


def test_shortest_keeps_the_aspect_ratio() -> None:
    pixels = Preprocess(size=(20, 60)).pixels(wide())

    assert [tuple(pixels[:, 10, x]) for x in (10, 30, 50)] == [RED, GREEN, BLUE]
    assert Preprocess(size=(60, 20)).pixels(wide()).shape == (3, 60, 20)


def test_square_shows_the_whole_image_stretched() -> None:
    pixels = Preprocess(size=(12, 12), resize="square").pixels(wide())

    assert [tuple(pixels[:, 6, x]) for x in (0, 6, 11)] == [RED, GREEN, BLUE]


def test_crop_is_the_share_of_the_side_that_is_kept() -> None:
    picture = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20).astype(np.uint8))

    for resize in ("shortest", "square"):
        how = Preprocess(size=(10, 10), crop=0.5, resize=resize, mean=(0.5,), std=(0.5,))
        assert np.array_equal(how.pixels(picture)[0], np.asarray(picture)[5:15, 5:15])


def test_pad_fits_the_whole_image_in_and_fills_up_with_the_mean() -> None:
    how = Preprocess(size=(30, 30), resize="pad", mean=(0.2, 0.4, 0.6))

    pixels = how.pixels(wide())

    assert np.array_equal(pixels[:, 10:20], np.moveaxis(np.asarray(wide()), -1, 0))
    for row in (*range(10), *range(20, 30)):
        assert np.array_equal(pixels[:, row].T, np.tile((51, 102, 153), (30, 1)))


def test_without_antialias_single_points_are_read() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    how = {"size": (3, 3), "mean": (0.5,), "std": (0.5,)}

    points = Preprocess(antialias=False, **how).pixels(Image.fromarray(noise))
    means = Preprocess(antialias=True, **how).pixels(Image.fromarray(noise))

    assert np.array_equal(points[0], noise[1::3, 1::3])
    assert not np.array_equal(means, points)


def test_a_plain_image_stays_plain_at_any_size() -> None:
    for antialias in (True, False):
        for size in ((7, 13), (3, 3), (31, 8)):
            how = Preprocess(size=size, antialias=antialias, crop=0.875)
            pixels = how.pixels(Image.new("RGB", (11, 17), (9, 99, 199)))
            assert pixels.shape == (3, *size)
            assert np.unique(pixels.reshape(3, -1), axis=1).tolist() == [[9], [99], [199]]


@pytest.mark.parametrize("resize", ["shortest", "square", "pad"])
def test_one_pixel_fills_the_whole_input(resize: Any) -> None:
    pixels = Preprocess(size=(8, 8), resize=resize).pixels(Image.new("RGB", (1, 1), RED))

    assert np.array_equal(pixels, np.broadcast_to(np.array(RED)[:, None, None], (3, 8, 8)))


@pytest.mark.parametrize("antialias", [True, False])
def test_a_thread_of_an_image_is_refused_or_cut_before_it_is_stretched(
    antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    resize = resizing.resized

    def noted(pixels: np.ndarray, tall: int, wide: int, *how: Any) -> np.ndarray:
        made.append((wide, tall))
        return resize(pixels, tall, wide, *how)

    monkeypatch.setattr("vitrail.data.preprocess.resized", noted)

    # 32 x 48,000 pixels at the full length; from 2 x 90,000 at 224 pixels it would be gigabytes.
    with suppress(DataError):
        Preprocess(size=(32, 32), antialias=antialias).pixels(Image.new("RGB", (2, 3000), RED))

    assert all(width * height <= 64 * 64 for width, height in made)


def test_grey_and_colour_become_the_channels_of_the_model() -> None:
    grey = Preprocess(size=(4, 4), mean=(0.5,), std=(0.5,))
    picture = Image.new("RGB", (4, 4), (200, 200, 200))

    assert np.array_equal(grey.pixels(picture), np.full((1, 4, 4), 200))
    assert np.array_equal(
        Preprocess(size=(4, 4)).pixels(picture.convert("L")), np.full((3, 4, 4), 200)
    )


def test_mean_and_std_are_of_each_channel_in_0_to_1() -> None:
    how = Preprocess(size=(2, 3), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    batch = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 3)

    images = how.normalize(batch)

    assert images.dtype == torch.float32 and images.shape == (2, 3, 2, 3)
    assert images[:, :, 0, 0].tolist() == [[0, -1, -4], [1, 1, 0]]


def test_json_gives_the_same_preprocessing_back() -> None:
    how = Preprocess(
        size=(40, 56), resize="pad", crop=0.9, interpolation="bilinear", antialias=False,
        mean=(0.48, 0.45, 0.4), std=(0.2, 0.3, 0.1),
    )  # fmt: skip

    assert Preprocess.from_json(json.loads(json.dumps(how.to_json()))) == how


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", [0, 0]), ("size", [-8, 8]), ("size", [16.5, 8]), ("size", 16), ("size", [16]),
        ("size", "16"), ("resize", "shortset"), ("resize", ["pad"]), ("crop", 0), ("crop", 1.5),
        ("crop", "all"), ("interpolation", "nearest"), ("antialias", "no"), ("mean", "abc"),
        ("mean", [0.5]), ("mean", [0.5, None, 0.5]), ("mean", [float("nan")] * 3), ("mean", []),
        ("std", [0.0, 1.0, 1.0]), ("std", ["a", "b", "c"]), ("mirror", True),
    ],
)  # fmt: skip
def test_json_that_is_no_preprocessing_is_refused(key: str, value: Any) -> None:
    values = {**Preprocess(size=(8, 8)).to_json(), key: value}

    with pytest.raises(ConfigError, match=key):
        Preprocess.from_json(values)


@pytest.mark.parametrize("values", [{}, [], None, "size"])
def test_other_json_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="preprocess"):
        Preprocess.from_json(values)


@pytest.mark.parametrize("resize", ["shortest", "square", "pad"])
@pytest.mark.parametrize("size", [(30, 44), (44, 30), (300, 40), (40, 300)])
def test_the_box_that_the_model_sees_holds_what_it_sees(resize: Any, size: tuple[int, int]) -> None:
    preprocess = Preprocess(size=(20, 28), resize=resize, crop=0.9, mean=(0.5,), std=(0.5,))
    height, width = size
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    ramps = [
        np.broadcast_to(rows[:, None] / height, size),
        np.broadcast_to(columns / width, size),
    ]
    down, across = (
        preprocess.pixels(np.rint(ramp * 255).astype(np.uint8)[..., None])[0] for ramp in ramps
    )

    top, left, bottom, right = preprocess.seen(height, width)

    # Pixels on a ramp say where in the image they come from, to 1/255 of its side and, because
    # bicubic resizing bends a ramp at the image's edge, a resized pixel.
    step_down, step_across = (bottom - top) / 20, (right - left) / 28
    places = top + step_down * (np.arange(20) + 0.5), left + step_across * (np.arange(28) + 0.5)
    for found, place, length, step in (
        (down[:, 14], places[0], height, step_down),
        (across[10], places[1], width, step_across),
    ):
        seen = (place > 0) & (place < length)
        assert seen.any() and (resize == "pad" or seen.all())
        off = np.abs(found[seen] / 255 * length - place[seen])
        assert off.max() < step + length / 255
        assert off.mean() < 0.5 * step + length / 255
