"""Random tiny models of timm, every parameter drawn, give the same numbers here.

timm's tensor names are ours, so that its state dict loads as it is but where a test says how not.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import TINY, randomize
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT

SIZES: dict[str, Any] = {
    "img_size": TINY.image_size,
    "patch_size": TINY.patch_size,
    "num_classes": TINY.classes,
    "embed_dim": TINY.width,
    "depth": TINY.depth,
    "num_heads": TINY.heads,
    "mlp_ratio": TINY.mlp_width / TINY.width,
}
# timm's switches, and the same in our words.
VISION_TRANSFORMERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViT, DeiT, DINO": ({}, {}),
    "no biases": (
        {"qkv_bias": False, "proj_bias": False},  # timm's second one is the MLP's too
        {"qkv_bias": "none", "proj_bias": False, "mlp_bias": False},
    ),
    "features": ({"num_classes": 0}, {"classes": 0}),
    "AugReg in JAX": ({"act_layer": "gelu_tanh"}, {"activation": "gelu_tanh"}),
    "MAE fine-tuned": (
        {"global_pool": "avg"},
        {"pooling": "mean", "final_norm": "pooled"},
    ),
    "I-JEPA, gap": (
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
        {"pooling": "mean", "class_token": False, "prefix_positions": 0},
    ),
    "RADIO": (
        {"final_norm": False, "reg_tokens": 3, "no_embed_class": True},
        {"final_norm": "none", "registers": 3, "prefix_positions": 0},
    ),
    "DeiT-III": (
        {"no_embed_class": True, "init_values": 1e-6},
        {"prefix_positions": 0, "layer_scale": 1e-6},
    ),
    "DINOv2 with registers": (
        {"no_embed_class": True, "reg_tokens": 4, "init_values": 1e-5},
        {"prefix_positions": 0, "registers": 4, "layer_scale": 1e-5},
    ),
    "registers with positions": ({"reg_tokens": 3}, {"registers": 3, "prefix_positions": 4}),
    "ViT-22B": ({"qk_norm": True}, {"qk_norm": True}),
    "CLIP": (
        {
            "pre_norm": True,
            "act_layer": "quick_gelu",
            "norm_layer": partial(nn.LayerNorm, eps=1e-3),
        },
        {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "norm_eps": 1e-3},
    ),
    "SigLIP": (
        {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
        {
            "class_token": False,
            "prefix_positions": 0,
            "pooling": "map",
            "activation": "gelu_tanh",
        },
    ),
    "MAP beside registers": (
        {"global_pool": "map", "reg_tokens": 3, "no_embed_class": True},
        {"pooling": "map", "registers": 3, "prefix_positions": 0},
    ),
}
# What two orders of the same sums round differently, as a share of the largest number.
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)


def assert_same(ours: ViT, theirs: Any, images: Tensor, tolerance: float) -> None:
    """Compare logits and all tokens; `tolerance` is a share of the largest number."""
    tokens = ours.tokens(images)
    pairs = [
        (ours(images), theirs(images)),
        (torch.cat([tokens.prefix, tokens.patches], dim=1), theirs.forward_features(images)),
    ]
    for our, their in pairs:
        assert our.shape == their.shape
        assert (our - their).abs().max() <= tolerance * their.abs().max()


def load(
    config: ViTConfig, theirs: nn.Module, rename: Callable[[dict[str, Tensor]], Any] = dict
) -> ViT:
    """Give our model with the weights of `theirs`, every one of them drawn."""
    weights = rename(randomize(theirs).eval().state_dict())
    model = ViT(config).eval().to(next(theirs.parameters()).dtype)
    model.load_state_dict(weights, strict=True)
    return model


@pytest.mark.parametrize("name", VISION_TRANSFORMERS)
@PRECISIONS
def test_a_vision_transformer_gives_timm_s_numbers(
    timm: ModuleType, images: Tensor, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    switches, changes = VISION_TRANSFORMERS[name]
    theirs = timm.models.vision_transformer.VisionTransformer(**{**SIZES, **switches}).to(dtype)

    ours = load(TINY.replace(**changes), theirs)

    assert_same(ours, theirs, images.to(dtype), tolerance)


@PRECISIONS
def test_packed_swiglu_gives_timm_s_numbers(
    timm: ModuleType, images: Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    theirs = timm.models.vision_transformer.VisionTransformer(
        **{**SIZES, "mlp_ratio": 2 * TINY.mlp_width / TINY.width},  # timm counts both halves
        mlp_layer=partial(timm.layers.GluMlp, gate_last=False),
        act_layer="silu",
    ).to(dtype)

    ours = load(TINY.replace(mlp="swiglu", activation="silu"), theirs)

    assert_same(ours, theirs, images.to(dtype), tolerance)


@pytest.mark.parametrize("classes", [0, 9])
@PRECISIONS
def test_a_distilled_deit_gives_timm_s_numbers(
    timm: ModuleType, images: Tensor, classes: int, dtype: torch.dtype, tolerance: float
) -> None:
    theirs = timm.models.deit.VisionTransformerDistilled(**{**SIZES, "num_classes": classes})
    theirs = theirs.to(dtype)

    config = TINY.replace(distillation_token=True, prefix_positions=2, classes=classes)
    ours = load(config, theirs)

    assert_same(ours, theirs, images.to(dtype), tolerance)


# In float32 alone: there timm resizes the table even of a float64 model, and ours does not.
@pytest.mark.parametrize("size", [(24, 80), (80, 64), (8, 16)], ids=str)
@pytest.mark.parametrize("registers", [0, 4])
def test_another_image_size_gives_timm_s_numbers(
    timm: ModuleType, size: tuple[int, int], registers: int
) -> None:
    theirs = timm.models.vision_transformer.VisionTransformer(
        **SIZES, dynamic_img_size=True, reg_tokens=registers, no_embed_class=registers > 0
    )

    config = TINY.replace(registers=registers, prefix_positions=0 if registers else 1)
    ours = load(config, theirs)

    assert_same(ours, theirs, torch.randn(2, 3, *size), tolerance=1e-5)


def from_eva(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename layer scale, and pack SwiGLU's gate and up, which Eva keeps apart."""
    renamed = {}
    for key, tensor in weights.items():
        if "fc1_x" in key:
            continue
        if "fc1_g" in key:
            tensor = torch.cat([tensor, weights[key.replace("fc1_g", "fc1_x")]])
        for old, new in (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("fc1_g", "fc1")):
            key = key.replace(old, new)
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("qkv_bias", ["no_key", "none"])
@pytest.mark.parametrize("size", [(40, 56), (24, 80)], ids=str)
@PRECISIONS
def test_dinov3_gives_timm_s_numbers(
    timm: ModuleType,
    size: tuple[int, int],
    qkv_bias: Any,
    swiglu: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    # Heads of 12 have three frequencies an axis. At the image size that it is built for, timm's
    # rotations are computed in float32 for a float64 model too, as DINOv3's and ours always are.
    theirs = timm.models.eva.Eva(
        **{**SIZES, "num_heads": 2, "img_size": size},
        global_pool="token",
        qkv_bias=qkv_bias == "no_key",
        init_values=1e-5,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        swiglu_mlp=swiglu,
        swiglu_align_to=8 if swiglu else 0,
        num_reg_tokens=4,
        use_fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    ).to(dtype)

    config = TINY.replace(
        heads=2,
        registers=4,
        positions="rope",
        prefix_positions=0,
        layer_scale=1e-5,
        norm_eps=1e-5,
        qkv_bias=qkv_bias,
        mlp="swiglu" if swiglu else "plain",
    )
    ours = load(config, theirs, from_eva)

    assert_same(ours, theirs, torch.randn(2, 3, *size, dtype=dtype), tolerance)
