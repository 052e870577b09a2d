"""Positions at any image size as matrix products: the same numbers in every runtime.

Runtimes resize tables each in their own way: OpenVINO's bicubic differs from torch's by thousandths
of a logit. What torch does is linear along each axis, so a graph that holds the matrix of each axis
is exact anywhere. Axes: `h w` patch grid, `D` width.
"""

import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from vitrail.model.config import PositionResize
from vitrail.model.vit import PatchEmbedding, ViT


def at_any_size(model: ViT) -> ViT:
    """Give the model with its table of positions, where it has one, resized inside of the graph.

    All other weights are shared with it.
    """
    if model.pos_embed is None:
        return model
    twin = copy.copy(model)
    twin.config = model.config.replace(positions="none", prefix_positions=0)
    twin._modules = {**model._modules, "patch_embed": _Positioned(model)}
    twin._parameters = {**model._parameters, "pos_embed": None}
    # The first prefix tokens may have a position each: it is a part of the token then.
    row = 0
    for name in ("cls_token", "dist_token", "reg_token"):
        token = getattr(model, name)
        if token is not None:
            own = model.pos_embed[:, row : model.config.prefix_positions][:, : token.shape[1]]
            moved = token.detach().clone()
            moved[:, : own.shape[1]] += own.detach()
            twin._parameters[name] = nn.Parameter(moved)
            row += token.shape[1]
    return twin


class _Positioned(nn.Module):
    """Patches, B C H W to B N D, with their positions."""

    table: Tensor  # h (w D)

    def __init__(self, model: ViT) -> None:
        super().__init__()
        config = model.config
        assert model.pos_embed is not None
        self.plain, self.size = model.patch_embed, config.patch_size
        self.grid, self.rule = config.grid, config.position_resize
        table = model.pos_embed[0, config.prefix_positions :].detach()
        self.register_buffer("table", rearrange(table, "(h w) d -> h (w d)", h=self.grid[0]))

    @property
    def proj(self) -> nn.Conv2d:
        """The projection of the patches."""
        assert isinstance(self.plain, PatchEmbedding)
        return self.plain.proj

    def forward(self, images: Tensor) -> Tensor:
        # Counted, so that a graph has the sizes as numbers that it can divide by.
        down, across = (torch.ones(images.shape[axis] // self.size) for axis in (2, 3))
        same = (down.sum() == self.grid[0]) & (across.sum() == self.grid[1])
        offset = self.rule.offset * (1 - same.float())  # an equal grid is read as it is
        rows = axis_matrix(down, self.grid[0], self.rule, offset)
        columns = axis_matrix(across, self.grid[1], self.rule, offset)
        table = rearrange(rows @ self.table.float(), "h (w d) -> h w d", w=self.grid[1])
        positions = rearrange(columns @ table, "h w d -> 1 (h w) d")
        return self.plain(images) + positions.to(self.proj.weight.dtype)


def axis_matrix(ones: Tensor, source: int, rule: PositionResize, offset: Tensor) -> Tensor:
    """Give the matrix, n source, by which torch resizes one axis to n = len(`ones`).

    As `torch.nn.functional.interpolate` computes it: cubic convolution (Keys 1981) with a = -0.75,
    or -0.5 where it is antialiased, as Pillow's; beyond the border the last value is repeated, or
    with antialiasing left out.
    """
    target = ones.sum()
    place = ones.cumsum(0) - 1
    scale = source / (target + offset)
    centre = (place + 0.5) * scale - 0.5
    if rule.align_corners:
        centre = place * ((source - 1) / (target - 1).clamp(min=1))
    kernel = _cubic if rule.mode == "bicubic" else _linear
    if rule.antialias:
        wide = scale.clamp(min=1)
        taps = torch.arange(source, dtype=torch.float32)
        weights = kernel((taps - centre[:, None]) / wide, -0.5)
        return weights / weights.sum(dim=1, keepdim=True)
    if rule.mode == "bilinear":  # torch never reads before the first value
        centre = centre.clamp(min=0)
    taps = torch.arange(-2, source + 2, dtype=torch.float32)
    weights = kernel(taps - centre[:, None], -0.75)  # n source + 4
    first = weights[:, :3].sum(dim=1, keepdim=True)
    last = weights[:, source + 1 :].sum(dim=1, keepdim=True)
    if source == 1:
        return torch.ones_like(first)
    return torch.cat([first, weights[:, 3 : source + 1], last], dim=1)


def _cubic(x: Tensor, a: float) -> Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _linear(x: Tensor, a: float) -> Tensor:
    return (1 - x.abs()).clamp(min=0)
