"""Random erasing: boxes of the paper's size, and noise that is the same everywhere."""

import numpy as np
import torch

from vitrail.data.erasing import Erasing, draw_erasing, erased, noise

N = 20_000
SIZE = (40, 60)


def boxes(share: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Give top, left, height and width of each image's box."""
    box = draw_erasing(0, 0, np.arange(N), share, size).box.numpy()
    return np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], axis=1)


def test_a_share_of_the_images_has_a_box_of_the_asked_area_and_aspect() -> None:
    found = boxes(0.25)
    found = found[found[:, 2] > 0]
    top, left, tall, wide = found.T

    assert abs(len(found) - N * 0.25) < 5 * (N * 0.25 * 0.75) ** 0.5
    # Sides are rounded: half a pixel of 5 or more.
    area, aspect = tall * wide / (SIZE[0] * SIZE[1]), tall / wide
    assert 0.015 < area.min() < 0.025 and 0.3 < area.max() < 0.36
    assert 0.26 < aspect.min() < 0.34 and 2.9 < aspect.max() < 3.8
    assert top.min() == 0 and (top + tall).max() == SIZE[0]
    assert left.min() == 0 and (left + wide).max() == SIZE[1]


def test_boxes_are_like_timm_s() -> None:
    theirs = np.array([timm_box(np.random.default_rng(i)) for i in range(5000)])
    ours = boxes(1.0)

    # Standard error of timm's mean height: 0.13 pixels; five of them.
    assert np.abs(theirs.mean(axis=0) - ours.mean(axis=0)).max() < 0.7


def timm_box(draws: np.random.Generator) -> tuple[int, int, int, int]:
    """Give a box by the rule of timm's documentation, written out."""
    for _ in range(10):
        area = draws.uniform(0.02, 1 / 3) * SIZE[0] * SIZE[1]
        aspect = np.exp(draws.uniform(np.log(0.3), -np.log(0.3)))
        tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if tall < SIZE[0] and wide < SIZE[1]:
            break
    else:
        return 0, 0, 0, 0
    top, left = draws.integers(0, SIZE[0] - tall + 1), draws.integers(0, SIZE[1] - wide + 1)
    return int(top), int(left), tall, wide


def test_only_the_box_is_filled() -> None:
    images = torch.zeros(1, 3, *SIZE)
    draws = Erasing(torch.tensor([[3, 5, 10, 25]]), torch.tensor([7]))

    changed = erased(images, draws)

    outside = changed.clone()
    outside[:, :, 3:10, 5:25] = 0
    assert torch.equal(outside, images)
    assert (changed[:, :, 3:10, 5:25] != 0).all()


def test_an_image_too_small_for_any_box_stays_whole() -> None:
    images = torch.randint(256, (50, 3, 1, 1)).float()

    assert torch.equal(erased(images, draw_erasing(0, 0, np.arange(50), 1.0, (1, 1))), images)


def test_noise_is_normal_and_its_pixels_have_nothing_in_common() -> None:
    keys = draw_erasing(0, 0, np.arange(8), 1.0, SIZE).noise
    found = noise(keys, torch.Size((8, 3, 64, 64))).double()

    values = found.flatten().sort().values
    normal = torch.special.ndtr(values)
    steps = torch.arange(1, len(values) + 1) / len(values)
    # 0.008 of its shape, and five standard errors of a share of 98,304 values.
    assert float((normal - steps).abs().max()) < 0.008 + 5 * 0.5 / len(values) ** 0.5
    assert abs(float(values.mean())) < 5 / len(values) ** 0.5
    assert abs(float(values.var()) - 1) < 0.02
    flat = found.flatten(1)
    for other in (found.roll(1, 3), found.roll(1, 2), found.roll(1, 1), found.roll(1, 0)):
        assert abs(float((flat * other.flatten(1)).mean())) < 5 / len(values) ** 0.5


def test_noise_is_the_key_s_and_the_pixel_s_alone() -> None:
    keys = torch.tensor([5, 2**32 - 1, 0])
    shape = torch.Size((3, 3, 4, 5))

    assert torch.equal(noise(keys, shape)[1:2], noise(keys[1:2], torch.Size((1, 3, 4, 5))))
    # The first numbers of a key for ever: another device or version must give them too.
    first = (noise(keys, shape)[0, 0, 0] * ((256**2 - 1) / 3) ** 0.5).round().int().tolist()
    assert first == [140, 119, 171, 47, -40]
