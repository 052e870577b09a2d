"""All presets: each name that `vitrail.create` knows, as a `ViTConfig`.

Sizes are the papers' and the released checkpoints'; `tests/test_presets.py` holds the parameter
counts. A preset without a classifier of its own (DINO, DINOv2, MAE, SigLIP ...) has `classes=0`.
"""

from functools import cache
from typing import Any

from vitrail.errors import ConfigError, nearest
from vitrail.model.config import PositionResize, ViTConfig

# The letters of the field: width, depth and heads (Zhai et al. 2022, table 2, and DeiT's).
_SIZES: dict[str, dict[str, Any]] = {
    "ti": {"width": 192, "depth": 12, "heads": 3},
    "s": {"width": 384, "depth": 12, "heads": 6},
    "m": {"width": 512, "depth": 12, "heads": 8},
    "b": {"width": 768, "depth": 12, "heads": 12},
    "l": {"width": 1024, "depth": 24, "heads": 16},
    "h": {"width": 1280, "depth": 32, "heads": 16},
    "g": {"width": 1408, "depth": 40, "heads": 16, "mlp_width": 6144},
    "bigg": {"width": 1664, "depth": 48, "heads": 16, "mlp_width": 8192},
    "so400m": {"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304},
}
# How each family reads a position table at another size: its own code's rule.
_BICUBIC = PositionResize(antialias=False)  # DeiT, MAE, Hugging Face
_DINO = PositionResize(antialias=False, offset=0.1)

_DEIT = {"position_resize": _BICUBIC}
_DISTILLED = {**_DEIT, "distillation_token": True, "prefix_positions": 2}
_DEIT3 = {**_DEIT, "prefix_positions": 0, "layer_scale": 1e-6}
_MAE = {"classes": 0, "position_resize": _BICUBIC}
_DINO1 = {"classes": 0, "position_resize": _DINO}
_DINO2 = {"classes": 0, "image_size": (518, 518), "layer_scale": 1e-5, "position_resize": _DINO}
_DINO2_REG4 = {**_DINO2, "registers": 4, "prefix_positions": 0, "position_resize": PositionResize()}
_DINO2_G = {"width": 1536, "heads": 24, "mlp": "swiglu", "activation": "silu", "mlp_width": 4096}
_DINO3 = {
    "classes": 0,
    "registers": 4,
    "positions": "rope",
    "prefix_positions": 0,
    "layer_scale": 1e-5,
    "norm_eps": 1e-5,
    "qkv_bias": "none",  # the released biases of S, B and L are zero; files that have some say so
}
_GATED = {"mlp": "swiglu", "activation": "silu"}
_CLIP = {"pre_norm": True, "patch_bias": False, "head_bias": False, "norm_eps": 1e-5}
_SIGLIP = {
    "classes": 0,
    "class_token": False,
    "prefix_positions": 0,
    "pooling": "map",
    "activation": "gelu_tanh",
}


@cache
def table() -> dict[str, ViTConfig]:
    """Give every preset by its name, in the order in which `vitrail presets` lists them."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "vit-ti16": ("ti/16", {}),
        "vit-s16": ("s/16", {}),
        "vit-s32": ("s/32", {}),
        "vit-b8": ("b/8", {}),
        "vit-b16": ("b/16", {}),
        "vit-b32": ("b/32", {}),
        "vit-l14": ("l/14", {}),
        "vit-l16": ("l/16", {}),
        "vit-l32": ("l/32", {}),
        "vit-h14": ("h/14", {}),
        "vit-g14": ("g/14", {}),
        # Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k"
        "simple-s16": ("s/16", {"class_token": False, "positions": "sincos", "pooling": "mean"}),
        "deit-ti16": ("ti/16", _DEIT),
        "deit-s16": ("s/16", _DEIT),
        "deit-b16": ("b/16", _DEIT),
        "deit-ti16-distilled": ("ti/16", _DISTILLED),
        "deit-s16-distilled": ("s/16", _DISTILLED),
        "deit-b16-distilled": ("b/16", _DISTILLED),
        "deit3-s16": ("s/16", _DEIT3),
        "deit3-m16": ("m/16", _DEIT3),
        "deit3-b16": ("b/16", _DEIT3),
        "deit3-l16": ("l/16", _DEIT3),
        "deit3-h14": ("h/14", _DEIT3),
        "mae-b16": ("b/16", _MAE),
        "mae-l16": ("l/16", _MAE),
        "mae-h14": ("h/14", _MAE),
        "dino-s8": ("s/8", _DINO1),
        "dino-s16": ("s/16", _DINO1),
        "dino-b8": ("b/8", _DINO1),
        "dino-b16": ("b/16", _DINO1),
        "dinov2-s14": ("s/14", _DINO2),
        "dinov2-b14": ("b/14", _DINO2),
        "dinov2-l14": ("l/14", _DINO2),
        "dinov2-g14": ("g/14", {**_DINO2, **_DINO2_G}),
        "dinov2-s14-reg4": ("s/14", _DINO2_REG4),
        "dinov2-b14-reg4": ("b/14", _DINO2_REG4),
        "dinov2-l14-reg4": ("l/14", _DINO2_REG4),
        "dinov2-g14-reg4": ("g/14", {**_DINO2_REG4, **_DINO2_G}),
        "dinov3-s16": ("s/16", _DINO3),
        "dinov3-splus16": ("s/16", {**_DINO3, **_GATED}),
        "dinov3-b16": ("b/16", _DINO3),
        "dinov3-l16": ("l/16", _DINO3),
        "dinov3-hplus16": ("h/16", {**_DINO3, **_GATED, "heads": 20}),
        "dinov3-7b16": (
            "l/16",
            {**_DINO3, **_GATED, "width": 4096, "depth": 40, "heads": 32, "mlp_width": 8192},
        ),
        # `classes` is the width of the space that images and texts share.
        "clip-b32": ("b/32", {**_CLIP, "classes": 512, "activation": "quick_gelu"}),
        "clip-b16": ("b/16", {**_CLIP, "classes": 512, "activation": "quick_gelu"}),
        "clip-l14": ("l/14", {**_CLIP, "classes": 768, "activation": "quick_gelu"}),
        "clip-h14": ("h/14", {**_CLIP, "classes": 1024}),
        "clip-g14": ("g/14", {**_CLIP, "classes": 1024}),
        "clip-bigg14": ("bigg/14", {**_CLIP, "classes": 1280}),
        "siglip-b16": ("b/16", _SIGLIP),
        "siglip-l16": ("l/16", {**_SIGLIP, "image_size": (256, 256)}),
        "siglip-so400m14": ("so400m/14", _SIGLIP),
        # The blog post's own variant: 8 heads, the mean over all tokens, the norm after it.
        "blog-b16": (
            "b/16",
            {"heads": 8, "pooling": "mean_all", "final_norm": "pooled", "norm_eps": 1e-5},
        ),
        # The digits' model: 8 x 8 grey pixels, 16 patches, about 200,000 parameters.
        "nano": (
            "s/2",
            {
                "image_size": (8, 8),
                "channels": 1,
                "classes": 10,
                "width": 64,
                "depth": 4,
                "heads": 4,
            },
        ),
    }
    return {name: _build(size, changes) for name, (size, changes) in rows.items()}


def presets() -> tuple[str, ...]:
    """Give the names of all presets."""
    return tuple(table())


def preset(name: str) -> ViTConfig:
    """Give the `ViTConfig` called `name`; an unknown one is a `ConfigError` with the nearest."""
    if name not in table():
        raise ConfigError(
            f'there is no preset "{name}".{nearest(name, table())} '
            "`vitrail presets` lists all of them"
        )
    return table()[name]


def _build(size: str, changes: dict[str, Any]) -> ViTConfig:
    letter, patch = size.split("/")
    if not changes.get("class_token", True):
        changes = {"prefix_positions": 0, **changes}
    return ViTConfig(**{**_SIZES[letter], "patch_size": int(patch), **changes})
