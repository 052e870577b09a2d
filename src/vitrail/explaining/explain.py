"""`vitrail.explain`: what in an image a model's answer rests on, as a map of its patches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vitrail.data.decode import Jpeg
from vitrail.data.images import ImageLike, open_any
from vitrail.engines.torch_engine import check_finite, pick_device
from vitrail.errors import ConfigError
from vitrail.explaining.attention import Layer, Rows, watching
from vitrail.explaining.choices import Asked, Method, Query, ask
from vitrail.explaining.faithfulness import Faithfulness, faithfulness
from vitrail.explaining.hiding import Fill
from vitrail.explaining.occlusion import occlusion
from vitrail.explaining.relevance import relevance
from vitrail.explaining.rollout import rollout
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Explanation:
    """Maps over the patches of an image; their last axes, h w, are the grid.

    | method | `maps` are | and are |
    |---|---|---|
    | attention | L K Q h w | the share of a query's look that a patch has, 0 .. 1 |
    | rollout | Q h w | the share of a patch in what a query has become, 0 .. 1 |
    | relevance | h w | how much a patch speaks for the class, 0 .. |
    | occlusion | h w | what hiding a patch costs the class, in nats; below 0 it helps |

    `prefix` has the same axes but P for h w: what class, distillation and register tokens have, for
    the first three. Its patches and its prefix together, a row of attention or rollout sums to 1.
    """

    method: Method
    maps: np.ndarray
    prefix: np.ndarray
    probabilities: np.ndarray  # of each class; empty for a model without classes
    target: int | None  # the class that is explained; None without classes
    label: str | None  # its name
    faithfulness: Faithfulness | None  # where asked for
    layers: tuple[Layer, ...]
    heads: tuple[int, ...]
    queries: tuple[Query, ...]  # empty: what the head reads
    image: np.ndarray  # H W C, uint8, upright, as it was given
    pixels: np.ndarray  # H W C, uint8, as the model saw it
    seen: tuple[float, float, float, float]  # top, left, bottom, right of `pixels` in `image`

    @property
    def map(self) -> np.ndarray:
        """One map, h w: the mean of all."""
        return self.maps.mean(axis=tuple(range(self.maps.ndim - 2)))

    def to_json(self) -> dict[str, Any]:
        """Give what is no array as plain values."""
        target = None
        if self.target is not None:
            probability = float(self.probabilities[self.target])
            target = {"label": self.label, "index": self.target, "probability": probability}
        return {
            "method": self.method,
            "target": target,
            "faithfulness": self.faithfulness and self.faithfulness.to_json(),
            "grid": list(self.maps.shape[-2:]),
            "layers": list(self.layers),
            "heads": list(self.heads),
            "queries": [q if isinstance(q, str) else list(q) for q in self.queries],
        }


def explain(
    bundle: Bundle,
    image: ImageLike | Jpeg,
    method: Method = "rollout",
    target: str | int | None = None,
    layers: Sequence[int | Literal["pool"]] | None = None,
    heads: Sequence[int] | None = None,
    queries: Sequence[Query] | None = None,
    *,
    measure: bool = False,
    fill: Fill = "grey",
    batch_size: int = 32,
    device: str = "auto",
) -> Explanation:
    """Explain a model's answer for one image, in any form that `predict` takes.

    - `attention`: each head of `layers` (the last; `"pool"` of a model that pools by attention)
      for each of `queries`: `"class"` (else `"patches"`, the mean of their rows), `"register-0"`,
      `(row, column)` of a patch ...
    - `rollout` (Abnar & Zuidema 2020): attention through all layers, of `queries`, else of what
      the head reads
    - `relevance` (Chefer, Gur & Wolf 2021; Ali et al. 2022): attention weighted with its gradient,
      for `target`
    - `occlusion` (Zeiler & Fergus 2014): windows of patches hidden, in grey or blurred (`fill`),
      for `target`

    `target` is a class by name or index, else the likeliest. `measure` adds the deletion and the
    insertion area against a random order, which takes up to 170 forward passes. Layers and heads
    count from 0, or from the end; `ConfigError` for one that there is not, `DataError` for an
    image that cannot be read, `NonFiniteError` for a model whose weights are broken.
    """
    config, preprocess = bundle.model.config, bundle.preprocess
    h, w = (side // config.patch_size for side in preprocess.size)
    asked = ask(
        config, bundle.labels, (h, w), method, target, layers, heads, queries, fill, batch_size
    )
    if measure and not bundle.labels:
        raise ConfigError("measure needs a class, and this model has none (classes 0)")
    where = pick_device(device)
    model = bundle.model.to(where).eval()
    picture = open_any(image)
    pixels = preprocess.pixels(picture)
    ready = preprocess.normalize(torch.from_numpy(pixels)[None].to(where))

    rows, logits = _FOUND_BY[asked.method](model, ready, asked)
    check_finite(logits)
    best = int(logits.argmax()) if asked.target is None else asked.target
    prefix, patches = rows.float().cpu().split([rows.shape[-1] - h * w, h * w], dim=-1)
    maps = rearrange(patches, "... (h w) -> ... h w", h=h)
    figure = None
    if measure:
        one = maps.reshape(-1, h, w).mean(dim=0)
        figure = faithfulness(model, ready[0], one, best, batch_size=batch_size)
    whole = picture.pixels() if isinstance(picture, Jpeg) else picture
    return Explanation(
        method=asked.method,
        maps=maps.numpy(),
        prefix=prefix.numpy(),
        probabilities=logits.float().softmax(dim=0).cpu().numpy()[: len(bundle.labels)],
        target=best if bundle.labels else None,
        label=bundle.labels[best] if bundle.labels else None,
        faithfulness=figure,
        layers=asked.layers,
        heads=asked.heads,
        queries=asked.queries,
        image=whole,
        pixels=np.moveaxis(pixels, 0, -1),
        seen=preprocess.seen(*whole.shape[:2]),
    )


@torch.inference_mode()
def _attention(model: ViT, images: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """Give attention, L K Q N, and the logits of the one image."""
    rows = Rows(asked.heads, asked.tokens)
    with watching(model, asked.layers, rows):
        logits = model(images)
    return torch.stack([rows.maps[layer][0] for layer in asked.layers]), logits[0]


def _rollout(model: ViT, images: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """Give the rollout of each query, or of what the head reads, Q N, and the logits."""
    rows, logits = rollout(model, images, asked)
    return rows[0], logits[0]


def _relevance(model: ViT, images: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """Give the relevance of each token, N, and the logits."""
    blocks = [layer for layer in asked.layers if layer != "pool"]
    rows, logits = relevance(model, images, asked.target, blocks, asked.heads)
    return rows[0], logits[0]


@torch.inference_mode()
def _occlusion(model: ViT, images: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """Give what hiding each patch costs, N without prefix, and the logits."""
    logits = model(images)[0]
    best = int(logits.argmax()) if asked.target is None else asked.target
    found = occlusion(model, images[0], best, asked.fill, asked.batch_size)
    return found.flatten(), logits


_FOUND_BY: dict[Method, Callable[[ViT, Tensor, Asked], tuple[Tensor, Tensor]]] = {
    "attention": _attention,
    "rollout": _rollout,
    "relevance": _relevance,
    "occlusion": _occlusion,
}
