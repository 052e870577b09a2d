from typing import Literal

import numpy as np
import pytest
from PIL import Image

from vitrail.data import resize as resizing
from vitrail.data.resize import resized


def photo(height: int, width: int, channels: int) -> np.ndarray:
    """Make soft and hard edges, fine grain and flat parts."""
    draw = np.random.default_rng(height)
    soft = draw.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC))
    image = image.astype(int) + draw.integers(-20, 21, image.shape)
    image[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 255)
    image[: height // 4 : 2, : width // 4] = 0
    return image.clip(0, 255).astype(np.uint8)[..., :channels]


@pytest.mark.skipif(not resizing._BY_TORCH, reason="this processor has no AVX2: Pillow resizes")
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("before", "after"),
    [((375, 500), (224, 224)), ((90, 60), (224, 160)), ((1200, 1600), (32, 48)), ((1, 1), (9, 8))],
)
def test_torch_gives_what_pillow_gives(
    before: tuple[int, int],
    after: tuple[int, int],
    channels: int,
    interpolation: Literal["bilinear", "bicubic"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = photo(*before, channels)

    fast = resized(pixels, *after, interpolation)

    monkeypatch.setattr(resizing, "_BY_TORCH", False)
    wanted = resized(pixels, *after, interpolation)
    off = np.abs(fast.astype(int) - wanted)
    assert fast.shape == wanted.shape == (*after, channels)
    assert off.max() <= 3 and off.mean() <= 0.05


def test_a_part_of_an_image_and_one_that_may_not_be_written_are_resized() -> None:
    pixels = photo(40, 60, 3)
    fixed = pixels.copy()
    fixed.flags.writeable = False

    part = resized(pixels[5:25, 10:50][:, ::-1], 7, 8)

    assert np.array_equal(part, resized(pixels[5:25, 10:50][:, ::-1].copy(), 7, 8))
    assert np.array_equal(resized(fixed, 7, 8), resized(pixels, 7, 8))
