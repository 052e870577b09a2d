"""Gradients that divide an answer among what it was made of.

Ali et al. 2022, "XAI for Transformers: Better Explanations through Conservative Propagation"
(arXiv:2202.07304): a gradient says how an answer would change with its input, not what it is made
of. Where attention weights, and the deviation that a LayerNorm divides by, are held as constants,
what comes back through both adds up to what went forward, but for biases. It is layer-wise
relevance propagation (LRP), by autograd.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from vitrail.model.vit import AttentionPooling, MultiHeadAttention, ViT


@contextmanager
def conserving(model: ViT) -> Iterator[None]:
    """Let gradients pass attention through its values alone, and LayerNorms as if they were linear.

    What the model answers is the same up to rounding.
    """
    handles = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            handles.append(module.register_forward_hook(_linear))
        elif isinstance(module, MultiHeadAttention | AttentionPooling):
            made = module.qkv if isinstance(module, MultiHeadAttention) else module.kv
            handles.append(made.register_forward_hook(partial(_values_alone, module.proj)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _linear(norm: nn.LayerNorm, read: tuple[Tensor], _: Tensor) -> Tensor:
    """Give what a LayerNorm gives, with its deviation as a constant."""
    (x,) = read
    deviation = (x.detach().var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
    return (x - x.mean(dim=-1, keepdim=True)) / deviation * norm.weight + norm.bias


def _values_alone(proj: nn.Linear, _: nn.Linear, read: tuple[Tensor], given: Tensor) -> Tensor:
    """Give q, k and v side by side, or k and v, with all but v, the last, as a constant."""
    width = proj.in_features
    return torch.cat([given[..., :-width].detach(), given[..., -width:]], dim=-1)
