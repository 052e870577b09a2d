"""Hugging Face's files of ViT, DeiT, MAE, MSN and I-JEPA, and what all of its variants share.

transformers 5.23, `models/{vit,deit,vit_mae,vit_msn,ijepa}/modeling_*.py`.
"""

from collections.abc import Mapping
from typing import Any

from vitrail.model.config import ViTConfig
from vitrail.weights.dialect import Dialect, Stores, has, plain
from vitrail.weights.dialects import huggingface_images as images
from vitrail.weights.dialects.huggingface_files import export, sidecar
from vitrail.weights.dialects.huggingface_models import RESIZE
from vitrail.weights.rules import layer, rule, stacked

# What stands before the encoder's names where a head or a text encoder stands beside it.
PREFIX = r"(?:(?:base_model|model|vit|deit|ijepa|dinov2|dinov2_with_registers|vision_model)\.)*"
BARE = (rf"^{PREFIX}", "")
BLOCK = "encoder.layer.{i}"

ATTENTION = (  # version 5's names in memory, and version 4's
    (r"^(encoder\.layer\.\d+\.attention)\.q_proj\.", r"\1.attention.query."),
    (r"^(encoder\.layer\.\d+\.attention)\.k_proj\.", r"\1.attention.key."),
    (r"^(encoder\.layer\.\d+\.attention)\.v_proj\.", r"\1.attention.value."),
    (r"^(encoder\.layer\.\d+\.attention)\.o_proj\.", r"\1.output.dense."),
)
_QKV = [f"{BLOCK}.attention.attention.{name}" for name in ("query", "key", "value")]

PATCHES = rf"{PREFIX}embeddings\.patch_embeddings\.projection\.weight"
TOKENS = (
    rule("cls_token", "embeddings.cls_token"),
    rule("pos_embed", "embeddings.position_embeddings"),
    *layer("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    *stacked("blocks.{i}.attn.qkv", *_QKV),
    *layer("blocks.{i}.attn.proj", f"{BLOCK}.attention.output.dense"),
    *layer("norm", "layernorm"),
)
MASK = (r"embeddings\.mask_token", "the token of masked training")
SHARED: dict[str, Any] = {
    "name": "huggingface",
    "sidecar": sidecar,
    "export": export,
}
HOME = {"norm_eps": 1e-6, "activation": "gelu", "pooling": "cls", "position_resize": RESIZE}


def fixed(config: ViTConfig) -> dict[str, Any]:
    """Give what these models cannot say otherwise, but where a variant says more."""
    return {
        **plain(config),
        "activation": config.activation,
        "norm_eps": config.norm_eps,
        "qkv_bias": ("all", "none"),
        "head_bias": True if config.classes else config.head_bias,
        "position_resize": RESIZE,
    }


def square(config: ViTConfig) -> dict[str, Any]:
    """Give the image sizes of models that take every table of positions for a square one."""
    return {"image_size": ((max(config.image_size),) * 2,)}


_VIT_RULES = (
    *TOKENS,
    *layer("blocks.{i}.norm1", f"{BLOCK}.layernorm_before"),
    *layer("blocks.{i}.norm2", f"{BLOCK}.layernorm_after"),
    *layer("blocks.{i}.mlp.fc1", f"{BLOCK}.intermediate.dense"),
    *layer("blocks.{i}.mlp.fc2", f"{BLOCK}.output.dense"),
)
_VIT_SPELLINGS = (
    BARE,
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    *ATTENTION,
    (r"^(encoder\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"^(encoder\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
_VIT_LEAVE = (MASK, (r"decoder\..*", "the decoder of masked training"))


def _vit_holds(config: ViTConfig) -> dict[str, Any]:
    said = fixed(config)
    if not config.class_token:  # I-JEPA
        return said | {"class_token": False, "prefix_positions": 0, "pooling": "mean"}
    if not config.classes:
        said["pre_logits"] = (False, True)
    if config.distillation_token:  # without classes, DeiTModel answers with the class token alone
        return said | {"distillation_token": config.classes > 0, "prefix_positions": 2}
    if config.registers:  # DeiT
        return said | {"registers": 1, "prefix_positions": 2}
    return said


def _prefix_rows(stores: Stores, known: Mapping[str, Any]) -> dict[str, Any]:
    """DeiT's second token has a position; without a classifier of its own, it is a register."""
    return {"prefix_positions": 2} if "embeddings.distillation_token" in stores else {}


def _ends_in_pooler(stores: Stores) -> bool:
    """Tell a bare ViTModel; I-JEPA's pooler, which reads the first patch, says nothing."""
    ends = has(rf"{PREFIX}pooler\.dense\.weight", rf"{PREFIX}embeddings\.cls_token")
    return VIT.marks(stores) and ends(stores) and "classifier.weight" not in stores


_VIT: dict[str, Any] = {
    **SHARED,
    "spellings": _VIT_SPELLINGS,
    "home": {**HOME, "norm_eps": 1e-12},
    "preprocess": lambda config: images.VIT,
    "holds": _vit_holds,
    "tells": _prefix_rows,
}
VIT = Dialect(
    **_VIT,
    variant="Hugging Face's ViT, DeiT, MAE, I-JEPA",
    marks=has(PATCHES, rf"{PREFIX}(encoder\.layer|layers)\.0\.layernorm_before\.weight"),
    rules=(
        *_VIT_RULES,
        rule("reg_token", "embeddings.distillation_token"),
        *layer("head", "classifier"),
    ),
    leave=(*_VIT_LEAVE, (r"pooler\..*", "a pooler that the answers do not come from")),
)
POOLER = Dialect(
    **_VIT,
    variant="Hugging Face's ViTModel, DeiTModel",
    marks=_ends_in_pooler,
    rules=(
        *_VIT_RULES,
        rule("reg_token", "embeddings.distillation_token"),
        *layer("pre_logits", "pooler.dense"),
    ),
    leave=_VIT_LEAVE,
)
DISTILLED = Dialect(
    **{**_VIT, "preprocess": lambda config: images.DEIT},
    variant="Hugging Face's DeiT, distilled",
    marks=has(PATCHES, r"distillation_classifier\.weight"),
    rules=(
        *_VIT_RULES,
        rule("dist_token", "embeddings.distillation_token"),
        *layer("head", "cls_classifier"),
        *layer("head_dist", "distillation_classifier"),
    ),
    leave=_VIT_LEAVE,
)
