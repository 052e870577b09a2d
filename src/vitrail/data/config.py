"""How images are changed for training: settings alone, without torch."""

from dataclasses import dataclass
from typing import Literal

from vitrail.errors import check_range, check_types


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """How far each training image is changed at random: every number is the most, either way."""

    rotate: float = 0.0  # degrees
    scale: float = 0.0  # share of the size: 0.1 is from 1 / 1.1 to 1.1
    shear: float = 0.0  # tangent of the angle
    shift: float = 0.0  # share of the image's side, on each axis
    flip: bool = False  # left to right, every second time
    # Least share of its area that a random crop keeps of an image, decoded anew in every epoch, and
    # how far its aspect may go; ImageNet's 0.08 and 4/3 are the field's. Absent: no crop.
    crop_scale: float | None = None
    crop_ratio: float = 4 / 3
    gain: float = 0.0  # share of the brightness
    repeats: int = 1  # of an image in an epoch, which then has fewer images
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_block: int = 8  # images in a row, among which partners are found
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # bilinear blurs small images
    fill: Literal["zeros", "border", "reflection"] = "zeros"  # what comes in from outside

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "rotate", 0, 180)
        check_range(self, "scale shear shift gain", 0, 1)
        check_range(self, "crop_scale", 0, 1, open_low=True)
        check_range(self, "crop_ratio", 1, 100)
