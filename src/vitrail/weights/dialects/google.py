"""Google's .npz files: vit_jax (the first ViT, AugReg, SAM) and big_vision (FlexiViT, SigLIP).

google-research/vision_transformer, `vit_jax/models_vit.py`; google-research/big_vision,
`models/vit.py`, whose `fix_old_checkpoints` knows the names of the years, and NaFlex in
`models/proj/image_text/naflex_vit.py`. All forms are read as today's big_vision writes them: no
prefix, today's numbers, a folder for each block; the form that a model had comes back with it.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from math import isqrt, prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.model.config import PositionResize, ViTConfig
from vitrail.weights.dialect import HALF, Dialect, Export, Stores, Writing, plain, spell
from vitrail.weights.formats.stored import Stored
from vitrail.weights.rules import TRANSPOSED, Known, Rule, Way, from_flat, join, rule

_BLOCK, _SCANNED = "Transformer/encoderblock_{i}", "Transformer/encoderblock/"
_ATTENTION = "MultiHeadDotProductAttention_0"
_EMBEDDING = "embedding/kernel"
_PREFIXES = ("", "opt/target/", "params/", "params/img/")
_DEEPEST = 1000  # blocks; an axis that a made-up file claims must not fill the memory
# The numbers of a block's modules before flax's linen, in released files, and today.
_PRE_LINEN = (("MultiHeadDotProductAttention", 1, 0), ("LayerNorm", 2, 1), ("MlpBlock", 3, 0))
# Positions in big_vision since 2022, which adds them before the class token is there; before
# 2022; and in vit_jax.
_TABLES = (
    "pos_embedding",
    "Transformer/pos_embedding",
    "Transformer/posembed_input/pos_embedding",
)

_CORNERS = PositionResize(mode="bilinear", antialias=False, align_corners=True)  # scipy's zoom
_NAFLEX = PositionResize(mode="bilinear")


def _rows(known: Known, *kernels: Tensor) -> Tensor:
    heads = kernels[0].shape[1]
    if known.get("heads", heads) != heads:
        raise WeightsError(
            f"the arrays of attention are of {heads} heads, not of {known['heads']}: leave heads "
            "out, or take the preset that fits"
        )
    return join(*(rearrange(kernel, "D K d -> (K d) D") for kernel in kernels))


def _queries(parts: int) -> tuple[Way, Way]:
    """Give the ways of kernels, (D, K, d) each, and of biases, (K, d), of `parts` layers."""

    def split(known: Known, x: Tensor) -> tuple[Tensor, ...]:
        return rearrange(x, "(n K d) D -> n D K d", n=parts, K=known["heads"]).unbind()

    def split_bias(known: Known, x: Tensor) -> tuple[Tensor, ...]:
        return rearrange(x, "(n K d) -> n K d", n=parts, K=known["heads"]).unbind()

    biases = Way(lambda known, *xs: join(*(x.flatten() for x in xs)), split_bias)
    return Way(_rows, split), biases


def _attention(ours: str, theirs: str, *names: str) -> Iterator[Rule]:
    for part, theirs_part, way in zip(
        ("weight", "bias"), ("kernel", "bias"), _queries(len(names)), strict=True
    ):
        yield rule(f"{ours}.{part}", tuple(f"{theirs}/{n}/{theirs_part}" for n in names), way)


def _dense(ours: str, theirs: str, way: Way = TRANSPOSED) -> Iterator[Rule]:
    yield rule(f"{ours}.weight", f"{theirs}/kernel", way)
    yield rule(f"{ours}.bias", f"{theirs}/bias")


def _norm(ours: str, theirs: str) -> Iterator[Rule]:
    yield rule(f"{ours}.weight", f"{theirs}/scale")
    yield rule(f"{ours}.bias", f"{theirs}/bias")


def _convolution(known: Known, kernel: Tensor) -> Tensor:
    """Read a kernel (s1, s2, C, D), or NaFlex's matrix (s1 s2 C, D)."""
    if kernel.ndim == 2:
        return from_flat(known, kernel.mT)
    return rearrange(kernel, "s1 s2 C D -> D C s1 s2")


_KERNEL = Way(_convolution, lambda known, x: rearrange(x, "D C s1 s2 -> s1 s2 C D"))
_OUT = Way(
    lambda known, x: rearrange(x, "K d D -> D (K d)"),
    lambda known, x: rearrange(x, "D (K d) -> K d D", K=known["heads"]),
)
# (1, N, D), or NaFlex's (h, w, D)
_GRID = Way(lambda known, x: x.reshape(1, -1, x.shape[-1]), lambda known, x: x)


