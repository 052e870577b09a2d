"""How images are changed for training: settings alone, without torch."""

from dataclasses import dataclass
from typing import Literal

from vitrail.errors import ConfigError, check_counts, check_range, check_types

# The largest magnitude of each RandAugment: timm cuts off at 10, torchvision has bins 0 to 30, and
# big_vision's grows past 10 (AugReg trains with 15).
_LARGEST = {"timm": 10, "torchvision": 30, "big_vision": 30}


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """How far each training image is changed at random: every number is the most, either way."""

    rotate: float = 0.0  # degrees
    scale: float = 0.0  # share of the size: 0.1 is from 1 / 1.1 to 1.1
    shear: float = 0.0  # tangent of the angle
    shift: float = 0.0  # share of the image's side, on each axis
    elastic: float = 0.0  # share of the image's side: as drawn on rubber that is pulled
    flip: bool = False  # left to right, every second time
    # Least share of its area that a random crop keeps of an image, decoded anew in every epoch, and
    # how far its aspect may go; ImageNet's 0.08 and 4/3 are the field's. Absent: no crop.
    crop_scale: float | None = None
    crop_ratio: float = 4 / 3
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # bilinear blurs small images
    fill: Literal["zeros", "border", "reflection"] = "zeros"  # what comes in from outside
    brightness: float = 0.0  # share; DeiT III: 0.3 of this and the next two
    contrast: float = 0.0  # share, around the image's mean grey
    saturation: float = 0.0  # share
    hue: float = 0.0  # share of the colour circle, at most a half; DINO: 0.1
    grey: float = 0.0  # share of the images that lose their colour; DINO: 0.2
    solarize: float = 0.0  # share of the images whose values from 128 on are inverted; DINO: 0.2
    blur: float = 0.0  # share of the images; DINO: 0.5
    # 3-augment: one of grey, solarize and blur for each image (DeiT III).
    policy: Literal["none", "3-augment", "randaugment", "trivialaugment"] = "none"
    # Of randaugment: whose list of operations (DeiT and MAE: timm; AugReg: big_vision), how many of
    # them one after the other, how strong, and the spread of the strength (DeiT and MAE: 0.5).
    variant: Literal["timm", "torchvision", "big_vision"] = "timm"
    operations: int = 2
    magnitude: float = 9.0  # 0 to 10; torchvision and big_vision: 0 to 30
    magnitude_std: float = 0.0
    erase: float = 0.0  # share of the images with a box of noise; DeiT and MAE: 0.25
    mixup: float = 0.0  # alpha of its Beta distribution, 0: off; DeiT and MAE: 0.8
    cutmix: float = 0.0  # the same; DeiT and MAE: 1.0
    mix_share: float = 1.0  # of the images that are mixed
    cutmix_share: float = 0.5  # of the mixed images, where mixup is on too
    mix_block: int = 8  # consecutive images of an epoch, among which partners are found
    repeats: int = 1  # each image so many times an epoch, drawn differently each time; DeiT: 3

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "rotate", 0, 180)
        check_range(self, "elastic", 0, 0.5)
        check_range(self, "scale shear shift brightness contrast saturation", 0, 1)
        check_range(self, "hue", 0, 0.5)
        check_range(self, "crop_scale", 0, 1, open_low=True)
        check_range(self, "crop_ratio", 1, 100)
        check_range(self, "grey solarize blur erase mix_share cutmix_share", 0, 1)
        check_range(self, "operations", 1, 16)
        check_range(self, "mixup cutmix magnitude_std", 0, 1000)
        check_range(self, "mix_block repeats", 1)
        largest = _LARGEST[self.variant]
        if not 0 <= self.magnitude <= largest:
            raise ConfigError(
                f"magnitude is {self.magnitude}; with variant {self.variant} it should be from 0 "
                f"to {largest}"
            )
        if self.mix_block == 1 and (self.mixup or self.cutmix):
            raise ConfigError(
                "mix_block is 1; with mixup or cutmix it should be 2 or more, for an image alone "
                "finds no partner"
            )


def check_batch(batch_size: int, ranks: int, augment: Augment) -> None:
    """Raise `ConfigError` where a batch does not split over the processes of a run."""
    check_counts(batch_size=batch_size)
    if batch_size == 1 and (augment.mixup or augment.cutmix):
        raise ConfigError(
            "batch_size is 1; with mixup or cutmix it should be 2 or more, for an image alone "
            "finds no partner"
        )
    # A sample and its partner must be on the same rank, or the number of ranks changed the batch.
    mixes = ranks > 1 and (augment.mixup or augment.cutmix)
    whole, blocks = (ranks, "") if not mixes else (ranks * augment.mix_block, " in whole blocks")
    if batch_size % whole:
        below, above = batch_size // whole * whole or whole, (batch_size // whole + 1) * whole
        raise ConfigError(
            f"batch_size {batch_size} does not split over {ranks} processes{blocks} "
            f"(augment.mix_block is {augment.mix_block}); give {below} or {above}"
        )
