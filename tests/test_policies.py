"""Policies draw what their papers and peers draw."""

from types import ModuleType

import numpy as np
import pytest

from vitrail.data.config import Augment
from vitrail.data.policies import OPERATIONS, draw_operations, space

N = 20_000
SIZE = (100, 200)


def drawn(how: Augment, layer: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Give operation and amount of many images."""
    draws = draw_operations(3, 1, np.arange(N), how, SIZE)
    return draws.operation[:, layer].numpy(), draws.amount[:, layer].numpy()


def near(count: int, chance: float) -> bool:
    """Say whether a count of N is within five standard deviations of what is to be expected."""
    return abs(count - N * chance) < 5 * (N * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize(
    ("how", "operations", "chance"),
    [
        (Augment(policy="randaugment", variant="timm"), 15, 0.5),
        (Augment(policy="randaugment", variant="torchvision"), 14, 1.0),
        (Augment(policy="randaugment", variant="big_vision"), 16, 1.0),
        (Augment(policy="trivialaugment"), 14, 1.0),
    ],
    ids=["timm", "torchvision", "big_vision", "trivialaugment"],
)
def test_every_operation_of_a_table_has_the_same_chance(
    how: Augment, operations: int, chance: float
) -> None:
    layers = 1 if how.policy == "trivialaugment" else 2
    names = [row.name for row in space(how).rows]

    assert len(set(names)) == operations
    for layer in range(layers):
        operation, _ = drawn(how, layer)
        for name in names:
            if name != "identity":
                assert near(int((operation == OPERATIONS.index(name)).sum()), chance / operations)
    assert draw_operations(0, 0, np.arange(3), how, SIZE).operation.shape == (3, layers)


def amounts(how: Augment, name: str) -> set[float]:
    operation, amount = drawn(how)
    return {round(float(a), 4) for a in amount[operation == OPERATIONS.index(name)]}


def every(names: tuple[str, ...], *amounts: float) -> dict[str, set[float]]:
    return {name: set(amounts) for name in names}


BLENDS = ("saturation", "contrast", "brightness", "sharpness")
TIMM_AT_9 = {
    "rotate": {-27.0, 27.0},
    "posterize": {1.0},
    "solarize": {26.0},
    "solarize_add": {99.0},
    **every(BLENDS, -0.81, 0.81),
    **every(("shear_x", "shear_y"), -0.27, 0.27),
    "shift_x": {-81.0, 81.0},
    "shift_y": {-40.5, 40.5},
}
TORCHVISION_AT_9 = {
    "rotate": {-9.0, 9.0},
    "posterize": {7.0},
    "solarize": {178.5},
    **every(BLENDS, -0.27, 0.27),
    **every(("shear_x", "shear_y"), -0.09, 0.09),
    "shift_x": {-27.1903, 27.1903},
    "shift_y": {-13.5952, 13.5952},
}
BIG_VISION_AT_15 = {  # AugReg's
    "rotate": {-45.0, 45.0},
    "posterize": {6.0},
    "solarize": {384.0},
    "solarize_add": {165.0},
    **every(BLENDS, 1.8),
    **every(("shear_x", "shear_y"), -0.45, 0.45),
    **every(("shift_x", "shift_y"), -150.0, 150.0),
    "cutout": {60.0},
}


@pytest.mark.parametrize(
    ("variant", "magnitude", "wanted"),
    [
        ("timm", 9.0, TIMM_AT_9),
        ("torchvision", 9.0, TORCHVISION_AT_9),
        ("big_vision", 15.0, BIG_VISION_AT_15),
    ],
)
def test_amounts_are_the_peer_s(
    variant: str, magnitude: float, wanted: dict[str, set[float]]
) -> None:
    how = Augment(policy="randaugment", variant=variant, magnitude=magnitude)  # type: ignore

    assert {name: amounts(how, name) for name in wanted} == wanted


def test_timm_s_amounts_are_what_its_own_functions_give(timm: ModuleType) -> None:
    from timm.data import auto_augment

    peers = {
        "posterize": "PosterizeIncreasing",
        "solarize": "SolarizeIncreasing",
        "solarize_add": "SolarizeAdd",
    }
    for magnitude in (0.0, 1.0, 4.0, 6.5, 9.0, 10.0):
        how = Augment(policy="randaugment", magnitude=magnitude)
        for name, peer in peers.items():
            assert amounts(how, name) == set(auto_augment.LEVEL_TO_ARG[peer](magnitude, {}))


def test_trivialaugment_draws_each_of_31_magnitudes_of_the_wide_space() -> None:
    how = Augment(policy="trivialaugment")

    assert len(amounts(how, "rotate")) == 61 and max(amounts(how, "rotate")) == 135
    assert max(amounts(how, "shear_x")) == pytest.approx(0.99)
    assert min(amounts(how, "shift_y")) == -32
    assert amounts(how, "posterize") == {2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}
    assert len(amounts(how, "solarize")) == 31


def test_a_spread_of_the_magnitude_is_normal_and_ends_at_the_table_s_end() -> None:
    how = Augment(policy="randaugment", magnitude=9.0, magnitude_std=0.5)
    operation, amount = drawn(how)
    magnitude = np.abs(amount[operation == OPERATIONS.index("rotate")]) / 3

    assert magnitude.max() == pytest.approx(10)
    # Some 670 values: the share beyond 10 (2.3 %) within five standard errors, the others' middle.
    assert abs((magnitude > 9.999).mean() - 0.0228) < 0.03
    assert abs(np.median(magnitude) - 9) < 0.12
    assert abs(np.quantile(magnitude, 0.16) - 8.5) < 0.15
