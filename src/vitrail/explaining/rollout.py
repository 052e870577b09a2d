"""Rollout: what each patch has become a part of, attention through all layers, for many images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vitrail.data.decode import Jpeg
from vitrail.engines.torch_engine import pick_device
from vitrail.explaining.attention import Layer, Rollout, Rows, readout, watching
from vitrail.explaining.choices import Asked, ask
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

_AT_ONCE = 8  # images in a pass: their attention is written out, B K N N in each layer


@torch.inference_mode()
def rollout(model: ViT, images: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """Give the rollout of each query, or of what the head reads, B Q N, and the logits."""
    flows, pooling = Rollout(asked.heads), Rows(asked.heads, [])
    pools = model.attn_pool is not None and not asked.queries
    pool: list[Layer] = ["pool"] if pools else []
    with watching(model, asked.layers, flows), watching(model, pool, pooling):
        logits = model(images)
    assert flows.flow is not None
    flow = flows.flow  # B N N
    if asked.queries:
        parts = [flow[:, list(tokens)].mean(dim=1) for tokens in asked.tokens]
        return torch.stack(parts, dim=1), logits
    if pools:
        return pooling.maps["pool"].mean(dim=1) @ flow[:, model.config.prefix :], logits
    return readout(model, flow.shape[-1]).to(flow)[None] @ flow, logits


def rollouts(
    bundle: Bundle, pictures: Sequence[Jpeg | np.ndarray], device: str = "auto"
) -> Iterator[np.ndarray]:
    """Give the rollout of what the head reads for each opened image, h w: that of `explain`.

    Raises `DataError` for an image that cannot be read.
    """
    config, preprocess = bundle.model.config, bundle.preprocess
    h, w = (side // config.patch_size for side in preprocess.size)
    asked = ask(config, bundle.labels, (h, w), "rollout", None, None, None, None, "grey", 1)
    where = pick_device(device)
    model = bundle.model.to(where).eval()
    for start in range(0, len(pictures), _AT_ONCE):
        pixels = np.stack([preprocess.pixels(p) for p in pictures[start : start + _AT_ONCE]])
        rows, _ = rollout(model, preprocess.normalize(torch.from_numpy(pixels).to(where)), asked)
        patches = rows.mean(dim=1)[:, -h * w :].float().cpu()
        yield from rearrange(patches, "b (h w) -> b h w", h=h).numpy()
