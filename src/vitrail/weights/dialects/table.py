"""All dialects, in the order in which a file is held against them."""

from collections.abc import Mapping
from typing import Any

from vitrail.model.config import ViTConfig
from vitrail.weights.dialect import Dialect
from vitrail.weights.dialects.blog import BLOG, BLOG_AFTER_SOFTMAX
from vitrail.weights.dialects.clip import CLIP, TOWER
from vitrail.weights.dialects.dino import DINOV2, DINOV2_REGISTERS, DINOV3
from vitrail.weights.dialects.google import GOOGLE
from vitrail.weights.dialects.huggingface import HUGGINGFACE, variant_for
from vitrail.weights.dialects.mae import MAE
from vitrail.weights.dialects.timm import DEIT3, DINO, DISTILLED, EVA, OPEN_CLIP, TIMM
from vitrail.weights.dialects.torchvision import TORCHVISION
from vitrail.weights.dialects.vit_pytorch import VIT_PYTORCH

# What names its tensors most oddly comes first; timm's names are the most common.
DIALECTS = (
    GOOGLE,
    OPEN_CLIP,
    CLIP,
    TOWER,
    TORCHVISION,
    *HUGGINGFACE,
    DINOV3,
    DINOV2_REGISTERS,
    DINOV2,
    EVA,
    DEIT3,
    MAE,
    DINO,
    DISTILLED,
    TIMM,
    VIT_PYTORCH,
    BLOG,
    BLOG_AFTER_SOFTMAX,
)


def for_export(name: str, config: ViTConfig, kept: Mapping[str, Any]) -> Dialect:
    """Give the variant of the dialect `name` that a model of this architecture is written in.

    `kept` is what was kept of a file of that dialect, where the model comes from one.
    """
    if name == "huggingface":
        return variant_for(config, kept)
    if name == "timm":
        return EVA if config.positions == "rope" else TIMM
    return next(dialect for dialect in DIALECTS if dialect.name == name)
