import math

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor

from conftest import TINY, randomize
from vitrail.model import positions
from vitrail.model.config import PositionResize
from vitrail.model.vit import MultiHeadAttention, ViT

CPU = torch.device("cpu")
RULES = {
    "timm, open_clip, DINOv2 with registers": PositionResize(),
    "DeiT, MAE, Hugging Face": PositionResize(antialias=False),
    "DINO, DINOv2": PositionResize(antialias=False, offset=0.1),
    "torchvision": PositionResize(antialias=False, align_corners=True),
    "the first JAX ViT": PositionResize(mode="bilinear", antialias=False, align_corners=True),
    "NaFlex": PositionResize(mode="bilinear"),
    "bilinear": PositionResize(mode="bilinear", antialias=False),
}


def kernel(distance: float, rule: PositionResize) -> float:
    """Give the weight of a sample at `distance`: a triangle, or Keys' cubic."""
    t = abs(distance)
    if rule.mode == "bilinear":
        return max(1 - t, 0.0)
    a = -0.5 if rule.antialias else -0.75  # as Pillow and as OpenCV
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resampling(source: int, target: int, rule: PositionResize) -> Tensor:
    """Give the matrix, target x source, that reads one axis at another size."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    scale = (target + rule.offset) / source
    for i in range(target):
        centre = (i + 0.5) / scale - 0.5
        if rule.align_corners:
            centre = i * (source - 1) / (target - 1)
        if rule.antialias:  # the kernel widens as the table shrinks, and ends at the border
            stretch = max(1 / scale, 1.0)
            for j in range(source):
                matrix[i, j] = kernel((centre - j) / stretch, rule)
        else:  # the border is repeated
            for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
                matrix[i, min(max(j, 0), source - 1)] += kernel(centre - j, rule)
    return matrix / matrix.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("target", [(8, 3), (10, 14), (2, 9)], ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_a_table_is_resized_by_its_rule(rule: PositionResize, target: tuple[int, int]) -> None:
    table = torch.randn(1, 5 * 7, 24, dtype=torch.float64)
    rows, columns = resampling(5, target[0], rule), resampling(7, target[1], rule)

    resized = positions.resize(table, (5, 7), target, rule)

    image = rearrange(table, "1 (h w) d -> h w d", h=5)
    by_hand = torch.einsum("yh,xw,hwd->yxd", rows, columns, image)
    # torch computes where a cubic sample lies in float32.
    torch.testing.assert_close(resized, by_hand.reshape(1, -1, 24), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_a_table_read_at_its_own_grid_is_itself(rule: PositionResize) -> None:
    table = torch.randn(1, 5 * 7, 24)

    assert torch.equal(positions.resize(table, (5, 7), (5, 7), rule), table)


def test_a_table_in_low_precision_is_resized_in_float32() -> None:
    table = torch.randn(1, 5 * 7, 24).bfloat16()

    resized = positions.resize(table, (5, 7), (8, 3), PositionResize())

    exact = positions.resize(table.float(), (5, 7), (8, 3), PositionResize())
    assert torch.equal(resized, exact.bfloat16())


def test_the_model_resizes_patches_and_leaves_the_prefix(images: Tensor) -> None:
    rule = PositionResize(antialias=False, offset=0.1)
    model = randomize(ViT(TINY.replace(position_resize=rule)))
    assert model.pos_embed is not None and model.cls_token is not None

    x, _, grid = model.embed(images[:, :, :24, :48])

    table = positions.resize(model.pos_embed[:, 1:], (5, 7), (3, 6), rule)
    assert grid == (3, 6)
    torch.testing.assert_close(x[:, 1:], model.patch_embed(images[:, :, :24, :48]) + table)
    torch.testing.assert_close(
        x[:, :1], (model.cls_token + model.pos_embed[:, :1]).expand(2, 1, -1)
    )


def test_sincos_is_sine_and_cosine_of_x_then_of_y() -> None:
    table = positions.sincos((5, 7), 24, CPU)

    by_hand = torch.empty(5, 7, 24)
    for y in range(5):
        for x in range(7):
            for f in range(6):
                frequency = 10_000 ** (-f / 5)
                waves = (math.sin, x), (math.cos, x), (math.sin, y), (math.cos, y)
                for quarter, (wave, place) in enumerate(waves):
                    by_hand[y, x, 6 * quarter + f] = wave(place * frequency)
    torch.testing.assert_close(table, rearrange(by_hand, "h w d -> 1 (h w) d"))


def test_sincos_is_added_to_the_patches_alone(images: Tensor) -> None:
    model = randomize(ViT(TINY.replace(positions="sincos")))
    assert model.pos_embed is None and model.cls_token is not None

    x, rotation, _ = model.embed(images)

    assert rotation is None
    assert torch.equal(x[:, :1], model.cls_token.expand(2, 1, 24))
    torch.testing.assert_close(
        x[:, 1:], model.patch_embed(images) + positions.sincos((5, 7), 24, CPU)
    )


def test_without_positions_the_order_of_patches_is_nothing(images: Tensor) -> None:
    model = randomize(ViT(TINY.replace(positions="none")))
    placed = randomize(ViT(TINY))
    rolled = images.roll((8, 16), dims=(2, 3))  # by whole patches

    torch.testing.assert_close(model(rolled), model(images))
    assert not torch.allclose(placed(rolled), placed(images), atol=1e-2)


def test_rope_turns_pairs_by_angles_of_y_and_x() -> None:
    rotation = positions.rope((5, 7), 8, 100.0, CPU)

    unit = torch.zeros(8)
    for y in range(5):
        for x in range(7):
            places = (2 * (y + 0.5) / 5 - 1, 2 * (x + 0.5) / 7 - 1)
            angles = [2 * math.pi * place / 100 ** (f / 2) for place in places for f in range(2)]
            for pair, angle in enumerate(angles):  # unit i turns with unit i + d / 2
                unit.zero_()[pair] = 1.0
                turned = positions.rotate(unit.expand(1, 1, 35, 8), rotation)[0, 0, 7 * y + x]
                expected = torch.zeros(8)
                expected[pair], expected[pair + 4] = math.cos(angle), math.sin(angle)
                torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_leaves_the_prefix_as_it_is(dtype: torch.dtype) -> None:
    q = torch.randn(2, 3, 4 + 35, 8, dtype=dtype)

    turned = positions.rotate(q, positions.rope((5, 7), 8, 100.0, CPU))

    assert turned.dtype == dtype
    assert torch.equal(turned[:, :, :4], q[:, :, :4])
    assert not torch.equal(turned[:, :, 4:], q[:, :, 4:])


def test_rope_keeps_lengths() -> None:
    q = torch.randn(2, 3, 35, 8)

    turned = positions.rotate(q, positions.rope((5, 7), 8, 100.0, CPU))

    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))


def test_scores_under_rope_depend_on_the_way_between_two_patches_alone() -> None:
    # Within one grid a step of one patch is the same angle everywhere: give all patches one q and
    # one k, and what is left in their scores is where they stand.
    rotation = positions.rope((5, 7), 8, 100.0, CPU)
    q, k = (repeat(torch.randn(8), "d -> 1 1 35 d") for _ in range(2))

    scores = positions.rotate(q, rotation) @ positions.rotate(k, rotation).mT
    scores = rearrange(scores, "1 1 (y x) (v u) -> y x v u", y=5, v=5)

    for dy, dx in ((0, 0), (1, 0), (0, 1), (2, -3), (-4, 5)):
        same = [
            scores[y, x, y + dy, x + dx]
            for y in range(max(0, -dy), min(5, 5 - dy))
            for x in range(max(0, -dx), min(7, 7 - dx))
        ]
        torch.testing.assert_close(torch.stack(same), same[0].expand(len(same)))
    assert not torch.allclose(scores[2, 2, 2, 3], scores[2, 3, 2, 2])  # and on its direction


def test_rope_places_patches_relative_to_the_image() -> None:
    coarse = positions.rope((2, 3), 8, 100.0, CPU)
    fine = rearrange(positions.rope((6, 9), 8, 100.0, CPU), "two (h w) d -> two h w d", h=6)

    # The centre of every third patch from the second on is the centre of a patch three times as
    # large.
    torch.testing.assert_close(fine[:, 1::3, 1::3].flatten(1, 2), coarse)


def test_attention_turns_queries_and_keys_but_not_values() -> None:
    attention = randomize(MultiHeadAttention(TINY.replace(heads=3)))
    rotation = positions.rope((5, 7), 8, 100.0, CPU)
    x = torch.randn(2, 1 + 35, 24)

    q, k, v = attention.split(x)
    turned = attention.split(x, rotation)

    expected = positions.rotate(q, rotation), positions.rotate(k, rotation), v
    for one, other in zip(turned, expected, strict=True):
        assert torch.equal(one, other)
