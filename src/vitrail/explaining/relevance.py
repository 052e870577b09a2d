"""Relevance: which tokens speak for a class, by attention weighted with its gradient.

Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability" (arXiv:2103.15679). With A a
layer's attention and y the class's logit, what each query takes from each token for the class is
(equation 5)

    C = mean over heads of (dy/dA * A)^+

and a token's relevance is the sum of its columns: over all queries, of all layers. That departs
from the paper twice.

- dy/dA is the conservative gradient of Ali et al. 2022 (`propagation`): the plain one says how the
  logit would change, not what it is made of. LRP did the like in the authors' CVPR paper of the
  same year (arXiv:2012.09838), by rules of its own for each layer.
- The paper chains the layers, R = R + C R from R = 1 (equation 6), and reads the class token's row.
  But dy/dA at a query holds already what later layers make of it, and in a product of two C it
  stands twice. What a patch gives to others, for the class token to read there, all but vanishes
  beside what it gives at once, and a temperature, which changes no answer, changes the map. The
  sum has neither fault. It too takes a token for its own patch in every layer.

`benchmarks/faithfulness.py` measures both rules, docs/faithfulness.md has the figures. Axes as in
`attention`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vitrail.explaining.attention import Layer, attention_of, of_heads, watching, weights
from vitrail.explaining.propagation import conserving
from vitrail.model.vit import ViT


def relevance(
    model: ViT, images: Tensor, target: int | None, layers: Sequence[int], heads: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Give the relevance of each token for a class, B N, and the logits, B classes.

    The class is `target`, else each image's likeliest. Attention pooling is one more layer, whose
    one query looks at patches alone.
    """
    with conserving(model):
        taken, logits = taken_for(model, images, target, layers, heads)
    found = [
        F.pad(each.sum(dim=1), (model.config.prefix, 0)) if layer == "pool" else each.sum(dim=1)
        for layer, each in taken
    ]
    return torch.stack(found).sum(dim=0), logits


def taken_for(
    model: ViT, images: Tensor, target: int | None, layers: Sequence[int], heads: Sequence[int]
) -> tuple[Iterator[tuple[Layer, Tensor]], Tensor]:
    """Give each layer with the mean over heads of (dy/dA * A)^+, B Q N, and the logits, B classes.

    One layer's attention is written out at a time, as the layers are asked for.
    """
    pooling: list[Layer] = ["pool"] if model.attn_pool is not None else []
    watched = [*layers, *pooling]
    attended: dict[Layer, tuple[Tensor, Tensor, Tensor, Tensor | None]] = {}

    def watch(layer: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        q, k, mask = of_heads(heads, q.detach(), k.detach(), mask)
        attended[layer] = q, k, v.detach()[:, heads], mask

    with torch.enable_grad(), given(model, watched) as out:
        with watching(model, watched, watch):
            # A model whose weights are frozen has a graph only where its input asks for one.
            logits = model.logits(model.tokens(images.detach().requires_grad_()))
        best = logits.argmax(dim=1) if target is None else torch.full((len(logits),), target)
        score = logits[range(len(logits)), best].sum()
        slopes = dict(zip(out, torch.autograd.grad(score, list(out.values())), strict=True))

    def taken(layer: Layer) -> Tensor:
        q, k, v, mask = attended[layer]
        # A layer gives A v, so that dy/dA is dy/d(A v) v^T: no kernel has to keep A.
        slope = rearrange(slopes[layer], "b q (k d) -> b k q d", d=v.shape[-1])[:, heads]
        return (weights(q, k, mask) * (slope @ v.mT)).clamp_min(0).mean(dim=1)

    return ((layer, taken(layer)) for layer in watched), logits.detach()


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
