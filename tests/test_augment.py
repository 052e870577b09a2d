from shutil import which

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrail.data.augment import Draws, augment
from vitrail.data.augment import draw as draw_all
from vitrail.data.config import Augment
from vitrail.data.draws import order, uniform
from vitrail.data.elastic import Pull
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError
from vitrail.training.learner import model_input

ROTATE, SCALE, SHEAR, RIGHT, DOWN, FLIP, LIGHT = range(7)  # the columns of a draw


# Everything that can be on together.
ALL = Augment(
    rotate=20.0,
    scale=0.2,
    shear=0.1,
    shift=0.1,
    elastic=0.05,
    flip=True,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grey=0.2,
    solarize=0.2,
    blur=0.5,
    policy="randaugment",
    variant="big_vision",
    magnitude_std=0.5,
    erase=0.5,
    mixup=0.8,
    cutmix=1.0,
    mix_block=2,
)


def draw(
    seed: int,
    epoch: int,
    keys: np.ndarray,
    how: Augment = Augment(),
    size: tuple[int, int] = (10, 14),
) -> Draws:
    """Draw for samples that stand in blocks of two by their keys."""
    return draw_all(seed, epoch, keys, keys // 2, how, size)


def drawn(**columns: float) -> Draws:
    """Give the draws of one image: 0.5 changes nothing, 0 and 1 are the most, either way."""
    numbers = torch.full((1, 7), 0.5)
    for name, value in columns.items():
        numbers[0, globals()[name]] = value
    return Draws(numbers)


def dots(*places: tuple[int, int], size: tuple[int, int] = (8, 8)) -> Tensor:
    """Give one black image, 1 1 H W, with white pixels at (row, column)."""
    image = torch.zeros(1, 1, *size, dtype=torch.uint8)
    for row, column in places:
        image[0, 0, row, column] = 255
    return image


def white(image: Tensor) -> set[tuple[int, int]]:
    return {(row, column) for row, column in (image[0, 0] > 127).nonzero().tolist()}


def test_draws_are_even_between_0_and_1() -> None:
    numbers = uniform(0, 0, np.arange(20_000), 7)

    assert numbers.shape == (20_000, 7)
    assert numbers.min() >= 0 and numbers.max() < 1
    # Standard errors: 0.002 of a mean, 0.007 of a correlation; all within 5 of them.
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(numbers.T) - np.eye(7)).max() < 0.035
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] / 14_000 - 1).max() < 0.05


def test_draws_of_neighbours_have_nothing_in_common() -> None:
    here = uniform(3, 4, np.arange(20_000), 1)[:, 0]

    for seed, epoch, index in ((4, 4, 0), (3, 5, 0), (4, 3, 0), (3, 4, 1)):
        there = uniform(seed, epoch, np.arange(20_000) + index, 1)[:, 0]
        assert abs(np.corrcoef(here, there)[0, 1]) < 0.035


def test_a_draw_is_the_sample_s_own_whatever_batch_it_is_in() -> None:
    batch = draw(1, 2, np.array([9, 5, 1])).moves

    assert torch.equal(draw(1, 2, np.array([5, 9])).moves, batch[[1, 0]])
    assert not torch.equal(draw(1, 3, np.array([9, 5, 1])).moves, batch)
    assert not torch.equal(draw(2, 2, np.array([9, 5, 1])).moves, batch)


@pytest.mark.parametrize("length", [1, 2, 97])
def test_an_order_visits_every_place_once(length: int) -> None:
    assert sorted(order(0, 0, length).tolist()) == list(range(length))


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    assert np.array_equal(order(3, 4, 50), order(3, 4, 50))
    assert len({tuple(order(s, e, 50)) for s in range(3) for e in range(3)}) == 9


def test_an_order_is_fair() -> None:
    firsts = np.bincount([order(0, epoch, 10)[0] for epoch in range(2000)], minlength=10)

    assert np.abs(firsts - 200).max() < 5 * 200**0.5


@pytest.mark.parametrize("seed", [-1, 0, 2**31, 2**63, 2**64])
def test_any_seed_draws(seed: int) -> None:
    assert draw(seed, 0, np.arange(3), ALL).moves.shape == (3, 7)


def test_settings_of_zero_change_nothing() -> None:
    images = torch.randint(256, (5, 3, 8, 6), dtype=torch.uint8)

    changed = augment(images, draw(0, 0, np.arange(5)), Augment())

    assert changed.dtype == torch.float32
    assert torch.equal(changed, images.float())


