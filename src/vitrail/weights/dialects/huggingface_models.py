"""Hugging Face's models, by model_type, and which of them a ViT becomes.

transformers 5.23, `models/*/configuration_*.py`: a key that a file lacks has its class's default.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vitrail.model.config import PositionResize, ViTConfig


class Model(NamedTuple):
    """A model_type: its classes, and the defaults of its configuration."""

    prefix: str  # of the encoder's tensors where a head stands beside it
    headed: str | None  # the class with a head
    bare: str | None
    heads: int = 12
    eps: float = 1e-12
    activation: str = "gelu"


MODELS = {
    "vit": Model("vit.", "ViTForImageClassification", "ViTModel"),
    "vit_msn": Model("vit.", "ViTMSNForImageClassification", "ViTMSNModel", eps=1e-6),
    "vit_mae": Model("vit.", None, "ViTMAEModel"),
    "ijepa": Model("ijepa.", "IJepaForImageClassification", "IJepaModel"),
    "deit": Model("deit.", "DeiTForImageClassification", "DeiTModel"),
    "dinov2": Model("dinov2.", "Dinov2ForImageClassification", "Dinov2Model", eps=1e-6),
    "dinov2_with_registers": Model(
        "dinov2_with_registers.",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersModel",
        eps=1e-6,
    ),
    "dinov3_vit": Model("", None, "DINOv3ViTModel", heads=6, eps=1e-5),
    "clip_vision_model": Model(
        "vision_model.",
        "CLIPVisionModelWithProjection",
        "CLIPVisionModel",
        eps=1e-5,
        activation="quick_gelu",
    ),
    "siglip_vision_model": Model(
        "vision_model.", None, "SiglipVisionModel", eps=1e-6, activation="gelu_pytorch_tanh"
    ),
    "clip": Model("vision_model.", "CLIPForImageClassification", None),
    "siglip": Model("vision_model.", "SiglipForImageClassification", None),
}
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # in `vision_config`

_RELATIVE = "its attention has relative positions"
_STAGES = "its stages have widths and grids of their own"
_VIDEO = "it reads videos"
OTHERS = {
    "beit": _RELATIVE,
    "data2vec-vision": _RELATIVE,
    "sam": _RELATIVE,
    "vitdet": _RELATIVE,
    "swin": _STAGES,
    "swinv2": _STAGES,
    "levit": _STAGES,
    "pvt": _STAGES,
    "pvt_v2": _STAGES,
    "hiera": _STAGES,
    "segformer": _STAGES,
    "vit_hybrid": "a convolutional network makes its patches",
    "convnext": "it is a convolutional network",
    "convnextv2": "it is a convolutional network",
    "dinov3_convnext": "it is a convolutional network",
    "resnet": "it is a convolutional network",
    "siglip2": "it reads lists of patches, of images of any shape (NaFlex)",
    "siglip2_vision_model": "it reads lists of patches, of images of any shape (NaFlex)",
    "vivit": _VIDEO,
    "videomae": _VIDEO,
    "timesformer": _VIDEO,
    "yolos": "it has tokens for detection",
    "dpt": "it is a decoder of depth around a ViT",
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "silu",
}
# transformers resizes positions while it runs, where `interpolate_pos_encoding` asks for it.
RESIZE = PositionResize(antialias=False)


def model_type_for(config: ViTConfig, kept: Mapping[str, Any] | None = None) -> str:
    """Give the model_type that can say such a ViT; `kept` is that which it came with."""
    came = (kept or {}).get("model_type")
    if config.positions == "rope":
        return "dinov3_vit"
    if config.pre_norm:
        return "clip" if config.classes and config.pooling == "mean" else "clip_vision_model"
    if config.pooling == "map":
        return "siglip_vision_model"
    if not config.class_token:
        oblong = config.image_size[0] != config.image_size[1]
        if came == "ijepa" or oblong or config.qkv_bias == "none":
            return "ijepa"
        return "siglip" if config.classes else "siglip_vision_model"
    scaled = config.layer_scale is not None or config.mlp == "swiglu"
    # DeiT without its second classifier: the distillation token is one register with a position.
    if config.distillation_token or (config.registers == 1 and not scaled):
        return "deit"
    if config.registers:
        return "dinov2_with_registers"
    if scaled or config.pooling == "cls+mean":
        return "dinov2"
    if config.classes or config.pre_logits:
        return "vit_msn" if came == "vit_msn" and config.classes else "vit"
    # Without a head: ViTModel would make up a pooler, ViTMSNModel has none.
    return came if came in ("vit", "vit_mae") else "vit_msn"


def ratios(config: ViTConfig) -> dict[int, int]:
    """Give DINOv2's `mlp_ratio`, a whole number, for each width of its MLP."""
    wide = {ratio: config.width * ratio for ratio in range(1, 33)}
    if config.mlp == "swiglu":  # two thirds, rounded up to a multiple of 8
        wide = {ratio: (int(n * 2 / 3) + 7) // 8 * 8 for ratio, n in wide.items()}
    return {n: ratio for ratio, n in wide.items()}
