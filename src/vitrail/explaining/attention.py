"""Attention, from a layer's own q and k: the kernels that run a model keep no weights.

Axes: `B` batch, `K` heads, `Q` queries, `N` all tokens, prefix first, `d` head width. A watcher is
called with what each layer attends with, while the model runs as it always does:

    rows = Rows(heads=[0], queries=[[0]])
    with watching(model, [11], rows):
        model(images)
    rows.maps[11]  # B 1 1 N
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.model.vit import AttentionPooling, MultiHeadAttention, ViT

Layer = int | Literal["pool"]  # a block by its number, or attention pooling (SigLIP)
Watcher = Callable[[Layer, Tensor, Tensor, Tensor, Tensor | None], None]  # of q, k, v and mask


def weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give softmax(q k^T / sqrt(d)), B K Q N, for q of B K Q d and k of B K N d.

    `mask` broadcasts to B K Q N, True where a query may look; a row without any True is zeros. It
    is what `kernels.attend` multiplies with v, whichever kernel does so; at least in float32.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(precise) * q.shape[-1] ** -0.5 @ k.to(precise).mT
    if mask is None:
        return scores.softmax(dim=-1)
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).masked_fill(~mask, 0.0)


def attention_of(model: ViT, layer: Layer) -> MultiHeadAttention | AttentionPooling:
    """Give the module that attends in a layer."""
    if layer == "pool":
        assert model.attn_pool is not None
        return model.attn_pool
    attention = model.blocks[layer].attn
    assert isinstance(attention, MultiHeadAttention)
    return attention


@contextmanager
def watching(model: ViT, layers: Sequence[Layer], watcher: Watcher) -> Iterator[None]:
    """Call `watcher(layer, q, k, v, mask)` each time one of these layers attends.

    q, k and v, B K N d, are computed once more from what the layer has read: no layer is written
    out a second time here, and a model that nobody watches does nothing for it.
    """

    def hook(layer: Layer, module: nn.Module, read: tuple[Tensor, ...]) -> None:
        if isinstance(module, AttentionPooling):
            watcher(layer, *module.split(*read), None)
        elif isinstance(module, MultiHeadAttention):
            mask, rotation = (*read[1:], None, None)[:2]
            watcher(layer, *module.split(read[0], rotation), mask)

    handles = [
        attention_of(model, layer).register_forward_pre_hook(partial(hook, layer))
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Rows:
    """Keeps attention, B K Q N for each layer in `maps`, of some heads and queries, and no more.

    A query is the tokens whose rows it is the mean of. The rows of other tokens are not computed.
    The pooling has one query, its own.
    """

    def __init__(self, heads: Sequence[int], queries: Sequence[Sequence[int]]) -> None:
        self.heads, self.sizes = list(heads), [len(tokens) for tokens in queries]
        self.tokens = [token for tokens in queries for token in tokens]
        self.maps: dict[Layer, Tensor] = {}

    def __call__(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        q, k, mask = of_heads(self.heads, q, k, mask)
        if layer == "pool":
            self.maps[layer] = weights(q, k)
            return
        if mask is not None:
            mask = mask.expand(*q.shape[:3], k.shape[2])[:, :, self.tokens]
        parts = weights(q[:, :, self.tokens], k, mask).split(self.sizes, dim=2)
        self.maps[layer] = torch.stack([part.mean(dim=2) for part in parts], dim=2)


class Rollout:
    """Keeps how attention mixes the first layer's tokens into the last one's: `flow`, B N N.

    Abnar & Zuidema 2020 (arXiv:2005.00928): heads are averaged; the residual leaves a token half of
    itself; and what layers do in turn is the product of their matrices. Rows sum to 1, and one
    matrix is kept, whatever the depth.
    """

    def __init__(self, heads: Sequence[int]) -> None:
        self.heads = list(heads)
        self.flow: Tensor | None = None

    def __call__(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        attention = weights(*of_heads(self.heads, q, k, mask)).mean(dim=1)
        step = attention + torch.eye(q.shape[2], device=q.device)
        # Where a mask lets a token see nothing, its row is 0: all that it has is itself.
        step = step / step.sum(dim=-1, keepdim=True)
        self.flow = step if self.flow is None else step @ self.flow


def of_heads(
    heads: Sequence[int], q: Tensor, k: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give the part of q and k, B K N d, and of a mask that is these heads'."""
    if mask is not None and mask.ndim > 2 and mask.shape[-3] > 1:
        mask = mask[..., heads, :, :]
    return q[:, heads], k[:, heads], mask


def readout(model: ViT, tokens: int) -> Tensor:
    """Give the share of each of `tokens`, N, in what a head reads that pools without attention."""
    config = model.config
    first, patches = torch.zeros(2, tokens)
    first[0] = 1
    patches[config.prefix :] = 1 / (tokens - config.prefix)
    shares = {
        "cls": first,
        "mean": patches,
        "mean_all": torch.full((tokens,), 1 / tokens),
        "cls+mean": (first + patches) / 2,
    }
    share = shares[config.pooling]
    if config.distillation_token:  # its own classifier has an equal say
        share = share / 2
        share[1] += 0.5
    return share
