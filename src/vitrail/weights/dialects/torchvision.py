"""torchvision's files (torchvision 0.28, `models/vision_transformer.py`)."""

from typing import Any

from vitrail.model.config import PositionResize, ViTConfig
from vitrail.weights.dialect import IMAGENET, Dialect, has, plain
from vitrail.weights.rules import layer, rule

_BLOCK = "encoder.layers.encoder_layer_{i}"
# torchvision's `interpolate_embeddings`: corners stay where they are.
_RESIZE = PositionResize(antialias=False, align_corners=True)


def _preprocess(config: ViTConfig) -> dict[str, Any]:
    """Weights of version 1 bring the shorter side to 256, L/16's to 242; SWAG's, larger, to it."""
    if max(config.image_size) > 224:
        return IMAGENET
    side = 242 if (config.width, config.patch_size) == (1024, 16) else 256
    return {**IMAGENET, "crop": 224 / side, "interpolation": "bilinear"}


TORCHVISION = Dialect(
    name="torchvision",
    variant="torchvision",
    marks=has(r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight"),
    rules=(
        rule("cls_token", "class_token"),
        rule("pos_embed", "encoder.pos_embedding"),
        *layer("patch_embed.proj", "conv_proj"),
        *layer("blocks.{i}.norm1", f"{_BLOCK}.ln_1"),
        rule("blocks.{i}.attn.qkv.weight", f"{_BLOCK}.self_attention.in_proj_weight"),
        rule("blocks.{i}.attn.qkv.bias", f"{_BLOCK}.self_attention.in_proj_bias"),
        *layer("blocks.{i}.attn.proj", f"{_BLOCK}.self_attention.out_proj"),
        *layer("blocks.{i}.norm2", f"{_BLOCK}.ln_2"),
        *layer("blocks.{i}.mlp.fc1", f"{_BLOCK}.mlp.0"),
        *layer("blocks.{i}.mlp.fc2", f"{_BLOCK}.mlp.3"),
        *layer("norm", "encoder.ln"),
        *layer("pre_logits", "heads.pre_logits"),
        *layer("head", "heads.head"),
    ),
    spellings=(
        (r"\.mlp\.linear_1\.", ".mlp.0."),  # before the file's version 2
        (r"\.mlp\.linear_2\.", ".mlp.3."),
        (r"^heads\.(0\.)?(weight|bias)$", r"heads.head.\2"),  # a head that a tutorial put in place
    ),
    home={"norm_eps": 1e-6, "activation": "gelu", "pooling": "cls", "position_resize": _RESIZE},
    preprocess=_preprocess,
    holds=lambda config: {
        **plain(config),
        "image_size": ((config.image_size[0], config.image_size[0]),),  # its code takes one number
        "channels": 3,
        "classes": config.classes or 1000,  # it has no form without a head
        "position_resize": _RESIZE,
        "pre_logits": (False, True),
    },
)