def _arrange(stores: Stores) -> tuple[Stores, dict[str, Any]]:
    """Take off the prefix, cut arrays of all blocks, and note what the form was."""
    prefixes = [n.removesuffix(_EMBEDDING) for n in stores if _is_embedding(n)]
    if not prefixes:
        return stores, {}
    # An optimizer's moments have the same names under a prefix of their own.
    prefix = min(prefixes, key=lambda p: (p not in _PREFIXES, len(p)))
    bare: dict[str, Stored] = {}
    for name, stored in stores.items():
        short = name.removeprefix(prefix)
        if short in bare:
            raise WeightsError(f'there is "{short}" twice, with "{prefix}" before it and without')
        bare[short] = stored
    layout = {
        "prefix": prefix,
        "pre_linen": any(re.search(r"encoderblock\w*/LayerNorm_2/", name) for name in bare),
        "scanned": any(name.startswith(_SCANNED) for name in bare),
        "table": next((name for name in _TABLES if name in bare), _TABLES[0]),
        "map_head": "" if "probe" in bare else "MAPHead_0/",
        "naflex": len(bare[_EMBEDDING].shape) == 2,
    }
    found: dict[str, Stored] = {}
    for name, stored in bare.items():
        if name.startswith(_SCANNED) and stored.shape and stored.shape[0] <= _DEEPEST:
            for i, part in enumerate(_slices(stored)):
                found[name.replace(_SCANNED, _BLOCK.format(i=i) + "/")] = part
        else:
            found[name] = stored
    return found, layout


def _is_embedding(name: str) -> bool:
    return name == _EMBEDDING or name.endswith(f"/{_EMBEDDING}")


def _slices(whole: Stored) -> list[Stored]:
    """Cut an array of all blocks, which is read once for all of them; each slice is given once."""
    waiting: dict[int, Tensor] = {}

    def read(block: int) -> Tensor:
        if block not in waiting:
            waiting.update((i, part.clone()) for i, part in enumerate(whole.read()))
        return waiting.pop(block)

    return [Stored(whole.shape[1:], whole.dtype, partial(read, i)) for i in range(whole.shape[0])]


def _tells(stores: Stores, known: Mapping[str, Any]) -> dict[str, Any]:
    """Give the heads, an axis of their own, what has positions, and NaFlex's rule for these."""
    told: dict[str, Any] = {}
    query = stores.get(f"{_BLOCK.format(i=0)}/{_ATTENTION}/query/kernel")
    if query is not None and len(query.shape) == 3:
        told |= {"heads": query.shape[1], "head_width": query.shape[2]}
    if "cls" in stores and "prefix_positions" not in known and _TABLES[0] in stores:
        rows = prod(stores[_TABLES[0]].shape[:-1])
        patches = _patches(stores[_EMBEDDING].shape, known.get("image_size"))
        # big_vision gives the class token no row, but in tables that it took over from before.
        square = rows > 0 and isqrt(rows - 1) ** 2 == rows - 1
        told["prefix_positions"] = rows - patches if rows - patches in (0, 1) else int(square)
    elif "cls" in stores and "prefix_positions" not in known:
        told["prefix_positions"] = 1
    if _EMBEDDING in stores and len(stores[_EMBEDDING].shape) == 2:
        told["position_resize"] = _NAFLEX
    return told


