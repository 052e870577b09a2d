"""timm: what its own saving writes, and bare state dicts that need heads and image size told."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conftest import randomize
from oracles import (
    CLASSES,
    DEPTH,
    HEADS,
    HIDDEN,
    NATIVE,
    OTHER,
    PATCH,
    WIDTH,
    Answer,
    Build,
    Oracle,
    write_pth,
)
from test_timm_parity import VISION_TRANSFORMERS

SIZES: dict[str, Any] = {
    "img_size": NATIVE,
    "patch_size": PATCH,
    "num_classes": CLASSES,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_ratio": HIDDEN / WIDTH,
}
# What a bare state dict cannot show; all else of a case must be found in its tensors.
HIDDEN_FIELDS = ("activation", "norm_eps")


def answer(model: Any, images: Tensor) -> Answer:
    return Answer(model(images), model.forward_features(images))


def drawn(model: nn.Module, dtype: torch.dtype) -> Any:
    return randomize(model).eval().to(dtype)


def vision_transformer(name: str, dtype: torch.dtype) -> Oracle:
    """Give one of the variants that timm's own builders make, as a bare state dict."""
    from timm.models.vision_transformer import VisionTransformer

    switches, found = VISION_TRANSFORMERS[name]
    # In float32 alone: timm resizes the table of a float64 model in float32 too.
    others = OTHER if dtype == torch.float32 else ()
    model = VisionTransformer(**{**SIZES, **switches}, dynamic_img_size=bool(others))
    model = drawn(model, dtype)
    return Oracle(
        dialect="timm",
        write=partial(write_pth, model.state_dict()),
        answer=partial(answer, model),
        others=others,
        given={"heads": HEADS, "image_size": NATIVE}
        | {field: found[field] for field in HIDDEN_FIELDS if field in found},
        config={k: v for k, v in found.items() if k != "layer_scale"},  # its first value: unknown
    )


def swiglu(dtype: torch.dtype) -> Oracle:
    from timm.layers.mlp import GluMlp
    from timm.models.vision_transformer import VisionTransformer

    switches: dict[str, Any] = {
        "mlp_ratio": 2 * HIDDEN / WIDTH,  # timm counts both halves
        "mlp_layer": partial(GluMlp, gate_last=False),
        "act_layer": "silu",
    }
    model = drawn(VisionTransformer(**{**SIZES, **switches}), dtype)
    return Oracle(
        dialect="timm",
        write=partial(write_pth, model.state_dict()),
        answer=partial(answer, model),
        given={"heads": HEADS, "image_size": NATIVE},
        config={"mlp": "swiglu", "mlp_width": HIDDEN},
    )


def distilled(dtype: torch.dtype) -> Oracle:
    from timm.models.deit import VisionTransformerDistilled

    model = drawn(VisionTransformerDistilled(**SIZES), dtype)
    return Oracle(
        dialect="timm",
        write=partial(write_pth, model.state_dict()),
        answer=partial(answer, model),
        given={"heads": HEADS, "image_size": NATIVE},
        config={"distillation_token": True, "prefix_positions": 2},
    )


def eva_model(*, bias: bool, gated: bool, classes: int = CLASSES) -> Any:
    """Build DINOv3 as timm does: its class Eva with rotations; here the class token is pooled."""
    from timm.models.eva import Eva

    return Eva(
        **{**SIZES, "num_heads": 2, "num_classes": classes},
        global_pool="token",
        qkv_bias=bias,
        init_values=1e-5,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        swiglu_mlp=gated,
        swiglu_align_to=8 if gated else 0,
        num_reg_tokens=4,
        use_fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )


def eva(dtype: torch.dtype, *, bias: bool, gated: bool) -> Oracle:
    model = drawn(eva_model(bias=bias, gated=gated), dtype)
    return Oracle(
        dialect="timm",
        write=partial(write_pth, model.state_dict()),
        answer=partial(answer, model),
        given={"heads": 2, "image_size": NATIVE, "norm_eps": 1e-5, "pooling": "cls"},
        config={"positions": "rope", "registers": 4, "mlp": "swiglu" if gated else "plain"},
    )


# A name that timm's `create_model` knows, and what is changed of it: all must be in config.json.
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", {}),
    "registers, mean": ("vit_base_patch16_reg4_gap_256", {}),
    "DINOv2": ("vit_small_patch14_dinov2", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "CLIP, quick GELU": ("vit_base_patch16_clip_quickgelu_224", {}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT-III": ("deit3_small_patch16_224", {}),
    # At any size, timm computes the rotations of a float64 model in float64; at its own size in
    # float32, as DINOv3's code and ours do.
    "DINOv3, mean": ("vit_small_patch16_dinov3", {"num_heads": 2, "dynamic_img_size": False}),
}


def folder(name: str, dtype: torch.dtype, arguments: dict[str, Any] | None = None) -> Oracle:
    """Give a model that timm made by name and saved itself: nothing needs to be told."""
    import timm
    from timm.models import save_for_hf

    architecture, changes = FOLDERS[name]
    changes = {**SIZES, **changes, **(arguments or {})}
    model = drawn(timm.create_model(architecture, **changes), dtype)

    def write(path: Path) -> Path:
        save_for_hf(model, str(path), model_args=changes, safe_serialization=True)
        return path

    return Oracle(dialect="timm", write=write, answer=partial(answer, model))


CASES: dict[str, Build] = {
    **{name: partial(vision_transformer, name) for name in VISION_TRANSFORMERS},
    "swiglu": swiglu,
    "DeiT, distilled": distilled,
    "DINOv3": partial(eva, bias=True, gated=False),
    "DINOv3, gated": partial(eva, bias=True, gated=True),
    "DINOv3 without qkv bias": partial(eva, bias=False, gated=False),
    **{f"folder: {name}": partial(folder, name) for name in FOLDERS},
}
