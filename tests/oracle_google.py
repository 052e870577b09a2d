"""Google's .npz: vit_jax and big_vision, old and new numbering, one array a block or one for all.

timm's model with JAX's tanh GELU is the oracle. Arrays are written from its weights; where timm's
reader knows the form, `test_dialects.py` shows that it reads the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor, nn

from conftest import randomize
from oracle_timm import SIZES
from oracles import (
    CLASSES,
    DEPTH,
    HEADS,
    NATIVE,
    PATCH,
    SQUARE,
    WIDTH,
    Answer,
    Build,
    Oracle,
    Size,
)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One of the layouts in which such files are found."""

    prefix: str = ""
    released: bool = True  # numbering of 2020; what today's flax writes has 0, 1, 0
    scanned: bool = False  # all blocks in one, the depth its first axis
    table: str = "Transformer/posembed_input/pos_embedding"
    half: bool = False
    pre_logits: bool = False
    text: bool = False  # a text tower beside the image tower


def vision_transformer(size: Size, switches: dict[str, Any]) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**{**SIZES, "img_size": size, "act_layer": "gelu_tanh", **switches})


def attention(names: Mapping[str, Any]) -> Arrays:
    """Split rows, K d D, into (D, K, d) and columns of the output into (K, d, D)."""
    arrays: Arrays = {}
    for name, (weight, bias) in names.items():
        if name == "out":
            arrays["out/kernel"] = weight.T.reshape(HEADS, -1, len(bias)).numpy()
            arrays["out/bias"] = bias.numpy()
        else:
            arrays[f"{name}/kernel"] = weight.T.reshape(weight.shape[1], HEADS, -1).numpy()
            arrays[f"{name}/bias"] = bias.reshape(HEADS, -1).numpy()
    return arrays


def pair(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def dense(weights: Mapping[str, Tensor], name: str) -> Arrays:
    weight, bias = pair(weights, name)
    return {"kernel": weight.T.numpy(), "bias": bias.numpy()}


def norm(weights: Mapping[str, Tensor], name: str) -> Arrays:
    weight, bias = pair(weights, name)
    return {"scale": weight.numpy(), "bias": bias.numpy()}


def under(folder: str, arrays: Arrays) -> Arrays:
    return {f"{folder}/{name}": array for name, array in arrays.items()}


def block(weights: Mapping[str, Tensor], i: int, released: bool) -> Arrays:
    at = f"blocks.{i}."
    mha, second, mlp = (1, 2, 3) if released else (0, 1, 0)
    thirds = zip(*(t.chunk(3) for t in pair(weights, f"{at}attn.qkv")), strict=True)
    names: dict[str, Any] = dict(zip(("query", "key", "value"), thirds, strict=True))
    names["out"] = pair(weights, f"{at}attn.proj")
    return {
        **under("LayerNorm_0", norm(weights, f"{at}norm1")),
        **under(f"LayerNorm_{second}", norm(weights, f"{at}norm2")),
        **under(f"MultiHeadDotProductAttention_{mha}", attention(names)),
        **under(f"MlpBlock_{mlp}/Dense_0", dense(weights, f"{at}mlp.fc1")),
        **under(f"MlpBlock_{mlp}/Dense_1", dense(weights, f"{at}mlp.fc2")),
    }


def map_head(weights: Mapping[str, Tensor]) -> Arrays:
    at = "attn_pool."
    halves = zip(*(t.chunk(2) for t in pair(weights, f"{at}kv")), strict=True)
    names: dict[str, Any] = dict(zip(("key", "value"), halves, strict=True))
    names |= {"query": pair(weights, f"{at}q"), "out": pair(weights, f"{at}proj")}
    return {
        "probe": weights[f"{at}latent"].numpy(),
        **under("MultiHeadDotProductAttention_0", attention(names)),
        **under("LayerNorm_0", norm(weights, f"{at}norm")),
        **under("MlpBlock_0/Dense_0", dense(weights, f"{at}mlp.fc1")),
        **under("MlpBlock_0/Dense_1", dense(weights, f"{at}mlp.fc2")),
    }


def arrays_of(weights: Mapping[str, Tensor], form: Form) -> Arrays:
    kernel, bias = pair(weights, "patch_embed.proj")
    arrays: Arrays = {
        "embedding/kernel": kernel.permute(2, 3, 1, 0).numpy(),
        "embedding/bias": bias.numpy(),
        form.table: weights["pos_embed"].numpy(),
        **under("Transformer/encoder_norm", norm(weights, "norm")),
    }
    blocks = [block(weights, i, form.released) for i in range(DEPTH)]
    if form.scanned:
        stacked = {name: np.stack([b[name] for b in blocks]) for name in blocks[0]}
        arrays |= under("Transformer/encoderblock", stacked)
    else:
        for i, one in enumerate(blocks):
            arrays |= under(f"Transformer/encoderblock_{i}", one)
    if "cls_token" in weights:
        arrays["cls"] = weights["cls_token"].numpy()
    if "attn_pool.latent" in weights:
        arrays |= under("MAPHead_0", map_head(weights))
    for name in ("head", "pre_logits"):
        if f"{name}.weight" in weights:
            arrays |= under(name, dense(weights, name))
    if form.half:  # numpy knows no bfloat16: files hold raw bytes
        arrays = {
            name: torch.from_numpy(array.copy()).bfloat16().view(torch.int16).numpy().view("V2")
            for name, array in arrays.items()
        }
    arrays = {form.prefix + name: array for name, array in arrays.items()}
    if form.text:
        arrays["params/txt/head/kernel"] = np.zeros((4, 5), np.float32)
        arrays["params/t"], arrays["params/b"] = np.zeros(1, np.float32), np.zeros(1, np.float32)
    return arrays


def answer(weights: Mapping[str, Tensor], switches: dict[str, Any], images: Tensor) -> Answer:
    """Answer at any image size, by vit_jax's own rule: scipy's zoom of order 1 on each axis."""
    size = (images.shape[2], images.shape[3])
    model = vision_transformer(size, switches).eval().to(images.dtype)
    state = {key: tensor for key, tensor in weights.items() if "pre_logits" not in key}
    rows = model.pos_embed.shape[1]
    if rows != state["pos_embed"].shape[1]:
        side = SQUARE[0] // PATCH
        prefix = state["pos_embed"].shape[1] - side**2
        table = state["pos_embed"][:, prefix:].reshape(side, side, WIDTH).numpy()
        factors = (size[0] // PATCH / side, size[1] // PATCH / side, 1)
        larger = torch.from_numpy(zoom(table, factors, order=1)).reshape(1, -1, WIDTH)
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :prefix], larger], dim=1)
    model.load_state_dict(state)
    tokens = model.forward_features(images)
    pooled = model.forward_head(tokens, pre_logits=True)
    if "pre_logits.weight" in weights:
        pooled = torch.tanh(nn.functional.linear(pooled, *pair(weights, "pre_logits")))
    return Answer(model.head(pooled), tokens)


