import math
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.augment import draw
from vitrail.data.crop import draw_crops, random_crop

DRAWS = draw_crops(0, 0, np.arange(300))


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    scale=st.floats(0, 1, exclude_min=True),
    ratio=st.floats(1, 100),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_crop_lies_inside_the_image_and_its_aspect_in_its_range(
    height: int, width: int, scale: float, ratio: float, seed: int
) -> None:
    for row in draw_crops(seed, 0, np.arange(5)):
        crop = random_crop(height, width, row, scale, ratio, True)

        assert crop.top >= 0 and crop.height > 0 and crop.top + crop.height <= height
        assert crop.left >= 0 and crop.width > 0 and crop.left + crop.width <= width
        # Sides are whole pixels: half a pixel more or less of each.
        assert (crop.width - 0.5) / (crop.height + 0.5) <= ratio or crop.width == 1
        assert (crop.height - 0.5) / (crop.width + 0.5) <= ratio or crop.height == 1


def test_area_and_aspect_keep_to_their_ranges() -> None:
    crops = [random_crop(900, 1200, row, 0.08, 4 / 3, True) for row in DRAWS]

    shares = np.array([c.height * c.width / (900 * 1200) for c in crops])
    slants = np.log([c.width / c.height for c in crops])
    assert shares.min() >= 0.079 and shares.max() <= 1 and 0.4 < shares.mean() < 0.6
    assert np.abs(slants).max() <= math.log(4 / 3) + 0.01 and abs(slants.mean()) < 0.03
    assert 110 < sum(c.flip for c in crops) < 190
    assert not any(random_crop(9, 9, row, 0.08, 4 / 3, False).flip for row in DRAWS)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (224, 224), (40, 400), (90, 9), (5, 6)])
@pytest.mark.parametrize("scale", [0.08, 0.6])
def test_the_same_numbers_give_timm_the_same_crop(
    timm: ModuleType, height: int, width: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image
    from timm.data.transforms import RandomResizedCropAndInterpolation as Peer

    image, ratio = Image.new("L", (width, height)), (3 / 4, 4 / 3)
    for row in DRAWS[:50]:
        *tries, down, right, _ = row.tolist()
        left_over = iter(tries)
        places = iter((down, right))
        monkeypatch.setattr(
            "timm.data.transforms.random.uniform",
            lambda low, high, rest=left_over: low + (high - low) * next(rest),
        )
        monkeypatch.setattr(
            "timm.data.transforms.random.randint",
            lambda low, high, rest=places: low + int(next(rest) * (high - low + 1)),
        )

        wanted = Peer.get_params(image, (scale, 1.0), ratio)

        assert random_crop(height, width, row, scale, 4 / 3, True)[:4] == tuple(wanted)


def test_crops_are_drawn_apart_from_all_else() -> None:
    index = np.array([5, 6])

    assert np.array_equal(draw_crops(1, 2, index)[1], draw_crops(1, 2, index[1:])[0])
    assert not np.array_equal(draw_crops(1, 2, index), draw_crops(1, 3, index))
    assert not np.intersect1d(draw_crops(1, 2, index), draw(1, 2, index).numpy()).size
