"""Each operation is the peers': Pillow's, which timm's own functions call."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from vitrail.data.operations import operated
from vitrail.data.policies import OPERATIONS, Operations

SIZE = (21, 34)


def pictures(channels: int = 3) -> Tensor:
    """Give five images: noise, dark noise, few values, one value, and something smooth."""
    noise = torch.randint(256, (5, channels, *SIZE), dtype=torch.uint8)
    noise[1] = noise[1] // 3 + 20
    noise[2] = noise[2] // 100 * 70
    noise[3] = 93
    noise[4] = (torch.arange(SIZE[1]) * 5 + torch.arange(SIZE[0])[:, None] * 3).to(torch.uint8)
    return noise


def ours(images: Tensor, name: str, amount: float = 0.0, fill: int = 128) -> Tensor:
    count = len(images)
    draws = Operations(
        torch.full((count, 1), OPERATIONS.index(name)),
        torch.full((count, 1), amount),
        torch.full((count, 1, 2), 0.5),
    )
    return operated(images, draws, fill, "bilinear")


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


def tensor(image: Image.Image) -> Tensor:
    pixels = np.atleast_3d(np.asarray(image))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def timm_op(timm: ModuleType, name: str) -> Callable[..., Any]:
    from timm.data import auto_augment

    return getattr(auto_augment, name)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "amount", "peer", "arguments"),
    [
        ("equalize", 0, "equalize", ()),
        ("invert", 0, "invert", ()),
        *(("posterize", bits, "posterize", (bits,)) for bits in (1, 3, 4, 8)),
        *(("solarize", least, "solarize", (least,)) for least in (0, 26, 128, 256)),
        *(("solarize_add", add, "solarize_add", (add,)) for add in (0, 50, 110)),
    ],
)
def test_tables_are_timm_s_to_the_bit(
    timm: ModuleType, name: str, amount: float, peer: str, arguments: tuple[int], channels: int
) -> None:
    images = pictures(channels)

    changed = ours(images, name, amount)

    for image, mine in zip(images, changed, strict=True):
        assert torch.equal(mine, tensor(timm_op(timm, peer)(pillow(image), *arguments)))


@pytest.mark.parametrize("channels", [1, 3])
def test_autocontrast_is_pillow_s_but_where_a_quotient_is_whole(channels: int) -> None:
    images = pictures(channels)

    changed = ours(images, "autocontrast")

    for image, mine in zip(images, changed, strict=True):
        off = mine.int() - tensor(ImageOps.autocontrast(pillow(image))).int()
        low, high = (image.flatten(1).int().aminmax(dim=1)[end][:, None, None] for end in (0, 1))
        whole = (image.int() - low) * 255 % (high - low).clamp(min=1) == 0
        # In floating point Pillow may land right under the whole number, and cuts off.
        assert not off[~whole].any() and off.min() >= 0 and off.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("amount", [-0.9, -0.35, 0.0, 0.4, 0.99])
@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_blends_are_pillow_s_to_one_step(
    name: str, peer: type, amount: float, channels: int
) -> None:
    images = pictures(channels)

    changed = ours(images, name, amount)

    for image, mine in zip(images, changed, strict=True):
        off = (mine.int() - tensor(peer(pillow(image)).enhance(1 + amount)).int()).abs()
        # Both cut off a number in single precision, which may lie on either side of a whole one.
        assert off.max() <= 1 and (off > 0).float().mean() < 0.01


@pytest.mark.parametrize(
    ("name", "amount", "peer", "argument"),
    [
        *(("rotate", degrees, "rotate", degrees) for degrees in (-30.0, 7.0, 135.0)),
        *(("shear_x", slant, "shear_x", slant) for slant in (-0.3, 0.99)),
        *(("shear_y", slant, "shear_y", slant) for slant in (-0.3, 0.99)),
        *(("shift_x", pixels, "translate_x_abs", pixels) for pixels in (-7.25, 12.0)),
        *(("shift_y", pixels, "translate_y_abs", pixels) for pixels in (-7.25, 12.0)),
    ],
)
def test_geometry_is_timm_s_to_one_step(
    timm: ModuleType, name: str, amount: float, peer: str, argument: float
) -> None:
    images = pictures()

    changed = ours(images, name, amount)

    for image, mine in zip(images, changed, strict=True):
        theirs = timm_op(timm, peer)(
            pillow(image), argument, resample=Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
        )
        off = (mine.int() - tensor(theirs).int()).abs()
        # Pillow cuts off, we round; a pixel whose source lies on the very border may fall on
        # either side of it.
        assert (off > 1).float().mean() < 0.005


def test_a_cut_out_is_a_square_about_its_middle() -> None:
    images = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)

    changed = ours(images, "cutout", 5.0)

    wanted = torch.zeros_like(images)
    wanted[:, :, 5:15, 12:22] = 128
    assert torch.equal(changed, wanted)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_identity_changes_nothing(channels: int, interpolation: str) -> None:
    images = pictures(channels)
    draws = Operations(torch.zeros(5, 3).long(), torch.rand(5, 3), torch.rand(5, 3, 2))

    changed = operated(images, draws, 128, interpolation)  # type: ignore[arg-type]

    assert torch.equal(changed, images)


def test_each_image_gets_its_own_operation() -> None:
    image = pictures()[:1]
    names = [name for name in OPERATIONS if name != "cutout"]
    draws = Operations(
        torch.tensor([[OPERATIONS.index(name)] for name in names]),
        torch.full((len(names), 1), 0.2),
        torch.full((len(names), 1, 2), 0.5),
    )

    together = operated(image.expand(len(names), -1, -1, -1), draws, 128, "bilinear")

    for name, changed in zip(names, together, strict=True):
        assert torch.equal(changed, ours(image, name, 0.2)[0]), name


def test_images_smaller_than_the_kernel_stay_as_they_are_under_sharpness() -> None:
    images = torch.randint(256, (2, 3, 2, 5), dtype=torch.uint8)

    assert torch.equal(ours(images, "sharpness", math.e), images)