def write(arrays: Arrays, folder: Path) -> Path:
    np.savez(folder / "weights.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return folder / "weights.npz"


def build(
    dtype: torch.dtype, *, form: Form = Form(), size: Size = NATIVE, **switches: Any
) -> Oracle:
    model = randomize(vision_transformer(size, switches))
    if form.half:
        model = model.bfloat16()
    weights = model.to(dtype).state_dict()
    if form.pre_logits:
        weights["pre_logits.weight"] = torch.randn(WIDTH, WIDTH, dtype=dtype) / WIDTH**0.5
        weights["pre_logits.bias"] = torch.randn(WIDTH, dtype=dtype)
    native = {} if size == SQUARE else {"image_size": size}
    return Oracle(
        dialect="google",
        write=partial(write, arrays_of(weights, form)),
        answer=partial(answer, weights, switches),
        size=size,
        others=(NATIVE, (64, 80)) if size == SQUARE else (),
        given=native,  # heads are an axis of their own
        config={"heads": HEADS, "activation": "gelu_tanh", "norm_eps": 1e-6},
        bare=bare,
    )


def bare(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the arrays of any form under the names of big_vision, one for each block."""
    found: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if name.startswith("params/txt/") or name in ("params/t", "params/b"):
            continue
        name = re.sub(r"^(opt/target/|params/img/|params/)", "", name)
        name = re.sub(r"^Transformer/(posembed_input/)?pos_embedding", "pos_embedding", name)
        for old, new in (
            ("Attention_1", "Attention_0"),
            ("Norm_2", "Norm_1"),
            ("Block_3", "Block_0"),
        ):
            name = name.replace(old, new)
        if "encoderblock/" in name:
            parts = {
                name.replace("encoderblock", f"encoderblock_{i}"): array[i] for i in range(DEPTH)
            }
            found |= parts
        else:
            found[name] = array
    return found


TODAY = {"released": False, "table": "pos_embedding"}  # big_vision
NO_CLASS_ROW: dict[str, Any] = {"no_embed_class": True}
GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
MAP: dict[str, Any] = {"class_token": False, "global_pool": "map", "num_classes": CLASSES}

CASES: dict[str, Build] = {
    "vit_jax": build,
    "vit_jax, other sizes": partial(build, size=SQUARE),
    "vit_jax, opt/target/": partial(build, form=Form(prefix="opt/target/")),
    "vit_jax of today": partial(build, form=Form(released=False)),
    "vit_jax, a layer before the head": partial(build, form=Form(pre_logits=True)),
    "big_vision before 2022": partial(
        build, form=Form(released=False, table="Transformer/pos_embedding")
    ),
    "big_vision": partial(build, form=Form(**TODAY), **NO_CLASS_ROW),
    "big_vision, params/": partial(build, form=Form(prefix="params/", **TODAY), **NO_CLASS_ROW),
    "big_vision, scanned": partial(build, form=Form(scanned=True, **TODAY), **NO_CLASS_ROW),
    "big_vision, other sizes": partial(build, form=Form(**TODAY), size=SQUARE, **NO_CLASS_ROW),
    "big_vision, mean": partial(build, form=Form(**TODAY), **GAP),
    "big_vision, MAP": partial(build, form=Form(**TODAY), **MAP),
    "big_vision, bfloat16": partial(build, form=Form(half=True, **TODAY), **NO_CLASS_ROW),
    "SigLIP": partial(
        build,
        form=Form(prefix="params/img/", scanned=True, text=True, **TODAY),
        **{**MAP, "num_classes": 0},
    ),
}
# Those that timm 1.0.31 reads: no numbering of today in the layout of vit_jax, no layer before
# the head, no table under Transformer/, and bfloat16 only with jax.
TIMM_READS = [
    name
    for name in CASES
    if name
    not in (
        "vit_jax of today",
        "vit_jax, a layer before the head",
        "big_vision before 2022",
        "big_vision, bfloat16",
    )
]