@pytest.mark.parametrize(("number", "flipped"), [(0.0, True), (0.49, True), (0.5, False)])
def test_a_flip_swaps_left_and_right(number: float, flipped: bool) -> None:
    images = torch.randint(256, (1, 3, 5, 8), dtype=torch.uint8)

    changed = augment(images, drawn(FLIP=number), Augment(flip=True))

    torch.testing.assert_close(
        changed, (images.flip(3) if flipped else images).float(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("draws", "wanted"),
    [
        ({"RIGHT": 1.0}, (3, 2)),  # what stands two pixels to the right is read
        ({"RIGHT": 0.0}, (3, 6)),
        ({"DOWN": 1.0}, (1, 4)),
        ({"DOWN": 0.0}, (5, 4)),
        ({"RIGHT": 0.75, "DOWN": 0.25}, (4, 3)),
    ],
)
def test_a_shift_is_a_share_of_the_side(draws: dict[str, float], wanted: tuple[int, int]) -> None:
    moved = augment(dots((3, 4)), drawn(**draws), Augment(shift=0.25))

    assert white(moved) == {wanted}


def test_a_rotation_turns_by_its_degrees() -> None:
    images = torch.randint(256, (1, 1, 7, 7), dtype=torch.uint8)

    for number, turns in ((1.0, 1), (0.0, -1), (0.5, 0)):
        turned = augment(images, drawn(ROTATE=number), Augment(rotate=90.0))
        wanted = torch.rot90(images.float(), turns, (2, 3))
        torch.testing.assert_close(turned, wanted, atol=0.01, rtol=0)


def test_a_rotation_keeps_lengths_on_an_oblong_image() -> None:
    bar = dots(*((row, column) for row in (9, 10) for column in range(15, 25)), size=(20, 40))

    turned = augment(bar, drawn(ROTATE=1.0), Augment(rotate=90.0))

    assert white(turned) == {(row, column) for row in range(5, 15) for column in (19, 20)}


def test_a_scale_is_about_the_middle() -> None:
    square = dots(*((row, column) for row in range(2, 6) for column in range(2, 6)))

    larger = augment(square, drawn(SCALE=0.0), Augment(scale=1.0))
    smaller = augment(square, drawn(SCALE=1.0), Augment(scale=1.0))

    assert len(white(larger)) == 64
    assert white(smaller) == {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_brightness_is_changed_by_a_share_and_stays_in_range() -> None:
    images = torch.tensor([100, 200], dtype=torch.uint8).view(1, 1, 1, 2)

    assert augment(images, drawn(LIGHT=1.0), Augment(brightness=0.5)).flatten().tolist() == [
        150,
        255,
    ]
    assert augment(images, drawn(LIGHT=0.0), Augment(brightness=0.5)).flatten().tolist() == [
        50,
        100,
    ]


def test_brightness_is_changed_after_the_policy_with_other_colours_and_without() -> None:
    images = torch.full((64, 3, 4, 4), 200, dtype=torch.uint8)
    how = Augment(policy="3-augment", brightness=0.5)
    draws = draw(0, 0, np.arange(64), how, (4, 4))
    assert draws.one_of_three is not None
    solarized = draws.one_of_three.solarize

    changed = augment(images, draws, how)

    light = 1 + 0.5 * (2 * draws.moves[:, LIGHT] - 1)
    wanted = torch.where(solarized, 55.0, 200.0) * light
    torch.testing.assert_close(changed.mean(dim=(1, 2, 3)), wanted.clamp(max=255))
    assert 0 < solarized.sum() < 64


def test_the_border_or_its_mirror_comes_in_where_it_is_asked_for() -> None:
    row = torch.arange(10, 90, 10, dtype=torch.uint8).expand(1, 1, 8, 8)
    fills = {"zeros": [0, 0], "border": [80, 80], "reflection": [80, 70]}

    for fill, wanted in fills.items():
        how = Augment(shift=0.25, fill=fill)  # type: ignore[arg-type]
        moved = augment(row, drawn(RIGHT=1.0), how)
        assert moved[0, 0, 0].round().tolist() == [30, 40, 50, 60, 70, 80, *wanted]


def test_rubber_is_pulled_by_as_much_as_its_points_and_smoothly_between_them() -> None:
    column, row = torch.arange(16.0).expand(16, 16), torch.arange(16.0)[:, None].expand(16, 16)
    places = torch.stack([column, row])[:, None].mul(10).to(torch.uint8)  # as images of one plane
    how = Augment(elastic=0.25, fill="border")
    points = torch.zeros(2, 2, 5, 5)
    points[:, 0, 2, 2] = 1.0  # the middle reads a quarter of the side, 4 pixels, further right
    draws = Draws(torch.full((2, 7), 0.5), pull=Pull(points))

    read = augment(places, draws, how)[:, 0] / 10

    # The lattice stands on the outermost pixels: 15 / 4 apart, and straight lines between them.
    hat = (1 - (torch.arange(16.0) - 7.5).abs() / 3.75).clamp(min=0)
    torch.testing.assert_close(read[0], column + 4 * hat[:, None] * hat, atol=1e-4, rtol=0)
    torch.testing.assert_close(read[1], row, atol=1e-4, rtol=0)


def test_rubber_is_drawn_for_each_image_and_never_pulled_too_far() -> None:
    ramp = torch.arange(20.0).mul(10).expand(64, 1, 20, 20).to(torch.uint8)
    how = Augment(elastic=0.1, fill="border")

    moved = (augment(ramp, draw(0, 0, np.arange(64), how), how) - ramp)[..., 4:-4] / 10

    assert moved.abs().max() <= 2.001  # a tenth of 20 pixels
    assert moved.flatten(1).std(dim=1).min() > 0.2  # each image is bent
    assert moved.mean().abs() < 0.1 and moved.abs().amax(dim=(1, 2, 3)).std() > 0.05


@pytest.mark.parametrize(
    "how",
    [
        Augment(rotate=20.0, scale=0.2, shear=0.1, shift=0.1, flip=True, brightness=0.3),
        Augment(elastic=0.1),
        Augment(flip=True, contrast=0.4, saturation=0.4),
        Augment(policy="3-augment", brightness=0.3, contrast=0.3, saturation=0.3),
        Augment(policy="trivialaugment"),
        Augment(policy="randaugment", variant="torchvision", operations=3),
        ALL,
    ],
    ids=["affine", "elastic", "jitter", "3-augment", "trivialaugment", "torchvision", "all"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_draw_gives_the_same_pixels_in_any_batch(how: Augment, channels: int) -> None:
    images = torch.randint(256, (12, channels, 10, 14), dtype=torch.uint8)
    keys = np.arange(12)
    others = np.array([7, 2, 11])

    together = augment(images, draw(0, 1, keys, how), how)
    alone = torch.cat([augment(images[[i]], draw(0, 1, keys[[i]], how), how) for i in range(12)])
    elsewhere = augment(images[torch.from_numpy(others)], draw(0, 1, others, how), how)

    assert torch.equal(together, alone)
    assert torch.equal(together[torch.from_numpy(others)], elsewhere)
    assert together.dtype == torch.float32
    if not how.erase:  # whose noise goes beyond, as in timm
        assert together.min() >= 0 and together.max() <= 255


def test_a_mirror_alone_moves_whole_pixels() -> None:
    images = torch.randint(256, (40, 3, 5, 8), dtype=torch.uint8)
    draws = draw(0, 0, np.arange(40))

    changed = augment(images, draws, Augment(flip=True))

    flipped = draws.moves[:, 5] < 0.5
    assert 8 < int(flipped.sum()) < 32
    assert torch.equal(changed[flipped], images[flipped].flip(3).float())
    assert torch.equal(changed[~flipped], images[~flipped].float())


def test_with_one_channel_saturation_hue_and_grey_change_nothing() -> None:
    images = torch.randint(256, (8, 1, 5, 7), dtype=torch.uint8)
    how = Augment(saturation=1.0, hue=0.5, grey=1.0)

    changed = augment(images, draw(0, 0, np.arange(8), how), how)

    # f x + (1 - f) x in single precision
    torch.testing.assert_close(changed, images.float(), atol=1e-4, rtol=0)


@pytest.mark.slow  # a minute of compiling
@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's compiler, about torch's own code
def test_compiled_it_has_no_breaks_and_gives_what_eager_gives() -> None:
    if which("g++") is None and which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is none here")
    images = torch.randint(256, (6, 3, 12, 20), dtype=torch.uint8)
    preprocess = Preprocess(size=(12, 20))
    compiled = torch.compile(model_input, fullgraph=True)
    torch.compiler.reset()

    for epoch in range(3):
        draws = draw(0, epoch, np.arange(6), ALL, (12, 20))
        with torch.compiler.set_stance("default" if epoch == 0 else "fail_on_recompile"):
            ours = compiled(images, draws, ALL, preprocess)
        off = (ours - model_input(images, draws, ALL, preprocess)).abs()
        # Arithmetic in another order: the last bits of a pixel, and, where it is cut off to a
        # whole number between two operations, now and then a step of 1/255, which the operations
        # after it may double (contrast) or spread (equalize).
        assert float(off.mean()) < 1e-3
        assert float((off > 0.02).float().mean()) < 0.005


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        *(
            {"rotate": 200.0},
            {"elastic": 0.6},
            {"shift": -0.1},
            {"brightness": 2.0},
            {"fill": "mirror"},
        ),
        *({"contrast": 1.1}, {"saturation": -1.0}, {"hue": 0.6}, {"grey": 2.0}, {"solarize": -1.0}),
        *({"blur": 1.5}, {"policy": "autoaugment"}, {"variant": "keras"}, {"operations": 0}),
        *({"magnitude": 10.5}, {"magnitude": 31.0, "variant": "torchvision"}, {"magnitude": -1.0}),
        *({"magnitude_std": -0.5}, {"erase": 1.1}, {"mixup": -0.1}, {"cutmix": float("inf")}),
        *({"mix_share": 1.1}, {"cutmix_share": -0.1}, {"mix_block": 0}, {"repeats": 0}),
        *({"mix_block": 1, "mixup": 0.8}, {"mix_block": 2.0}),
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Augment(**wrong)  # type: ignore[arg-type]


def test_a_photo_that_is_mirrored_in_its_crop_is_not_mirrored_again() -> None:
    images = torch.randint(0, 256, (8, 3, 5, 7), dtype=torch.uint8)

    unchanged = augment(images, draw(0, 0, np.arange(8)), Augment(crop_scale=0.08, flip=True))

    assert torch.equal(unchanged, images.float())
