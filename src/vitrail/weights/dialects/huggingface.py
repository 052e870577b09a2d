"""Hugging Face's files: all variants, in the order in which they are tried, and which one writes.

Files have the names of version 4 of transformers; the tensors of a model in memory,
`model.state_dict()`, have others since version 5, and are read as well.
"""

from collections.abc import Mapping
from typing import Any

from vitrail.model.config import ViTConfig
from vitrail.weights.dialect import Dialect
from vitrail.weights.dialects.huggingface_dino import DINOV2, DINOV3
from vitrail.weights.dialects.huggingface_models import model_type_for
from vitrail.weights.dialects.huggingface_towers import (
    CLIP,
    CLIP_CLASSIFIER,
    SIGLIP,
    SIGLIP_CLASSIFIER,
)
from vitrail.weights.dialects.huggingface_vit import DISTILLED, POOLER, VIT

# In the order in which they are tried.
HUGGINGFACE = (
    CLIP_CLASSIFIER,
    CLIP,
    SIGLIP_CLASSIFIER,
    SIGLIP,
    DINOV3,
    DINOV2,
    DISTILLED,
    POOLER,
    VIT,
)


def variant_for(config: ViTConfig, kept: Mapping[str, Any] | None = None) -> Dialect:
    """Give the one variant that writes such a ViT."""
    kind = model_type_for(config, kept)
    if kind in ("clip", "siglip"):
        return CLIP_CLASSIFIER if kind == "clip" else SIGLIP_CLASSIFIER
    if config.distillation_token:
        return DISTILLED
    plain = POOLER if config.pre_logits and not config.classes else VIT
    return {
        "clip_vision_model": CLIP,
        "siglip_vision_model": SIGLIP,
        "dinov3_vit": DINOV3,
        "dinov2": DINOV2,
        "dinov2_with_registers": DINOV2,
    }.get(kind, plain)
