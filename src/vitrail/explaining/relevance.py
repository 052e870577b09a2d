"""Relevance: which tokens speak for a class, by attention weighted with its gradient.

Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability" (arXiv:2103.15679), the rule for
self-attention. With A a layer's attention and y the class's logit (equations 5 and 6):

    R = 1;  from the first layer to the last: R = R + mean over heads of (dy/dA * A)^+ R

and the class token's row of R is the answer. Axes as in `attention`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from vitrail.explaining.attention import (
    Layer,
    attention_of,
    of_heads,
    readout,
    watching,
    weights,
)
from vitrail.model.vit import ViT


def relevance(
    model: ViT, images: Tensor, target: int | None, layers: Sequence[int], heads: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Give the relevance of each token for a class, B N, and the logits, B classes.

    The class is `target`, else each image's likeliest. The paper reads the class token's row of R;
    where a head reads the mean of tokens, this is the mean of their rows, each less the 1 that R
    began with; and attention pooling is one more layer, with a row of its own.
    """
    patch = model.config.patch_size
    pooling: list[Layer] = ["pool"] if model.attn_pool is not None else []
    watched = [*layers, *pooling]
    attended: dict[Layer, tuple[Tensor, Tensor, Tensor, Tensor | None]] = {}

    def watch(layer: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        q, k, mask = of_heads(heads, q.detach(), k.detach(), mask)
        attended[layer] = q, k, v.detach()[:, heads], mask

    with torch.enable_grad(), given(model, watched) as out:
        with watching(model, watched, watch):
            # A model whose weights are frozen has a graph only where its input asks for one.
            logits = model(images.detach().requires_grad_())
        best = logits.argmax(dim=1) if target is None else torch.full((len(logits),), target)
        score = logits[range(len(logits)), best].sum()
        slopes = dict(zip(out, torch.autograd.grad(score, list(out.values())), strict=True))

    def spoken_for(layer: Layer) -> Tensor:
        """Give the mean over heads of (dy/dA * A)^+, B Q N."""
        q, k, v, mask = attended[layer]
        # A layer gives A v, so that dy/dA is dy/d(A v) v^T: no kernel has to keep A.
        slope = rearrange(slopes[layer], "b q (k d) -> b k q d", d=v.shape[-1])[:, heads]
        return (weights(q, k, mask) * (slope @ v.mT)).clamp_min(0).mean(dim=1)

    prefix, patches = model.config.prefix, (images.shape[2] // patch) * (images.shape[3] // patch)
    flow = torch.eye(prefix + patches, device=images.device).expand(len(images), -1, -1)
    for layer in layers:
        flow = flow + spoken_for(layer) @ flow
    if pooling:
        read = spoken_for("pool") @ flow[:, prefix:]
    else:
        # Less what every token is of itself: of a mean of tokens it would be all that one sees.
        own = torch.eye(prefix + patches, device=images.device)
        read = readout(model, prefix + patches).to(flow) @ (flow - own)
    return read.flatten(1), logits.detach()


@contextmanager
def given(model: ViT, layers: Sequence[Layer]) -> Iterator[dict[Layer, Tensor]]:
    """Give a dictionary to be filled with what layers give, A v of all heads, B N (K d)."""
    found: dict[Layer, Tensor] = {}

    def keep(layer: Layer, _: object, read: tuple[Tensor, ...]) -> None:
        found[layer] = read[0]

    handles = [
        attention_of(model, layer).proj.register_forward_pre_hook(partial(keep, layer))
        for layer in layers
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
