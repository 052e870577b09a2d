"""Colours: each change is Pillow's or the standard library's, drawn as often as it is asked for."""

import colorsys
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vitrail.data.colour import (
    Effects,
    affected,
    draw_effects,
    draw_jitter,
    draw_one_of_three,
    jittered,
)
from vitrail.data.config import Augment

N = 20_000


def pictures(count: int = 4) -> Tensor:
    return torch.randint(256, (count, 3, 11, 14), dtype=torch.uint8)


def planes(images: Tensor) -> list[Tensor]:
    return list(images.float().unbind(dim=1))


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def near(count: int, chance: float) -> bool:
    """Say whether a count of N is within five standard deviations of what is to be expected."""
    return abs(count - N * chance) < 5 * (N * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize(
    ("leaf", "peer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_one_factor_alone_is_pillow_s_enhancement(leaf: str, peer: type) -> None:
    images = pictures()
    how = Augment(**{leaf: 0.8})  # type: ignore[arg-type]
    draws = draw_jitter(0, 0, np.arange(4), how)

    changed = torch.stack(jittered(planes(images), draws, how), dim=1)

    for image, mine, factor in zip(images, changed, draws.weights[:, 0].tolist(), strict=True):
        assert 0.2 < factor < 1.8
        # Pillow cuts off to whole numbers, and so does its grey; ours stays as it is.
        off = (mine - tensor(peer(pillow(image)).enhance(factor)).float()).abs()
        assert off.max() < 2


def test_the_three_come_in_an_order_of_the_sample_s_own() -> None:
    images = torch.randint(100, 156, (60, 3, 11, 14), dtype=torch.uint8)  # nothing is cut off
    how = Augment(brightness=0.3, contrast=0.3, saturation=0.3)
    keys = np.arange(60)
    draws = draw_jitter(0, 0, keys, how)

    changed = torch.stack(jittered(planes(images), draws, how), dim=1)

    alone = [Augment(**{leaf: 0.3}) for leaf in ("brightness", "contrast", "saturation")]  # type: ignore
    factors = [draw_jitter(0, 0, keys, one).weights[:, 0].tolist() for one in alone]
    seen = set()
    for image, mine, *by in zip(images, changed, *factors, strict=True):
        fitting = {
            order
            for order in permutations(range(3))  # the mean grey is of whole numbers: up to 0.1
            if (in_turns(image.float(), by, order) - mine).abs().max() < 0.1
        }
        assert fitting
        seen |= fitting
    assert len(seen) == 6


def in_turns(image: Tensor, factors: list[float], order: tuple[int, ...]) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for kind in order:
        grey = (image * weights).sum(dim=0, keepdim=True)
        base = (torch.zeros(1), grey.mean(), grey)[kind]
        image = base + factors[kind] * (image - base)
    return image


def test_factors_are_even_between_one_less_and_one_more_than_the_most() -> None:
    draws = draw_jitter(1, 2, np.arange(N), Augment(contrast=0.4, hue=0.2))

    for values, most in ((draws.weights[:, 0] - 1, 0.4), (draws.hue, 0.2)):
        assert values.abs().max() <= most + 1e-6 and values.abs().max() > 0.99 * most
        # Ten bins, each within five standard deviations of a tenth.
        counts = np.histogram(values.numpy(), 10, (-most, most))[0]
        assert all(near(int(count), 0.1) for count in counts)


def test_hue_turns_as_in_the_standard_library_s_hsv() -> None:
    images = pictures()
    images[0, :, 0, :7] = 50  # grey has no hue
    how = Augment(hue=0.5)
    draws = draw_jitter(0, 0, np.arange(4), how)

    changed = torch.stack(jittered(planes(images), draws, how), dim=1)

    for image, mine, turn in zip(images, changed, draws.hue.tolist(), strict=True):
        for pixel, got in zip(image.flatten(1).T.tolist(), mine.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in pixel))
            wanted = [255 * value for value in colorsys.hsv_to_rgb((h + turn) % 1, s, v)]
            assert got == pytest.approx(wanted, abs=0.01)


def effects(count: int, **of: float) -> Effects:
    return Effects(
        torch.full((count,), bool(of.get("grey"))),
        torch.full((count,), bool(of.get("solarize"))),
        torch.full((count,), float(of.get("blur", 0))),
    )


def test_grey_and_solarize_are_pillow_s() -> None:
    images = pictures()

    grey = torch.stack(affected(planes(images), effects(4, grey=1), blur=False), dim=1)
    solar = torch.stack(affected(planes(images), effects(4, solarize=1), blur=False), dim=1)

    for image, mine, inverted in zip(images, grey, solar, strict=True):
        whole = tensor(pillow(image).convert("L").convert("RGB")).float()
        assert (mine - whole).abs().max() <= 0.51  # Pillow's is rounded
        assert torch.equal(inverted, tensor(ImageOps.solarize(pillow(image), 128)).float())


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_a_blur_is_a_gaussian(sigma: float) -> None:
    images = torch.randint(256, (2, 3, 40, 30), dtype=torch.uint8)

    blurred = torch.stack(affected(planes(images), effects(2, blur=sigma), blur=True), dim=1)

    wanted = gaussian_filter(images.double().numpy(), sigma, axes=(2, 3), mode="nearest", radius=6)
    assert np.abs(blurred.numpy() - wanted).max() < 0.01


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_a_blur_is_close_to_pillow_s(sigma: float) -> None:
    waves = 127 * torch.sin(torch.arange(40) / 4) * torch.cos(torch.arange(40)[:, None] / 5)
    images = (128 + waves).to(torch.uint8).expand(2, 3, -1, -1)

    blurred = torch.stack(affected(planes(images), effects(2, blur=sigma), blur=True), dim=1)

    theirs = tensor(pillow(images[0]).filter(ImageFilter.GaussianBlur(sigma))).float()
    # Pillow's is three passes of a box, which is near to a Gaussian, and rounded after each; what
    # it makes of the edges differs. 3 is 1.2 % of the range.
    inner = slice(6, -6)
    assert float((blurred[0] - theirs).abs()[:, inner, inner].max()) < 3


def test_effects_leave_the_images_that_did_not_draw_them_as_they_are() -> None:
    images = pictures(50)
    how = Augment(grey=0.2, solarize=0.3, blur=0.4)
    draws = draw_effects(0, 0, np.arange(50), how)

    changed = torch.stack(affected(planes(images), draws, blur=True), dim=1)

    drawn = draws.grey | draws.solarize | (draws.blur > 0)
    same = (changed == images).flatten(1).all(dim=1)
    assert torch.equal(same, ~drawn) and 5 < int(drawn.sum()) < 45


def test_effects_have_the_shares_that_are_asked_for() -> None:
    draws = draw_effects(0, 0, np.arange(N), Augment(grey=0.2, solarize=0.3, blur=0.5))
    blurred = draws.blur[draws.blur > 0]

    assert near(int(draws.grey.sum()), 0.2) and near(int(draws.solarize.sum()), 0.3)
    assert near(len(blurred), 0.5)
    assert near(int((draws.grey & draws.solarize & (draws.blur > 0)).sum()), 0.2 * 0.3 * 0.5)
    assert blurred.min() >= 0.1 and blurred.max() <= 2
    assert abs(float(blurred.mean()) - 1.05) < 5 * 1.9 / (12 * len(blurred)) ** 0.5


def test_three_augment_draws_one_of_three_with_the_same_chance() -> None:
    draws = draw_one_of_three(0, 0, np.arange(N))
    each = torch.stack([draws.grey, draws.solarize, draws.blur > 0])

    assert bool((each.sum(dim=0) == 1).all())
    assert all(near(int(count), 1 / 3) for count in each.sum(dim=1))
