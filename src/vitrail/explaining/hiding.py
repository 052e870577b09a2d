"""Hiding patches: what a model answers where it sees a part of the image alone.

Axes: `M` ways to hide, `N` = h w patches row by row, `C H W` the normalised image.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from vitrail.model.vit import ViT

Fill = Literal["grey", "blur"]


def filling(image: Tensor, how: Fill, patch: int) -> Tensor:
    """Give what stands for hidden pixels, C H W: the image's mean colour, or the image blurred.

    Blurred so far, by a Gaussian of a patch's width, that what a patch holds cannot be made out.
    """
    if how == "grey":
        return image.mean(dim=(1, 2), keepdim=True).expand_as(image)
    reach = torch.arange(-2 * patch, 2 * patch + 1, device=image.device)
    kernel = torch.exp(-(reach**2) / (2 * patch**2))
    kernel = repeat(kernel / kernel.sum(), "n -> c 1 n 1", c=len(image)).to(image.dtype)
    padded = F.pad(image[None], (2 * patch,) * 4, mode="replicate")
    down = F.conv2d(padded, kernel, groups=len(image))
    return F.conv2d(down, kernel.mT, groups=len(image))[0]


@torch.inference_mode()
def answers(
    model: ViT, image: Tensor, filler: Tensor, hidden: Tensor, target: int, batch_size: int
) -> Tensor:
    """Give the logarithm of the target's probability, M, with the patches of `hidden`, M N, gone.

    It is M forward passes, in batches of `batch_size`.
    """
    patch = model.config.patch_size
    found = []
    for some in hidden.split(batch_size):
        pixels = rearrange(some, "m (h w) -> m 1 h w", h=image.shape[1] // patch)
        pixels = pixels.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
        logits = model(torch.where(pixels.to(image.device), filler, image))
        found.append(logits.float().log_softmax(dim=1)[:, target])
    return torch.cat(found).cpu()
