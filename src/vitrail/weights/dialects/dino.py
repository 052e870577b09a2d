"""The original files of DINOv2 and DINOv3: timm's names but for a few.

facebookresearch/dinov2, `dinov2/models/vision_transformer.py`; facebookresearch/dinov3,
`dinov3/models/vision_transformer.py`. Training files put the blocks into chunks, and the teacher
under `teacher.backbone.`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.model.config import PositionResize, ViTConfig
from vitrail.weights.dialect import Dialect, Export, Writing, has, plain
from vitrail.weights.dialects.timm import NAMES
from vitrail.weights.rules import Known, Rule, Way, layer, only, rule, stacked

_CHUNKS = (r"^(?:backbone\.)?blocks\.\d+\.(\d+)\.", r"blocks.\1.")
_SPELLINGS = (_CHUNKS, (r"^backbone\.", ""))
_HEADS = (r"(dino|ibot|gram|projectors?)(_head)?s?\..*", "heads of training")


def _but(*names: str) -> tuple[Rule, ...]:
    """Give timm's rules without those of the layers that are called otherwise here."""
    return tuple(one for one in NAMES if not any(name in one.ours[0] for name in names))


def _fixed(config: ViTConfig) -> dict[str, Any]:
    """Give what both cannot say otherwise."""
    return {
        **plain(config),
        "classes": 0,
        "mlp": ("plain", "swiglu"),
        "activation": "silu" if config.mlp == "swiglu" else "gelu",
        "head_bias": config.head_bias,
        "layer_scale": config.layer_scale or 1.0,
        "registers": config.registers,
    }


def _export2(model: Writing) -> Export:
    """Add the mask token, which the original's code wants to find."""
    return Export(tensors={**model.tensors, "mask_token": torch.zeros(1, model.config.width)})


_DINO_RESIZE = PositionResize(antialias=False, offset=0.1)

DINOV2 = Dialect(
    name="dinov2",
    variant="DINOv2",
    marks=has(r"(backbone\.)?blocks\.(0\.)?0\.ls1\.gamma", r"(backbone\.)?mask_token"),
    rules=(
        rule("reg_token", "register_tokens"),
        *only(layer("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.w12"), mlp="swiglu"),
        *only(layer("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.w3"), mlp="swiglu"),
        *_but("reg_token"),
    ),
    spellings=_SPELLINGS,
    leave=((r"mask_token", "the token of masked training"), _HEADS),
    home={
        "norm_eps": 1e-6,
        "activation": "gelu",
        "pooling": "cls",
        "prefix_positions": 1,
        "position_resize": _DINO_RESIZE,
    },
    holds=lambda config: {
        **_fixed(config),
        "position_resize": PositionResize() if config.registers else _DINO_RESIZE,
    },
    export=_export2,
)
# With registers, positions are resized as timm does.
DINOV2_REGISTERS = replace(
    DINOV2,
    variant="DINOv2 with registers",
    marks=has(r"(backbone\.)?blocks\.(0\.)?0\.ls1\.gamma", r"(backbone\.)?register_tokens"),
    home={**DINOV2.home, "position_resize": PositionResize()},
)


# DINOv3 multiplies the bias of q, k and v by a mask whose middle third is zero.
def _unmasked(known: Known, bias: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    q, k, v = mask.chunk(3)
    if not mask.is_meta and not (q.eq(1).all() and k.eq(0).all() and v.eq(1).all()):
        raise WeightsError("its bias_mask is not 1, 0, 1 for q, k and v, as in every DINOv3")
    return tuple(part.clone() for part in bias.chunk(3)[::2])


_MASKED = Way(
    _unmasked,
    lambda known, q, v: (
        torch.cat([q, torch.zeros_like(q), v]),
        torch.cat([torch.ones_like(q), torch.zeros_like(q), torch.ones_like(q)]),
    ),
)
_BIASES = ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias")


def _export3(model: Writing) -> Export:
    """Add what the original's code wants to find: the mask token, the periods of the rotations."""
    quarter = model.config.head_width // 4
    steps = torch.arange(quarter, dtype=torch.float32)
    periods = model.config.rope_base ** (2 * steps / (model.config.head_width // 2))
    mask = {"mask_token": torch.zeros(1, model.config.width)}
    return Export(tensors={**model.tensors, **mask, "rope_embed.periods": periods})


DINOV3 = Dialect(
    name="dinov3",
    variant="DINOv3",
    marks=has(r"(backbone\.)?storage_tokens", r"(backbone\.)?blocks\.(0\.)?0\.ls1\.gamma"),
    rules=(
        rule("reg_token", "storage_tokens"),
        rule(_BIASES, ("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv.bias_mask"), _MASKED),
        *only(
            stacked("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.w1", "blocks.{i}.mlp.w2"), mlp="swiglu"
        ),
        *only(layer("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.w3"), mlp="swiglu"),
        *_but("reg_token", "q_bias", "v_bias"),
    ),
    spellings=_SPELLINGS,
    leave=(
        (r"mask_token", "the token of masked training"),
        (r"rope_embed\.periods", "rotations, computed anew"),
        (r"local_cls_norm\..*", "the norm of small crops in training"),
        _HEADS,
    ),
    home={
        "norm_eps": 1e-5,
        "activation": "gelu",
        "pooling": "cls",
        "positions": "rope",
        "rope_base": 100.0,
        "prefix_positions": 0,
        "image_size": (224, 224),
    },
    holds=lambda config: {
        **_fixed(config),
        "norm_eps": 1e-5,
        "qkv_bias": ("no_key", "none"),
        "positions": "rope",
        "prefix_positions": config.prefix_positions,
    },
    export=_export3,
)
