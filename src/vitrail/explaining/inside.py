"""What a model has learned, seen from inside: filters, positions, norms and distances.

Axes: `L` layers, `B` images, `K` heads, `P` prefix tokens, `N` = h w patches, `D` width.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vitrail.errors import ConfigError, check_counts
from vitrail.explaining.attention import Layer, watching, weights
from vitrail.model import positions
from vitrail.model.vit import ViT


class Norms(NamedTuple):
    """The length of each token after each block: `prefix` L B P, `patches` L B h w."""

    prefix: np.ndarray
    patches: np.ndarray


class Filters(NamedTuple):
    """The principal components of the patch filters, n s s C, and each one's share of variance."""

    components: np.ndarray
    shares: np.ndarray


@torch.no_grad()
def token_norms(model: ViT, images: Tensor) -> Norms:
    """Measure tokens, of normalised images, B C H W, after each block and before the final norm.

    A few patches of plain background that are many times longer than the rest hold what the whole
    image is about: the artefacts that registers cure (Darcet et al. 2024, section 2).
    """
    x, rotation, grid = model.embed(images)
    lengths = []
    for block in model.blocks:
        x = block(x, rotation=rotation)
        lengths.append(x.float().norm(dim=-1).cpu())
    prefix, patches = torch.stack(lengths).split([model.config.prefix, grid[0] * grid[1]], dim=-1)
    return Norms(prefix.numpy(), rearrange(patches, "l b (h w) -> l b h w", h=grid[0]).numpy())


@torch.no_grad()
def attention_distance(model: ViT, images: Tensor) -> np.ndarray:
    """Give how far each head looks, L K, in pixels of the model's input.

    The mean over images and patches of the distance to other patches, weighted by attention among
    patches (ViT, Dosovitskiy et al. 2021, section 4.5 and figures 7 and 11).
    """
    patch = model.config.patch_size
    h, w = images.shape[2] // patch, images.shape[3] // patch
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([rows, columns], dim=-1).view(-1, 2).float() * patch
    apart = torch.cdist(places, places).to(images.device)
    found: dict[Layer, Tensor] = {}

    def watch(layer: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        prefix = model.config.prefix  # what they get does not count: they are nowhere
        attention = weights(q[:, :, prefix:], k[:, :, prefix:])
        found[layer] = (attention * apart).sum(dim=-1).mean(dim=(0, 2)).cpu()

    layers = range(model.config.depth)
    with watching(model, layers, watch):
        model.tokens(images)
    return torch.stack([found[layer] for layer in layers]).numpy()


@torch.no_grad()
def position_similarity(model: ViT) -> np.ndarray:
    """Give how alike the positions of any two patches are, h w h w: cosine similarity, -1 .. 1.

    ViT, figure 7. Of rotary positions it is the mean cosine of the angles between them. Raises
    `ConfigError` for a model without positions.
    """
    config = model.config
    device = next(model.parameters()).device
    if model.pos_embed is not None:
        table = model.pos_embed[0, config.prefix_positions :]
    elif config.positions == "sincos":
        table = positions.sincos(config.grid, config.width, device)[0]
    elif config.positions == "rope":
        turns = positions.rope(config.grid, config.head_width, config.rope_base, device)
        table = rearrange(turns, "two n d -> n (two d)")
    else:
        raise ConfigError("this model has no positions to compare")
    table = F.normalize(table.float(), dim=-1)
    return (table @ table.T).view(*config.grid, *config.grid).cpu().numpy()


@torch.no_grad()
def patch_filters(model: ViT, count: int = 28) -> Filters:
    """Give the first principal components of what tokens read in a patch (ViT, figure 7)."""
    check_counts(count=count)
    filters = model.patch_embed.proj.weight.float()
    _, spread, components = torch.linalg.svd(
        filters.flatten(1) - filters.flatten(1).mean(dim=0), full_matrices=False
    )
    shares = spread**2 / (spread**2).sum()
    shown = components[:count].view(-1, *filters.shape[1:])
    return Filters(
        rearrange(shown, "n c i j -> n i j c").cpu().numpy(), shares[:count].cpu().numpy()
    )
