"""Features of images: pooled, or the tokens of any layer."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from vitrail.data.aspect import OwnAspect
from vitrail.data.images import ImageLike, items_of, listed
from vitrail.data.inputs import Item
from vitrail.engines.build import torch_engine
from vitrail.engines.torch_engine import TorchEngine, check_finite
from vitrail.errors import ConfigError, DataError, nearest
from vitrail.inference.runner import outputs
from vitrail.model.checks import check_layer
from vitrail.model.vit import Tokens
from vitrail.weights.bundle import Bundle

Kind = Literal["pooled", "class", "mean", "patches"]


class Embedded(NamedTuple):
    """A batch of embeddings: those that could be read, in order, and what could not, with why."""

    items: list[Item]
    vectors: np.ndarray  # float32 B D; of `patches` B N D
    bad: list[tuple[Item, str]]


def embed(
    bundle: Bundle,
    images: ImageLike | Iterable[ImageLike],
    *,
    tokens: Kind = "pooled",
    layer: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 2,
    merge: int = 0,
    aspect: bool = False,
) -> np.ndarray:
    """Give the embeddings of one image or many, N D, in their order.

    `pooled` is what the head reads, `class` the class token, `mean` the patches' mean, `patches`
    every patch token, N P D; all after the final norm. `layer` is the block that they are taken
    after, 0 the first, -1 the last, None the whole encoder; `merge` and `aspect` are as in
    `engine`. Raises `DataError` for an image that cannot be read, `ConfigError` for tokens or a
    layer that the model does not have, and `NonFiniteError` for one whose weights are broken.
    """
    runs = torch_engine(bundle, dtype, device, merge, aspect)
    found = embedded(
        runs, items_of(listed(images)), tokens, layer, batch_size=batch_size, threads=threads
    )
    parts = []
    for part in found:
        for item, reason in part.bad:
            raise DataError(f"{item.name} cannot be embedded: {reason}")
        parts.append(part.vectors)
    return np.concatenate(parts) if parts else none_of(runs, tokens, layer)


def none_of(engine: TorchEngine, tokens: Kind = "pooled", layer: int | None = None) -> np.ndarray:
    """Give the embeddings of no image, 0 D or 0 N D, as long as those of any other."""
    plain = engine.preprocess
    plain = plain.plain if isinstance(plain, OwnAspect) else plain
    blank = np.zeros((*plain.size, plain.channels), np.uint8)
    item = Item("blank", lambda: blank, in_memory=True)
    (found,) = embedded(engine, [item], tokens, layer)
    return found.vectors[:0]


def embedded(
    engine: TorchEngine,
    items: Iterable[Item],
    tokens: Kind = "pooled",
    layer: int | None = None,
    *,
    batch_size: int = 64,
    threads: int = 2,
) -> Iterator[Embedded]:
    """Give the embeddings of a stream of images, batch by batch."""
    take = _taker(engine, tokens, layer)

    def compute(images: Tensor) -> Tensor:
        return engine.apply(take, images)

    how = {"batch_size": batch_size, "threads": threads}
    for found in outputs(compute, items, engine.preprocess, engine.device, **how):
        check_finite(found.values)
        pairs = list(zip(found.items, found.errors, strict=True))
        good = [item for item, error in pairs if error is None]
        bad = [(item, error) for item, error in pairs if error is not None]
        yield Embedded(good, found.values.numpy(), bad)


def _taker(engine: TorchEngine, tokens: str, layer: int | None) -> Callable[[Tensor], Tensor]:
    """Give the function from the model's input to what is asked for; refuses what there is not."""
    model, config = engine.model, engine.model.config
    if tokens not in get_args(Kind):
        raise ConfigError(
            f'there are no tokens "{tokens}", but {", ".join(get_args(Kind))}.'
            f"{nearest(str(tokens), get_args(Kind))}"
        )
    if tokens == "class" and not config.class_token:
        raise ConfigError("this model has no class token: take pooled, mean or patches")
    if tokens == "patches" and isinstance(engine.preprocess, OwnAspect):
        raise ConfigError(
            "images at their own aspect have grids of patches of many shapes: take pooled, class "
            "or mean, or leave aspect out"
        )
    if layer is not None:
        check_layer(layer, config.depth)
    of_tokens: dict[str, Callable[[Tokens], Tensor]] = {
        "pooled": model.pool,
        "class": lambda found: found.prefix[:, 0],
        "mean": lambda found: found.patches.mean(dim=1),
        "patches": lambda found: found.patches,
    }

    def take(images: Tensor) -> Tensor:
        return of_tokens[tokens](engine.tokens(images, layer))

    return take