def _patches(kernel: tuple[int, ...], size: tuple[int, int] | None) -> int:
    """Give the patches of an image size that was spoken of; -1 where there is none."""
    if size is None or len(kernel) != 4 or 0 in kernel:
        return -1
    return (size[0] // kernel[0]) * (size[1] // kernel[0])


def _export(model: Writing) -> Export:
    """Write the form that the model came in, else vit_jax's or, without its class row, today's."""
    config = model.config
    vit_jax = config.positions == "learned" and config.prefix_positions == 1
    layout = model.kept.get("layout") or {
        "prefix": "",
        "pre_linen": vit_jax,
        "scanned": False,
        "table": _TABLES[2 if vit_jax else 0],
        "map_head": "MAPHead_0/",
        "naflex": config.position_resize == _NAFLEX,
    }
    written = dict(model.tensors)
    if layout["naflex"]:
        written[_EMBEDDING] = written[_EMBEDDING].flatten(0, 2)
        table = written["pos_embedding"]
        written["pos_embedding"] = rearrange(table, "1 (h w) D -> h w D", h=config.grid[0])
    if layout["scanned"]:
        for name in [n for n in written if n.startswith(_BLOCK.format(i=0) + "/")]:
            names = [name.replace("_0/", f"_{i}/", 1) for i in range(config.depth)]
            blocks = [written.pop(one) for one in names]
            written[name.replace(_BLOCK.format(i=0) + "/", _SCANNED)] = torch.stack(blocks)
    spellings = [
        ("^pos_embedding$", layout["table"]),
        ("^MAPHead_0/", layout["map_head"]),
        *(_numbers(name, new, old) for name, old, new in _PRE_LINEN if layout["pre_linen"]),
    ]
    return Export(
        tensors={layout["prefix"] + spell(n, spellings): tensor for n, tensor in written.items()}
    )


def _numbers(module: str, old: int, new: int) -> tuple[str, str]:
    return rf"^(Transformer/encoderblock\w*)/{module}_{old}/", rf"\1/{module}_{new}/"


def _holds(config: ViTConfig) -> dict[str, Any]:
    """Give what vit_jax and big_vision can run: a class token is there to be pooled by."""
    learned, square = config.positions == "learned", config.grid[0] == config.grid[1]
    naflex = learned and square and not config.class_token
    rows = (1, 0) if config.class_token else 0
    return {
        **plain(config),
        "activation": "gelu_tanh",
        "class_token": config.class_token,
        "positions": ("learned", "sincos"),
        "prefix_positions": rows if learned else config.prefix_positions,
        "position_resize": (_CORNERS, _NAFLEX) if naflex else _CORNERS,
        "pre_logits": (False, True),
        "pooling": "cls" if config.class_token else ("mean", "map"),
    }


GOOGLE = Dialect(
    name="google",
    variant="vit_jax, big_vision",
    marks=lambda stores: any(_is_embedding(name) for name in stores),
    rules=(
        rule("cls_token", "cls"),
        *(rule("pos_embed", name, _GRID) for name in _TABLES),
        *_dense("patch_embed.proj", "embedding", _KERNEL),
        *_norm("blocks.{i}.norm1", f"{_BLOCK}/LayerNorm_0"),
        *_attention("blocks.{i}.attn.qkv", f"{_BLOCK}/{_ATTENTION}", "query", "key", "value"),
        *_dense("blocks.{i}.attn.proj", f"{_BLOCK}/{_ATTENTION}/out", _OUT),
        *_norm("blocks.{i}.norm2", f"{_BLOCK}/LayerNorm_1"),
        *_dense("blocks.{i}.mlp.fc1", f"{_BLOCK}/MlpBlock_0/Dense_0"),
        *_dense("blocks.{i}.mlp.fc2", f"{_BLOCK}/MlpBlock_0/Dense_1"),
        *_norm("norm", "Transformer/encoder_norm"),
        rule("attn_pool.latent", "MAPHead_0/probe"),
        *_attention("attn_pool.q", f"MAPHead_0/{_ATTENTION}", "query"),
        *_attention("attn_pool.kv", f"MAPHead_0/{_ATTENTION}", "key", "value"),
        *_dense("attn_pool.proj", f"MAPHead_0/{_ATTENTION}/out", _OUT),
        *_norm("attn_pool.norm", "MAPHead_0/LayerNorm_0"),
        *_dense("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),
        *_dense("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),
        *_dense("pre_logits", "pre_logits"),
        *_dense("head", "head"),
    ),
    spellings=(
        *(_numbers(*numbers) for numbers in _PRE_LINEN),
        # The MAP head stood at the top while ViT-G was made.
        (rf"^(probe$|LayerNorm_0/|{_ATTENTION}/|MlpBlock_0/)", r"MAPHead_0/\1"),
    ),
    leave=(
        ("params/txt/.*", "the text tower"),
        ("params/[tb]", "temperature and bias of the loss"),
        ("opt/(?!target/).*", "the optimizer's state"),
    ),
    home={
        "norm_eps": 1e-6,
        "activation": "gelu_tanh",
        "pooling": "cls",
        "position_resize": _CORNERS,
    },
    preprocess=lambda config: HALF,
    tells=_tells,
    arrange=_arrange,
    holds=_holds,
    export=_export,
)
