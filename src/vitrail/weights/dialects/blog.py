"""The blog post's own model: the state dict of its `Sequential` of patches, encoder and head.

Its attention divides by the square root of the whole width, where ours divides the scores by that
of a head's: a factor on the rows of q (and of v) makes the two the same. Two variants go round
that only their code tells apart: `blog` divides the scores before the softmax, and
`blog-after-softmax`, asked for by name, divides what the softmax gave.
"""

from collections.abc import Callable
from typing import Any

from einops import rearrange
from torch import Tensor

from vitrail.model.config import ViTConfig
from vitrail.weights.dialect import Dialect, Export, Stores, Writing, has, plain
from vitrail.weights.rules import FLAT, ROWS, Known, Rule, Way, from_flat, join, layer, rule

# What q and v of the post are multiplied by to be ours.
Factors = Callable[[Known], tuple[float, float]]

_LINEAR, _CONVOLUTION = "0.projection.1", "0.projection.0"
_ATTENTION, _MLP = "1.{i}.0.fn", "1.{i}.1.fn"
_PARTS = ("queries", "keys", "values")


def _before_softmax(known: Known) -> tuple[float, float]:
    return (known["head_width"] / known["width"]) ** 0.5, 1.0


def _after_softmax(known: Known) -> tuple[float, float]:
    return known["head_width"] ** 0.5, known["width"] ** -0.5


def _separate(factors: Factors) -> Way:
    """Give the way of three layers, as the post's first version has them."""

    def read(known: Known, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not q.is_meta:  # while only shapes are asked for, nobody knows the heads
            of_q, of_v = factors(known)
            q, v = _times(q, of_q), _times(v, of_v)
        return join(q, k, v)

    def write(known: Known, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = x.chunk(3)
        of_q, of_v = factors(known)
        return _times(q, 1 / of_q), k, _times(v, 1 / of_v)

    return Way(read, write)


def _fused(factors: Factors) -> Way:
    """Give the way of one layer, in whose rows q, k and v of each unit lie side by side."""
    way = _separate(factors)
    return Way(
        lambda known, x: way.read(known, *rearrange(x, "(d qkv) ... -> qkv d ...", qkv=3)),
        lambda known, x: rearrange(list(way.write(known, x)), "qkv d ... -> (d qkv) ..."),
    )


def _times(x: Tensor, factor: float) -> Tensor:
    """Multiply in double precision: there and back is one unit in the last place at most."""
    return (x.double() * factor).to(x.dtype)


def _rules(factors: Factors) -> tuple[Rule, ...]:
    def qkv(way: Way, *names: str) -> list[Rule]:
        return [
            rule(
                f"blocks.{{i}}.attn.qkv.{part}",
                tuple(f"{_ATTENTION}.1.{name}.{part}" for name in names),
                way,
            )
            for part in ("weight", "bias")
        ]

    return (
        rule("cls_token", "0.cls_token"),
        rule("pos_embed", "0.positions", ROWS),
        *layer("patch_embed.proj", _LINEAR, FLAT),
        *layer("patch_embed.proj", _CONVOLUTION),
        *layer("blocks.{i}.norm1", f"{_ATTENTION}.0"),
        *qkv(_fused(factors), "qkv"),
        *qkv(_separate(factors), *_PARTS),
        *layer("blocks.{i}.attn.proj", f"{_ATTENTION}.1.projection"),
        *layer("blocks.{i}.norm2", f"{_MLP}.0"),
        *layer("blocks.{i}.mlp.fc1", f"{_MLP}.1.0"),
        *layer("blocks.{i}.mlp.fc2", f"{_MLP}.1.3"),
        *layer("fc_norm", "2.1"),
        *layer("head", "2.2"),
    )


def _arrange(stores: Stores) -> tuple[Stores, dict[str, Any]]:
    return stores, {
        "convolution": f"{_CONVOLUTION}.weight" in stores,
        "separate": f"{_ATTENTION}.1.queries.weight".replace("{i}", "0") in stores,
    }


def _export(model: Writing) -> Export:
    """Write linear layers for patches and for qkv, or what the model came with."""
    layout = model.kept.get("layout", {})
    written: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        if layout.get("convolution") and name == f"{_LINEAR}.weight":
            kernel = from_flat({"channels": model.config.channels}, tensor)
            written[f"{_CONVOLUTION}.weight"] = kernel.contiguous()
        elif layout.get("convolution") and name == f"{_LINEAR}.bias":
            written[f"{_CONVOLUTION}.bias"] = tensor
        elif layout.get("separate") and ".qkv." in name:
            for place, part in enumerate(_PARTS):
                written[name.replace("qkv", part)] = tensor[place::3].contiguous()
        else:
            written[name] = tensor
    return Export(tensors=written)


def _holds(config: ViTConfig) -> dict[str, Any]:
    return {
        **plain(config),
        "norm_eps": 1e-5,
        "prefix_positions": int(config.class_token),
        "final_norm": "pooled",
        "pooling": "mean_all",
    }


def _dialect(name: str, variant: str, factors: Factors, asked_for: bool = False) -> Dialect:
    return Dialect(
        name=name,
        variant=variant,
        marks=has(r"0\.cls_token", r"0\.positions", r"1\.0\.0\.fn\.0\.weight"),
        asked_for=asked_for,
        rules=_rules(factors),
        home={"norm_eps": 1e-5, "activation": "gelu", "pooling": "mean_all"},
        # Compose([Resize((224, 224)), ToTensor()])
        preprocess=lambda config: {
            "resize": "square",
            "interpolation": "bilinear",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        },
        arrange=_arrange,
        holds=_holds,
        export=_export,
    )


BLOG = _dialect("blog", "the blog post", _before_softmax)
BLOG_AFTER_SOFTMAX = _dialect(
    "blog-after-softmax", "the blog post's older variant", _after_softmax, asked_for=True
)
