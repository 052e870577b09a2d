"""Policies that draw operations for each image, as tables: RandAugment's three and TrivialAugment.

A row says what an operation's amount is at magnitude 0 and at the space's top, and what is between
is on the line through both. The amounts mean the same in all tables: a blend's is its factor less
1, a rotation's degrees, a shear's a tangent, a shift's pixels, solarize's the threshold,
posterize's the bits that stay.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.config import Augment
from vitrail.data.draws import uniform

_FIRST, _EACH = 100, 7  # in a sample's row of numbers; for each operation

OPERATIONS = (
    *("identity", "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
    *("brightness", "contrast", "saturation", "sharpness", "rotate"),
    *("shear_x", "shear_y", "shift_x", "shift_y", "cutout"),
)


class Row(NamedTuple):
    """An operation and its amount."""

    name: str
    low: float = 0.0  # at magnitude 0
    high: float = 0.0  # at the top
    signed: bool = False  # either way, at random
    # How the way from `low` becomes whole: cut off or rounded.
    whole: Literal["no", "cut", "round"] = "no"
    of: Literal["pixels", "width", "height"] = "pixels"  # what a shift's amount is a share of


class Space(NamedTuple):
    """Operations that are drawn with equal chance."""

    rows: tuple[Row, ...]
    top: float  # the magnitude of a row's `high`
    most: float  # the largest magnitude that a spread may lead to
    chance: float = 1.0  # that an operation drawn is applied
    fill: int = 0  # the grey that comes in from outside
    any_magnitude: bool = False  # a whole number from 0 to the top, anew for each image


_FREE = (Row("autocontrast"), Row("equalize"))
_BLENDS = ("saturation", "contrast", "brightness", "sharpness")
_SHEARS, _SHIFTS = ("shear_x", "shear_y"), ("shift_x", "shift_y")
_SIDES: tuple[Literal["width", "height"], ...] = ("width", "height")

# timm's "rand-mM-mstdS-inc1": what grows with the magnitude is the change.
_TIMM = Space(
    (
        *(*_FREE, Row("invert"), Row("rotate", 0, 30, True)),
        *(Row("posterize", 4, 0, whole="cut"), Row("solarize", 256, 0, whole="cut")),
        Row("solarize_add", 0, 110, whole="cut"),
        *(Row(name, 0, 0.9, True) for name in _BLENDS),
        *(Row(name, 0, 0.3, True) for name in _SHEARS),
        *(Row(n, 0, 0.45, True, of=side) for n, side in zip(_SHIFTS, _SIDES, strict=True)),
    ),
    top=10,
    most=10,
    chance=0.5,
    fill=128,
)
_TORCHVISION = Space(
    (
        *(Row("identity"), *_FREE, Row("rotate", 0, 30, True)),
        *(Row("posterize", 8, 4, whole="round"), Row("solarize", 255, 0)),
        *(Row(name, 0, 0.9, True) for name in _BLENDS),
        *(Row(name, 0, 0.3, True) for name in _SHEARS),
        *(Row(n, 0, 150 / 331, True, of=side) for n, side in zip(_SHIFTS, _SIDES, strict=True)),
    ),
    top=30,
    most=30,
)
# google-research/big_vision, pp/autoaugment.py, whose pixels are those of 224 x 224. Posterize and
# solarize get weaker as the magnitude grows, and blends go from 0.1 to 1.9. One thing differs:
# contrast is around the image's mean grey, where theirs is around H W / 256, an oversight.
_BIG_VISION = Space(
    (
        *(*_FREE, Row("invert"), Row("rotate", 0, 30, True)),
        *(Row("posterize", 0, 4, whole="cut"), Row("solarize", 0, 256, whole="cut")),
        Row("solarize_add", 0, 110, whole="cut"),
        *(Row(name, -0.9, 0.9) for name in _BLENDS),
        *(Row(name, 0, 0.3, True) for name in _SHEARS),
        *(Row(name, 0, 100, True) for name in _SHIFTS),
        Row("cutout", 0, 40, whole="cut"),  # half its side
    ),
    top=10,
    most=30,
    fill=128,
)
# Müller and Hutter 2021, TrivialAugment, table 1, "wide".
_TRIVIAL = Space(
    (
        *(Row("identity"), *_FREE, Row("rotate", 0, 135, True)),
        *(Row("posterize", 8, 2, whole="round"), Row("solarize", 255, 0)),
        *(Row(name, 0, 0.99, True) for name in _BLENDS),
        *(Row(name, 0, 0.99, True) for name in _SHEARS),
        *(Row(name, 0, 32, True) for name in _SHIFTS),
    ),
    top=30,
    most=30,
    any_magnitude=True,
)
_VARIANTS = {"timm": _TIMM, "torchvision": _TORCHVISION, "big_vision": _BIG_VISION}


class Operations(NamedTuple):
    """What is done to each image, L operations one after the other."""

    operation: Tensor  # B L: a place in OPERATIONS
    amount: Tensor  # B L
    place: Tensor  # B L 2: down and right, in [0, 1), of a cut-out's middle


def space(how: Augment) -> Space:
    """Give the table that these settings draw from."""
    return _TRIVIAL if how.policy == "trivialaugment" else _VARIANTS[how.variant]


def draw_operations(
    seed: int, epoch: int, keys: np.ndarray, how: Augment, size: tuple[int, int]
) -> Operations:
    """Draw operations and amounts (RandAugment: Cubuk et al. 2020, figure 2)."""
    table, layers = space(how), 1 if how.policy == "trivialaugment" else how.operations
    numbers = uniform(seed, epoch, keys, layers * _EACH, first=_FIRST)
    which, whether, sign, radius, angle, down, right = numbers.reshape(
        len(keys), layers, _EACH
    ).transpose(2, 0, 1)  # each B L
    if table.any_magnitude:
        magnitude = np.floor((table.top + 1) * radius)
    else:  # Box and Muller 1958
        normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
        magnitude = (how.magnitude + how.magnitude_std * normal).clip(0, table.most)
    row = (which * len(table.rows)).astype(int)
    applied = whether < table.chance
    code = np.array([OPERATIONS.index(r.name) for r in table.rows])[row]
    amount = _amounts(table, row, magnitude / table.top, size)
    signed = np.array([r.signed for r in table.rows])[row] & (sign < 0.5)
    return Operations(
        torch.from_numpy(np.where(applied, code, OPERATIONS.index("identity"))),
        torch.from_numpy(np.where(signed, -amount, amount)).float(),
        torch.from_numpy(np.stack([down, right], axis=2)).float(),
    )


def _amounts(table: Space, row: np.ndarray, share: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Give the amounts of rows, B L, at a share of the way to the top."""
    low, high = (np.array([getattr(r, end) for r in table.rows])[row] for end in ("low", "high"))
    whole = np.array([r.whole for r in table.rows])[row]
    pixels = {"pixels": 1, "height": size[0], "width": size[1]}
    way = (high - low) * share
    way = np.where(whole == "cut", np.trunc(way), np.where(whole == "round", np.rint(way), way))
    return (low + way) * np.array([pixels[r.of] for r in table.rows])[row]
