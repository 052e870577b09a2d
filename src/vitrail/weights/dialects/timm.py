"""timm's files: our own names; with them the original files of DeiT, DeiT-III and DINO.

timm 1.0.31, `models/{vision_transformer,deit,eva}.py`. A folder as timm writes it has a
`config.json` with the name of an architecture, from which heads and arithmetic follow.
"""

import re
from typing import Any

from vitrail.model.config import PositionResize, ViTConfig
from vitrail.weights.dialect import HALF, Dialect, Stores, has, plain
from vitrail.weights.dialects.open_clip_files import sidecar as open_clip
from vitrail.weights.dialects.timm_files import ROPE, export, sidecar
from vitrail.weights.rules import layer, only, rule, stacked

NAMES = (
    *(rule(name, name) for name in ("cls_token", "dist_token", "reg_token", "pos_embed")),
    *layer("patch_embed.proj", "patch_embed.proj"),
    *layer("norm_pre", "norm_pre"),
    *layer("blocks.{i}.norm1", "blocks.{i}.norm1"),
    *layer("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
    *(rule(name, name) for name in ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias")),
    *layer("blocks.{i}.attn.q_norm", "blocks.{i}.attn.q_norm"),
    *layer("blocks.{i}.attn.k_norm", "blocks.{i}.attn.k_norm"),
    *layer("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
    rule("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma"),
    *layer("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *layer("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
    *layer("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
    rule("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma"),
    *layer("norm", "norm"),
    *layer("fc_norm", "fc_norm"),
    rule("attn_pool.latent", "attn_pool.latent"),
    *(
        one
        for name in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
        for one in layer(f"attn_pool.{name}", f"attn_pool.{name}")
    ),
    *layer("head", "head"),
    *layer("head_dist", "head_dist"),
)
# timm's Eva class, which runs DINOv3, has other names for layer scale and for SwiGLU's halves.
EVA_NAMES = (
    *(one for one in NAMES if not re.search(r"\.ls[12]\.gamma|mlp\.fc1", one.ours[0])),
    rule("blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1"),
    rule("blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2"),
    *only(
        stacked("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1_g", "blocks.{i}.mlp.fc1_x"), mlp="swiglu"
    ),
    *layer("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
)
_PRE_LOGITS = (r"^pre_logits\.fc\.", "pre_logits.")
_MASK = (r"mask_token", "the token of masked pretraining")
HOME = {"norm_eps": 1e-6, "activation": "gelu", "pooling": "cls"}


def _holds(config: ViTConfig) -> dict[str, Any]:
    """Give what timm's VisionTransformer can be told in a file."""
    rows = (0, config.prefix) if config.positions == "learned" else config.prefix_positions
    holds: dict[str, Any] = {
        **plain(config),
        "mlp": ("plain", "swiglu"),
        "activation": config.activation,
        # The two values that timm's own architectures have; a file cannot say a third.
        "norm_eps": 1e-5 if config.norm_eps == 1e-5 else 1e-6,
        "qkv_bias": ("all", "none"),
        "patch_bias": not config.pre_norm,
        "mlp_bias": config.proj_bias or config.mlp_bias,  # timm's `proj_bias` is both
        "proj_bias": config.proj_bias or config.mlp_bias,
        "qk_norm": config.qk_norm,
        "layer_scale": config.layer_scale,
        "class_token": config.class_token,
        "distillation_token": config.distillation_token,
        "registers": config.registers,
        "positions": ("learned", "rope", "none"),
        "prefix_positions": rows,
        "position_resize": PositionResize(),
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm,
        "pooling": ("cls", "mean", "map", "mean_all"),
    }
    if config.distillation_token:
        holds |= {"registers": 0, "prefix_positions": 2, "pre_norm": False, "norm_eps": 1e-6}
    if config.mlp == "swiglu":  # the architecture that has it has layer scale too
        holds |= {"norm_eps": 1e-6, "layer_scale": config.layer_scale or 1e-5}
    return holds


def _eva_holds(config: ViTConfig) -> dict[str, Any]:
    return {
        **plain(config),
        "mlp": ("plain", "swiglu"),
        "activation": "silu" if config.mlp == "swiglu" else "gelu",
        "norm_eps": 1e-5,
        "qkv_bias": ("no_key", "none"),
        "layer_scale": config.layer_scale or 1e-5,
        "registers": config.registers,
        "positions": "rope",
        "prefix_positions": config.prefix_positions,
        "final_norm": ("tokens", "pooled"),
        "pooling": ("cls", "mean"),
    }


_BLOCK = r"blocks\.0\.attn\.qkv\.weight"


def _is_eva(stores: Stores) -> bool:
    """Tell DINOv3 from timm's other rotary ViTs, which turn q and k in other ways."""
    others = {"pos_embed", "fc_norm.weight", "blocks.0.attn.qkv.bias"}
    return has(_BLOCK, r"blocks\.0\.gamma_1", "cls_token", "reg_token")(stores) and not (
        others & stores.keys()
    )


# In the order in which they are tried.
EVA = Dialect(
    name="timm",
    variant="timm's Eva (DINOv3)",
    marks=_is_eva,
    rules=EVA_NAMES,
    leave=((r"rope\.periods", "rotations, computed anew"), _MASK),
    home={**HOME, **ROPE, "pooling": "mean"},
    holds=_eva_holds,
    sidecar=sidecar,
    export=export,
)
DEIT3 = Dialect(
    name="timm",
    variant="DeiT-III",
    marks=has(_BLOCK, r"blocks\.0\.gamma_1", "pos_embed"),
    rules=NAMES,
    spellings=((r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),),
    home={**HOME, "position_resize": PositionResize(antialias=False)},
    tells=lambda stores, known: {"prefix_positions": 0},  # a row for the class: another model
    sidecar=sidecar,
)
DINO = Dialect(
    name="timm",
    variant="DINO",
    marks=has(r"backbone\.blocks\.0\.attn\.qkv\.weight", "backbone.cls_token"),
    rules=NAMES,
    spellings=((r"^backbone\.", ""),),
    leave=((r"head\..*", "DINO's projection head"),),
    home={**HOME, "position_resize": PositionResize(antialias=False, offset=0.1)},
)
OPEN_CLIP = Dialect(
    name="timm",
    variant="open_clip with a timm tower",
    marks=has(r"trunk\.blocks\.0\.attn\.qkv\.weight"),
    rules=NAMES,
    spellings=((r"^trunk\.", ""), (r"^head\.proj\.", "head."), _PRE_LOGITS),
    leave=(_MASK,),
    home=HOME,
    preprocess=lambda config: HALF,
    sidecar=open_clip,
)
DISTILLED = Dialect(
    name="timm",
    variant="DeiT, distilled",
    marks=has(_BLOCK, "dist_token"),
    rules=NAMES,
    home={**HOME, "position_resize": PositionResize(antialias=False)},
    sidecar=sidecar,
)
TIMM = Dialect(
    name="timm",
    variant="timm, DeiT, DINO, MAE fine-tuned",
    marks=has(_BLOCK),
    rules=NAMES,
    spellings=(_PRE_LOGITS,),
    leave=(_MASK,),
    home=HOME,
    preprocess=lambda config: HALF,
    unsure={
        "preprocess": "mean and std of .5 are taken, as Google's ViTs have; those of DeiT, MAE "
        "and DINO have ImageNet's: a preset says so"
    },
    holds=_holds,
    sidecar=sidecar,
    export=export,
)
