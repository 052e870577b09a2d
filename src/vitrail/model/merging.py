"""Token merging: in each block the patches that are most alike become one, so that fewer are left.

ToMe (Bolya et al. 2023, "Token Merging: Your ViT But Faster", arXiv:2210.09461) makes a trained
model faster as it is. Between attention and feed-forward every other patch is matched with the one
most alike among the rest, and the closest pairs become their mean, in which each side weighs as
much as the patches that it stands for already. Prefix tokens are never merged. Two things follow
from the size of a token, its number of patches:

- It is looked at as that many tokens: log(size) is added to its scores (ToMe, section 3).
- At the end every patch gets back the token that it is part of, so that whatever reads patches, a
  mean or an attention pooling, counts it as often.

Where positions are rotations (rope), a token turns by the mean of its patches' cosines and sines:
its q and k are the mean of what they would be at each of the places. No angle has to be chosen, and
a frequency in which the places contradict each other fades.

Axes as in `vit`; `T` = P + n tokens are left, of P + N.
"""

from itertools import islice
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from vitrail.model.checks import check_layer, check_merge
from vitrail.model.vit import EncoderBlock, Tokens, ViT


class Merged(NamedTuple):
    """Tokens that stand for one patch or more."""

    x: Tensor  # B T D
    size: Tensor  # B T: how many patches each stands for
    source: Tensor  # B P+N: the token that each one of the beginning is part of now
    rotation: Tensor | None  # B T 2d: cosines, then sines


def merged_tokens(model: ViT, images: Tensor, merge: int, layer: int | None = None) -> Tokens:
    """Give `model.tokens(images)` where each block merges `merge` patches of each image away.

    Of n patches it is n // 2 at most. `layer` is the block to stop after, the last by default.
    Only for inference: nothing is dropped. Raises `ConfigError` for a number below 0 and for a
    layer that there is not.
    """
    check_merge(merge)
    prefix, depth = model.config.prefix, model.config.depth
    if layer is not None:
        check_layer(layer, depth)
    x, rotation, grid = model.embed(images)
    tokens = _unmerged(x, rotation, prefix)
    for block in islice(model.blocks, depth if layer is None else layer % depth + 1):
        tokens = _through(cast(EncoderBlock, block), tokens, prefix, merge)
    return model.finish(_rows(tokens.x, tokens.source), grid)


def match(keys: Tensor, count: int) -> Tensor:
    """Say which of n tokens become one, by their keys, B n d: the new place of each, B n.

    Each odd token is matched with the even one of the highest cosine, and the `count` best matches
    merge. What is left are the other odd tokens, then the even ones.
    """
    keys = F.normalize(keys, dim=-1)
    even, odd = keys[:, 0::2], keys[:, 1::2]
    alike, partner = (odd @ even.mT).max(dim=-1)
    closest = alike.argsort(dim=-1, descending=True, stable=True)[:, :count]
    stays = torch.ones_like(partner, dtype=torch.bool).scatter_(1, closest, False)
    left = odd.shape[1] - count
    place = torch.empty(keys.shape[:2], dtype=torch.long, device=keys.device)
    place[:, 0::2] = torch.arange(left, left + even.shape[1], device=keys.device)
    place[:, 1::2] = torch.where(stays, stays.cumsum(dim=1) - 1, left + partner)
    return place


def _unmerged(x: Tensor, rotation: Tensor | None, prefix: int) -> Merged:
    """Give the tokens of the first block, each of which is one patch or one prefix token."""
    if rotation is not None:  # a prefix token is not turned: cosine 1, sine 0
        cos, sin = (F.pad(rotation[i], (0, 0, prefix, 0), value=1.0 - i) for i in (0, 1))
        rotation = torch.cat([cos, sin], dim=-1).expand(len(x), -1, -1)
    precise = torch.promote_types(x.dtype, torch.float32)
    size = torch.ones(x.shape[:2], dtype=precise, device=x.device)
    source = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    return Merged(x, size, source, rotation)


def _through(block: EncoderBlock, tokens: Merged, prefix: int, merge: int) -> Merged:
    """Run a block as `EncoderBlock.forward` does, merging between its two residuals."""
    x, size, _, rotation = tokens
    if rotation is not None:
        rotation = rearrange(rotation, "b t (two d) -> two b 1 t d", two=2)
    q, k, v = block.attn.split(block.norm1(x), rotation)
    as_many = rearrange(size.log(), "b t -> b 1 1 t").to(q.dtype) if merge else None
    x = x + block.ls1(block.attn.mix(q, k, v, as_many))
    tokens = tokens._replace(x=x)
    if count := min(merge, (x.shape[1] - prefix) // 2):
        with torch.autocast(x.device.type, enabled=False):  # cosines near 1 need their digits
            place = prefix + match(k[:, :, prefix:].float().mean(dim=1), count)
            first = torch.arange(prefix, device=x.device).expand(len(x), -1)
            tokens = _merge(tokens, torch.cat([first, place], dim=1), x.shape[1] - count)
    return tokens._replace(x=tokens.x + block.ls2(block.mlp(block.norm2(tokens.x))))


def _merge(tokens: Merged, place: Tensor, left: int) -> Merged:
    """Make one of the tokens that have the same new place, B T, of `left` places."""
    x, size, source, rotation = tokens
    total = size.new_zeros(len(size), left).scatter_add_(1, place, size)
    share = (size / total.gather(1, place))[..., None]
    batch = torch.arange(len(place), device=place.device)[:, None]
    rows = (place + left * batch).flatten()

    def mean(values: Tensor) -> Tensor:
        weighted = (values * share).flatten(0, 1)
        sums = weighted.new_zeros(len(place) * left, values.shape[2]).index_add_(0, rows, weighted)
        return sums.view(len(place), left, -1).to(values.dtype)

    turned = None if rotation is None else mean(rotation)
    return Merged(mean(x), total, place.gather(1, source), turned)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Give the rows of x, B T D, that stand at `rows`, B T'."""
    return x.gather(1, repeat(rows, "b t -> b t d", d=x.shape[2]))
