"""vit-pytorch's files (lucidrains, vit-pytorch 1.26, `vit_pytorch/{vit,simple_vit}.py`).

A class token is there where it pools by it, and only there: with pool="mean" the file holds one of
no rows. Older releases, of other names and shapes, are read and written in the names of today.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.model.config import ViTConfig
from vitrail.weights.dialect import Dialect, Export, Stores, Writing, has, plain
from vitrail.weights.formats.stored import Stored
from vitrail.weights.rules import FLAT, Known, Way, layer, rule

_ATTENTION, _MLP = "transformer.layers.{i}.0", "transformer.layers.{i}.1"
_QKV = re.compile(r"transformer\.layers\.\d+\.0\.(fn\.)?to_qkv\.weight")


# Tokens and positions: (N, D) today, (1, N, D) in releases before.
_TABLE = Way(lambda known, x: x.reshape(1, -1, x.shape[-1]), lambda known, x: x[0])


def _head_norm(known: Known, x: Tensor) -> Tensor:
    """Read the norm that stood in the head; only what it is given says what it normalises."""
    if known.get("pooling") == "mean" and known.get("class_token"):
        raise WeightsError(
            "this release of vit-pytorch pools by the class token or over all tokens, and no "
            'tensor shows which: give pooling="cls" or "mean_all"'
        )
    return x


_HEAD_NORM = Way(_head_norm, lambda known, x: x)


def _arrange(stores: Stores) -> tuple[Stores, dict[str, Any]]:
    """Take away a class token of no rows, and write out what a single head leaves out."""
    ranks = {name: len(stored.shape) for name, stored in stores.items()}
    found = dict(stores)
    if "cls_token" in found and 0 in found["cls_token"].shape[:1]:
        del found["cls_token"]
    if ranks.get("to_patch_embedding.1.weight") == 2:  # before there were norms around it
        for part in ("weight", "bias"):
            found[f"to_patch_embedding.2.{part}"] = found.pop(f"to_patch_embedding.1.{part}")
    for name, qkv in stores.items():
        if ranks[name] != 2 or not _QKV.fullmatch(name):
            continue
        out = name.replace("to_qkv.weight", "to_out")
        # One head as wide as the model has no projection: the identity, then.
        if not any(other.startswith(out) for other in stores):
            width, dtype = qkv.shape[1], qkv.dtype
            found[f"{out}.0.weight"] = Stored(
                (width, width), dtype, partial(torch.eye, width, dtype=dtype, device="cpu")
            )
    return found, {"batch_axis": ranks.get("pos_embedding") == 3}


def _tells(stores: Stores, known: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    out = _ATTENTION.replace("{i}", "0") + ".to_out.0"
    if f"{out}.weight" in stores and f"{out}.bias" not in stores:  # no projection: see `_arrange`
        told["heads"] = 1
    if "linear_head.weight" in stores and "pos_embedding" not in stores:  # SimpleViT
        told["positions"] = "sincos"
    return told


def _export(model: Writing) -> Export:
    written = dict(model.tensors)
    if not model.config.class_token:
        written["cls_token"] = written["pos_embedding"].new_empty(0, model.config.width)
    if model.kept.get("layout", {}).get("batch_axis"):
        for name in ("cls_token", "pos_embedding"):
            written[name] = written[name][None]
    if _unprojected(model.config):
        for i in range(model.config.depth):
            out = written.pop(_ATTENTION.format(i=i) + ".to_out.0.weight")
            if not torch.equal(out, torch.eye(model.config.width, dtype=out.dtype)):
                raise WeightsError(
                    "vit-pytorch has no projection after a single head that is as wide as the "
                    f"model, and block {i} has one; choose another dialect"
                )
    return Export(tensors=written)


def _unprojected(config: ViTConfig) -> bool:
    return config.heads == 1 and config.head_width == config.width


def _holds(config: ViTConfig) -> dict[str, Any]:
    return {
        **plain(config),
        "norm_eps": 1e-5,
        "head_width": config.head_width,
        "qkv_bias": "none",
        "patch_norms": True,
        "proj_bias": not _unprojected(config),
        "class_token": config.class_token,
        "prefix_positions": int(config.class_token),
        "pooling": "cls" if config.class_token else "mean",
    }


VIT_PYTORCH = Dialect(
    name="vit-pytorch",
    variant="vit-pytorch's ViT and SimpleViT",
    marks=has(
        r"transformer\.layers\.0\.0\.(fn\.)?to_qkv\.weight",
        r"to_patch_embedding\.1\.weight",
    ),
    rules=(
        rule("cls_token", "cls_token", _TABLE),
        rule("pos_embed", "pos_embedding", _TABLE),
        *layer("patch_embed.norm_patch", "to_patch_embedding.1"),
        *layer("patch_embed.proj", "to_patch_embedding.2", FLAT),
        *layer("patch_embed.norm", "to_patch_embedding.3"),
        *layer("blocks.{i}.norm1", f"{_ATTENTION}.norm"),
        rule("blocks.{i}.attn.qkv.weight", f"{_ATTENTION}.to_qkv.weight"),
        *layer("blocks.{i}.attn.proj", f"{_ATTENTION}.to_out.0"),
        rule("blocks.{i}.attn.proj.weight", f"{_ATTENTION}.to_out.weight"),  # SimpleViT
        *layer("blocks.{i}.norm2", f"{_MLP}.net.0"),
        *layer("blocks.{i}.mlp.fc1", f"{_MLP}.net.1"),
        *layer("blocks.{i}.mlp.fc2", f"{_MLP}.net.4"),
        *layer("norm", "transformer.norm"),
        # Where the transformer had no norm at its end.
        *(rule(f"fc_norm.{p}", f"mlp_head.0.{p}", _HEAD_NORM) for p in ("weight", "bias")),
        *layer("head", "mlp_head"),
        *layer("head", "linear_head"),  # SimpleViT
    ),
    spellings=(
        # Each branch of a block was once a norm and a function.
        (r"(\.layers\.\d+\.0)\.fn\.", r"\1."),
        (r"(\.layers\.\d+\.1)\.norm\.", r"\1.net.0."),
        (r"(\.layers\.\d+\.1)\.fn\.net\.0\.", r"\1.net.1."),
        (r"(\.layers\.\d+\.1)(\.fn)?\.net\.3\.", r"\1.net.4."),  # no dropout: SimpleViT's too
        (r"^mlp_head\.1\.", "mlp_head."),
    ),
    # Older releases pool all tokens with pool="mean", which looks the same: give pooling then.
    home={"norm_eps": 1e-5, "activation": "gelu", "pooling": "cls"},
    # The library has no preprocessing, and its examples take pixels as they are, from 0 to 1.
    preprocess=lambda config: {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    tells=_tells,
    arrange=_arrange,
    holds=_holds,
    export=_export,
)
