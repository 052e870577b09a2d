"""Relevance: which tokens speak for a class, by attention weighted with its gradient.

Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability" (arXiv:2103.15679), the rule for
self-attention. With A a layer's attention and y the class's logit (equations 5 and 6):

    R = 1;  from the first layer to the last: R = R + mean over heads of (dy/dA * A)^+ R

and a class token's row of R is the answer. Axes as in `attention`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from vitrail.explaining.attention import Layer, attention_of, of_heads, watching, weights
from vitrail.model.vit import ViT


def relevance(
    model: ViT, images: Tensor, target: int | None, layers: Sequence[int], heads: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Give the relevance of each token for a class, B N, and the logits, B classes.

    The class is `target`, else each image's likeliest. The paper reads the class token's row; where
    a head reads other tokens too, their rows are weighed by how each speaks for the class.
    """
    pooling: list[Layer] = ["pool"] if model.attn_pool is not None else []
    watched = [*layers, *pooling]
    attended: dict[Layer, tuple[Tensor, Tensor, Tensor, Tensor | None]] = {}

    def watch(layer: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        q, k, mask = of_heads(heads, q.detach(), k.detach(), mask)
        attended[layer] = q, k, v.detach()[:, heads], mask

    with torch.enable_grad(), outputs(model, watched) as out:
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

    tokens = out["tokens"].shape[1]
    flow = torch.eye(tokens, device=images.device).expand(len(images), -1, -1)
    for layer in layers:
        flow = flow + spoken_for(layer) @ flow
    if pooling:
        prefix = model.config.prefix
        return (spoken_for("pool") @ flow[:, prefix:]).squeeze(1), logits.detach()
    read = (out["tokens"] * slopes["tokens"]).sum(dim=-1).detach().clamp_min(0)
    if model.config.pooling == "cls":
        read = torch.zeros_like(read)
        read[:, : 1 + model.config.distillation_token] = 1
    return (read[:, None] @ flow).squeeze(1), logits.detach()


@contextmanager
def outputs(model: ViT, layers: Sequence[Layer]) -> Iterator[dict[Layer | str, Tensor]]:
    """Give a dictionary to be filled with what layers give, A v, B N (K d), and the last tokens."""
    found: dict[Layer | str, Tensor] = {}

    def keep_input(layer: Layer, _: object, read: tuple[Tensor, ...]) -> None:
        found[layer] = read[0]

    def keep_output(_: object, __: object, given: Tensor) -> None:
        found["tokens"] = given

    handles = [model.norm.register_forward_hook(keep_output)]
    for layer in layers:
        proj = attention_of(model, layer).proj
        handles.append(proj.register_forward_pre_hook(partial(keep_input, layer)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
