"""Hugging Face's files of CLIP and SigLIP: the image tower, alone or beside the text's.

transformers 5.23, `models/{clip,siglip}/modeling_*.py`.
"""

from typing import Any

import torch

from vitrail.model.config import ViTConfig
from vitrail.weights.dialect import CLIP as CLIP_STATISTICS
from vitrail.weights.dialect import Dialect, has
from vitrail.weights.dialects import huggingface_images as images
from vitrail.weights.dialects.huggingface_vit import BARE, HOME, PREFIX, SHARED, fixed, square
from vitrail.weights.rules import ROWS, VECTOR, Way, layer, rule, stacked

_TEXT = (
    (r"text_model\..*|text_projection\..*", "the text encoder"),
    (r"logit_scale|logit_bias", "how images are compared with texts"),
    (r"(.*\.)?position_ids", "numbers that count the positions"),
)


def _clip_holds(config: ViTConfig) -> dict[str, Any]:
    said = {**fixed(config), **square(config)}
    bias = {"patch_bias": False, "qkv_bias": "all"}
    return said | bias | {"pre_norm": True, "head_bias": not config.classes and config.head_bias}


def _clip_classifier_holds(config: ViTConfig) -> dict[str, Any]:
    return _clip_holds(config) | {"head_bias": True, "final_norm": "none", "pooling": "mean"}


def _siglip_holds(config: ViTConfig) -> dict[str, Any]:
    said = {**fixed(config), **square(config), "class_token": False, "prefix_positions": 0}
    if config.pooling == "map":  # its classifier reads the mean
        return said | {"qkv_bias": "all", "classes": 0, "pooling": "map"}
    return said | {"qkv_bias": "all", "pooling": ("mean", "mean_all")}


_LAYER = "encoder.layers.{i}"
_TOWER_RULES = (  # of both CLIP and SigLIP
    rule("pos_embed", "embeddings.position_embedding.weight", ROWS),
    *layer("patch_embed.proj", "embeddings.patch_embedding"),
    *layer("blocks.{i}.norm1", f"{_LAYER}.layer_norm1"),
    *stacked("blocks.{i}.attn.qkv", *(f"{_LAYER}.self_attn.{x}_proj" for x in "qkv")),
    *layer("blocks.{i}.attn.proj", f"{_LAYER}.self_attn.out_proj"),
    *layer("blocks.{i}.norm2", f"{_LAYER}.layer_norm2"),
    *layer("blocks.{i}.mlp.fc1", f"{_LAYER}.mlp.fc1"),
    *layer("blocks.{i}.mlp.fc2", f"{_LAYER}.mlp.fc2"),
)
_CLIP_RULES = (
    rule("cls_token", "embeddings.class_embedding", VECTOR),
    *layer("norm_pre", "pre_layrnorm"),  # sic
    *_TOWER_RULES,
)
_CLIP: dict[str, Any] = {
    **SHARED,
    "spellings": (BARE,),
    "preprocess": lambda config: CLIP_STATISTICS,
}
_CLIP_HOME = {**HOME, "norm_eps": 1e-5, "activation": "quick_gelu"}

CLIP = Dialect(
    **_CLIP,
    variant="Hugging Face's CLIP",
    marks=has(rf"{PREFIX}pre_layrnorm\.weight"),
    rules=(
        *_CLIP_RULES,
        *layer("norm", "post_layernorm"),
        rule("head.weight", "visual_projection.weight"),
    ),
    leave=_TEXT,
    home=_CLIP_HOME,
    holds=_clip_holds,
)
CLIP_CLASSIFIER = Dialect(
    **_CLIP,
    variant="Hugging Face's CLIPForImageClassification",
    marks=has(rf"{PREFIX}pre_layrnorm\.weight", r"classifier\.weight"),
    rules=(*_CLIP_RULES, *layer("head", "classifier")),
    leave=(*_TEXT, (r"post_layernorm\..*", "a norm that the classifier comes before")),
    home={**_CLIP_HOME, "pooling": "mean"},
    holds=_clip_classifier_holds,
)

# One matrix for q, k and v, of which ours holds q by itself.
_IN_PROJ = Way(
    lambda known, x: (x[: len(x) // 3], x[len(x) // 3 :]),
    lambda known, q, kv: torch.cat([q, kv]),
)
_SIGLIP: dict[str, Any] = {
    **SHARED,
    "spellings": (BARE,),
    "preprocess": lambda config: images.SIGLIP,
    "holds": _siglip_holds,
}
_SIGLIP_HOME = {**HOME, "activation": "gelu_tanh", "prefix_positions": 0}
_SIGLIP_MARK = rf"{PREFIX}embeddings\.position_embedding\.weight"

SIGLIP = Dialect(
    **_SIGLIP,
    variant="Hugging Face's SigLIP",
    marks=has(_SIGLIP_MARK, rf"{PREFIX}encoder\.layers\.0\.self_attn\.q_proj\.weight"),
    rules=(
        *_TOWER_RULES,
        *layer("norm", "post_layernorm"),
        rule("attn_pool.latent", "head.probe"),
        rule(
            ("attn_pool.q.weight", "attn_pool.kv.weight"), "head.attention.in_proj_weight", _IN_PROJ
        ),
        rule(("attn_pool.q.bias", "attn_pool.kv.bias"), "head.attention.in_proj_bias", _IN_PROJ),
        *layer("attn_pool.proj", "head.attention.out_proj"),
        *layer("attn_pool.norm", "head.layernorm"),
        *layer("attn_pool.mlp.fc1", "head.mlp.fc1"),
        *layer("attn_pool.mlp.fc2", "head.mlp.fc2"),
    ),
    leave=_TEXT,
    home={**_SIGLIP_HOME, "pooling": "map"},
)
SIGLIP_CLASSIFIER = Dialect(
    **_SIGLIP,
    variant="Hugging Face's SiglipForImageClassification",
    marks=lambda stores: SIGLIP.marks(stores) and "classifier.weight" in stores,
    rules=(*_TOWER_RULES, *layer("norm", "post_layernorm"), *layer("head", "classifier")),
    leave=(*_TEXT, (r"head\..*", "attention pooling, which the classifier does not read")),
    home={**_SIGLIP_HOME, "pooling": "mean"},
)
