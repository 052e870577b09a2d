"""Hugging Face's files of DINOv2, with and without registers, and DINOv3.

transformers 5.23, `models/{dinov2,dinov2_with_registers,dinov3_vit}/modeling_*.py`.
"""

from typing import Any

from vitrail.model.config import PositionResize, ViTConfig
from vitrail.weights.dialect import Dialect, Stores, has
from vitrail.weights.dialects import huggingface_images as images
from vitrail.weights.dialects.huggingface_models import RESIZE, ratios
from vitrail.weights.dialects.huggingface_vit import (
    ATTENTION,
    BARE,
    BLOCK,
    HOME,
    MASK,
    PATCHES,
    PREFIX,
    SHARED,
    TOKENS,
    fixed,
    square,
)
from vitrail.weights.rules import layer, only, rule, stacked


def _dinov2_holds(config: ViTConfig) -> dict[str, Any]:
    said = {**fixed(config), **square(config)}
    widths = sorted(ratios(config), key=lambda width: abs(width - config.mlp_width))
    both = "cls+mean" if config.classes else ("cls", "cls+mean")
    return said | {
        "mlp": ("plain", "swiglu"),
        "mlp_width": tuple(widths[:2]),
        "layer_scale": config.layer_scale or 1.0,
        "registers": config.registers,
        "position_resize": PositionResize() if config.registers else RESIZE,
        "pooling": both,
    }


def _dinov3_holds(config: ViTConfig) -> dict[str, Any]:
    said = {**fixed(config), "classes": 0, "positions": "rope"}
    return said | {
        "mlp": ("plain", "swiglu"),
        "qkv_bias": ("no_key", "all", "none"),
        "proj_bias": (True, False),
        "mlp_bias": (True, False),
        "layer_scale": config.layer_scale or 1.0,
        "registers": config.registers,
        "prefix_positions": config.prefix_positions,
        "position_resize": config.position_resize,
    }


def _registers(stores: Stores) -> tuple[Stores, dict[str, Any]]:
    """Leave out a tensor of no registers."""
    return {name: stored for name, stored in stores.items() if 0 not in stored.shape}, {}


DINOV2 = Dialect(
    **SHARED,
    variant="Hugging Face's DINOv2",
    marks=has(PATCHES, rf"{PREFIX}encoder\.layer\.0\.layer_scale1\.lambda1"),
    rules=(
        *TOKENS,
        rule("reg_token", "embeddings.register_tokens"),
        *layer("blocks.{i}.norm1", f"{BLOCK}.norm1"),
        rule("blocks.{i}.ls1.gamma", f"{BLOCK}.layer_scale1.lambda1"),
        *layer("blocks.{i}.norm2", f"{BLOCK}.norm2"),
        *only(layer("blocks.{i}.mlp.fc1", f"{BLOCK}.mlp.weights_in"), mlp="swiglu"),
        *only(layer("blocks.{i}.mlp.fc2", f"{BLOCK}.mlp.weights_out"), mlp="swiglu"),
        *only(
            stacked("blocks.{i}.mlp.fc1", f"{BLOCK}.mlp.gate_proj", f"{BLOCK}.mlp.up_proj"),
            mlp="swiglu",
        ),
        *layer("blocks.{i}.mlp.fc1", f"{BLOCK}.mlp.fc1"),
        *layer("blocks.{i}.mlp.fc2", f"{BLOCK}.mlp.fc2"),
        rule("blocks.{i}.ls2.gamma", f"{BLOCK}.layer_scale2.lambda1"),
        *layer("head", "classifier"),
    ),
    spellings=(BARE, *ATTENTION, (r"\.mlp\.down_proj\.", ".mlp.weights_out.")),
    leave=(MASK,),
    home=HOME,
    preprocess=lambda config: images.DINOV2,
    holds=_dinov2_holds,
    arrange=_registers,
    tells=lambda stores, known: (
        {"position_resize": PositionResize()} if "embeddings.register_tokens" in stores else {}
    ),
)
DINOV3 = Dialect(
    **SHARED,
    variant="Hugging Face's DINOv3",
    marks=has(
        rf"{PREFIX}embeddings\.patch_embeddings\.weight",
        rf"{PREFIX}layer\.0\.attention\.q_proj\.weight",
    ),
    rules=(
        rule("cls_token", "embeddings.cls_token"),
        rule("reg_token", "embeddings.register_tokens"),
        *layer("patch_embed.proj", "embeddings.patch_embeddings"),
        *layer("blocks.{i}.norm1", "layer.{i}.norm1"),
        *stacked("blocks.{i}.attn.qkv", *(f"layer.{{i}}.attention.{x}_proj" for x in "qkv")),
        rule("blocks.{i}.attn.q_bias", "layer.{i}.attention.q_proj.bias"),
        rule("blocks.{i}.attn.v_bias", "layer.{i}.attention.v_proj.bias"),
        *layer("blocks.{i}.attn.proj", "layer.{i}.attention.o_proj"),
        rule("blocks.{i}.ls1.gamma", "layer.{i}.layer_scale1.lambda1"),
        *layer("blocks.{i}.norm2", "layer.{i}.norm2"),
        *only(
            stacked("blocks.{i}.mlp.fc1", "layer.{i}.mlp.gate_proj", "layer.{i}.mlp.up_proj"),
            mlp="swiglu",
        ),
        *layer("blocks.{i}.mlp.fc1", "layer.{i}.mlp.up_proj"),
        *layer("blocks.{i}.mlp.fc2", "layer.{i}.mlp.down_proj"),
        rule("blocks.{i}.ls2.gamma", "layer.{i}.layer_scale2.lambda1"),
        *layer("norm", "norm"),
    ),
    spellings=(BARE,),
    leave=(MASK,),
    home={
        **HOME,
        "norm_eps": 1e-5,
        "positions": "rope",
        "rope_base": 100.0,
        "prefix_positions": 0,
        "image_size": (224, 224),
    },
    preprocess=lambda config: images.DINOV3,
    holds=_dinov3_holds,
    arrange=_registers,
)
