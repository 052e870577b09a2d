"""Batched augmentation on the model's device: pure functions of a batch and of drawn numbers.

All that is random is drawn first, on the CPU, from (seed, epoch, key) alone, so that an image is
changed in the same way whatever batch, rank or restart it is in. Each part reads its own stretch
of the sample's endless row of numbers: 0 to 6 the small affine and brightness, 6 to 10 colours,
20 and 30 effects, 40 erasing, 70 mixing, 100 policies, 1000 the crop, 3000 the elastic pull; 2000
of a block's, partners.
Settings that are off are branches of Python: they cost nothing, and compiled code has no breaks.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.affine import is_mirrored, is_moved, moved
from vitrail.data.colour import (
    Effects,
    Jitter,
    affected,
    draw_effects,
    draw_jitter,
    draw_one_of_three,
    jittered,
)
from vitrail.data.config import Augment
from vitrail.data.draws import uniform
from vitrail.data.elastic import Pull, draw_pull
from vitrail.data.erasing import Erasing, draw_erasing, erased
from vitrail.data.kernels import mirrored
from vitrail.data.mixing import Mixing, draw_mixing
from vitrail.data.operations import operated
from vitrail.data.policies import Operations, draw_operations, space


class Draws(NamedTuple):
    """All that is random in a batch's augmentation; a part that is off is None."""

    moves: Tensor  # B 7, in [0, 1): the small affine, its mirror sixth, brightness last
    operations: Operations | None = None
    one_of_three: Effects | None = None
    jitter: Jitter | None = None
    effects: Effects | None = None
    erasing: Erasing | None = None
    mixing: Mixing | None = None
    pull: Pull | None = None

    def to(self, device: torch.device) -> "Draws":
        """Give the same on a device."""
        parts: list[Any] = [
            part and type(part)(*(t.to(device, non_blocking=True) for t in part))
            for part in self[1:]
        ]
        return Draws(self.moves.to(device, non_blocking=True), *parts)


def draw(
    seed: int,
    epoch: int,
    keys: np.ndarray,
    blocks: np.ndarray,
    how: Augment,
    size: tuple[int, int],
) -> Draws:
    """Draw for the samples of `keys`, which are mixed inside `blocks`; their images are H W."""
    jitters = how.contrast or how.saturation or how.hue
    affects = how.grey or how.solarize or how.blur
    operates = how.policy in ("randaugment", "trivialaugment")
    three = how.policy == "3-augment"
    mixes = how.mixup or how.cutmix
    return Draws(
        torch.from_numpy(uniform(seed, epoch, keys, 7)).float(),
        draw_operations(seed, epoch, keys, how, size) if operates else None,
        draw_one_of_three(seed, epoch, keys) if three else None,
        draw_jitter(seed, epoch, keys, how) if jitters else None,
        draw_effects(seed, epoch, keys, how) if affects else None,
        draw_erasing(seed, epoch, keys, how.erase, size) if how.erase else None,
        draw_mixing(seed, epoch, keys, blocks, how, size) if mixes else None,
        draw_pull(seed, epoch, keys) if how.elastic else None,
    )


def augment(images: Tensor, draws: Draws, how: Augment) -> Tensor:
    """Change a uint8 batch, B C H W, but for mixing; gives float32, still 0 .. 255.

    The order is DeiT III's and timm's: geometry, policy, colours, effects, erasing.
    """
    if is_moved(how):
        images = moved(images.float(), draws.moves, how, draws.pull)
    elif is_mirrored(how):
        images = mirrored(images, draws.moves[:, 5] < 0.5)
    if draws.operations is not None:
        images = images.round().to(torch.uint8) if images.is_floating_point() else images
        images = operated(images, draws.operations, space(how).fill, how.interpolation)
    images = _coloured(images.float(), draws, how)
    if draws.erasing is not None:
        images = erased(images, draws.erasing)
    return images


def _coloured(images: Tensor, draws: Draws, how: Augment) -> Tensor:
    coloured = (draws.one_of_three, draws.jitter, draws.effects)
    if not how.brightness and all(part is None for part in coloured):
        return images
    planes = list(images.unbind(dim=1))
    if draws.one_of_three is not None:
        planes = affected(planes, draws.one_of_three, blur=True)
    if draws.jitter is not None:
        planes = jittered(planes, draws.jitter, how)
    elif how.brightness:
        light = (1 + how.brightness * (2 * draws.moves[:, 6] - 1)).view(-1, 1, 1)
        planes = [(plane * light).clamp(0, 255) for plane in planes]
    if draws.effects is not None:
        planes = affected(planes, draws.effects, blur=how.blur > 0)
    return torch.stack(planes, dim=1)
