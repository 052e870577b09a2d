"""Files in the names of the code that trained them: DeiT, MAE, DINO, DINOv2 and DINOv3.

None of it is a package to install. timm's model is the oracle, its weights written in the
original's names; `test_dialects.py` shows that timm's own converters read them as meant.
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from conftest import randomize
from oracle_timm import SIZES, drawn, eva_model
from oracle_timm import answer as timm_answer
from oracles import (
    HEADS,
    HIDDEN,
    NATIVE,
    OTHER,
    PATCH,
    WIDTH,
    Answer,
    Build,
    Oracle,
    Size,
    renamed,
    resized,
    write_pth,
)
from vitrail.model.config import PositionResize

TOLD: dict[str, Any] = {"heads": HEADS, "image_size": NATIVE}
DEIT3 = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
DINO2 = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
EVA = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}
GATED = {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}


def vision_transformer(size: Size = NATIVE, *, swiglu: bool = False, **switches: Any) -> Any:
    from timm.layers.mlp import GluMlp
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    if swiglu:
        switches |= {"mlp_layer": partial(GluMlp, gate_last=False), "act_layer": "silu"}
        switches["mlp_ratio"] = 2 * HIDDEN / WIDTH  # timm counts both halves
    kind = VisionTransformerDistilled if switches.pop("distilled", False) else VisionTransformer
    return kind(**{**SIZES, "img_size": size, **switches})


def answer(
    weights: Mapping[str, Tensor], switches: dict[str, Any], rule: dict[str, Any], images: Tensor
) -> Answer:
    """Answer at any image size, the table resized by `rule` first, as the original does."""
    size = (images.shape[2], images.shape[3])
    model = vision_transformer(size, **switches).eval().to(images.dtype)
    state = dict(weights)
    if size != NATIVE:
        prefix = weights["pos_embed"].shape[1] - NATIVE[0] * NATIVE[1] // PATCH**2
        state["pos_embed"] = resized(state["pos_embed"], prefix, NATIVE, size, **rule)
    model.load_state_dict(state)
    return Answer(model(images), model.forward_features(images))


def draw(dtype: torch.dtype, **switches: Any) -> dict[str, Tensor]:
    return randomize(vision_transformer(**switches)).to(dtype).state_dict()


def oracle(
    dialect: str,
    values: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    switches: dict[str, Any],
    rule: dict[str, Any],
    **rest: Any,
) -> Oracle:
    rest["given"] = {**TOLD, **rest.get("given", {})}
    return Oracle(
        dialect=dialect,
        write=partial(write_pth, values),
        answer=partial(answer, weights, switches, rule),
        others=OTHER,
        bare=bare,
        **rest,
    )


def bare(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the encoder's tensors of any of these files under timm's or DINOv2's names."""
    values = values.get("teacher", values.get("model", values))
    names = {key: key.removeprefix("backbone.") for key in values}
    names = {key: re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", names[key]) for key in names}
    left = r"mask_token|decoder_|(dino_)?head\.(mlp|last_layer)|local_cls_norm"
    found = {new: values[key] for key, new in names.items() if not re.match(left, new)}
    return renamed(found, {old: new for new, old in DEIT3.items()})


def masked(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give DINOv3's, the bias times its mask."""
    found = bare(values)
    for key in [key for key in found if key.endswith("qkv.bias")]:
        found[key] = found[key] * found[f"{key}_mask"]
    return found


def deit(dtype: torch.dtype, **switches: Any) -> Oracle:
    """Give DeiT's file, whose rule of resizing nothing in it tells from timm's."""
    weights = draw(dtype, **switches)
    values = {"model": renamed(weights, DEIT3)}
    told = {"position_resize": PositionResize(antialias=False)}
    return oracle("timm", values, weights, switches, {}, given=told)


def mae(dtype: torch.dtype, *, tuned: bool) -> Oracle:
    switches = {"global_pool": "avg"} if tuned else {"num_classes": 0}
    weights = draw(dtype, **switches)
    values: dict[str, Any] = {"model": dict(weights), "epoch": 3, "args": Namespace(lr=0.1)}
    if not tuned:
        values["model"] |= {
            "mask_token": torch.randn(1, 1, 16, dtype=dtype),
            "decoder_pos_embed": torch.randn(1, 36, 16, dtype=dtype),
            "decoder_embed.weight": torch.randn(16, WIDTH, dtype=dtype),
            "decoder_embed.bias": torch.randn(16, dtype=dtype),
            "decoder_blocks.0.attn.qkv.weight": torch.randn(48, 16, dtype=dtype),
            "decoder_blocks.0.attn.qkv.bias": torch.randn(48, dtype=dtype),
            "decoder_norm.weight": torch.randn(16, dtype=dtype),
            "decoder_norm.bias": torch.randn(16, dtype=dtype),
            "decoder_pred.weight": torch.randn(3 * PATCH**2, 16, dtype=dtype),
            "decoder_pred.bias": torch.randn(3 * PATCH**2, dtype=dtype),
        }
    told = {"position_resize": PositionResize(antialias=False)} if tuned else {}
    return oracle("timm" if tuned else "mae", values, weights, switches, {}, given=told)


def dino(dtype: torch.dtype) -> Oracle:
    """Give a file of DINO's training: another student beside the teacher, and what it resumes."""
    switches = {"num_classes": 0}
    weights = draw(dtype, **switches)
    head = {
        "head.mlp.0.weight": torch.randn(16, WIDTH, dtype=dtype),
        "head.mlp.0.bias": torch.randn(16, dtype=dtype),
        "head.last_layer.weight_g": torch.randn(30, 1, dtype=dtype),
        "head.last_layer.weight_v": torch.randn(30, 16, dtype=dtype),
    }
    teacher = {f"backbone.{key}": tensor for key, tensor in weights.items()} | head
    values = {
        "student": {f"module.{key}": 2 * tensor for key, tensor in teacher.items()},
        "teacher": teacher,
        "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": Namespace(arch="vit_small", patch_size=PATCH),
        "dino_loss": {"center": torch.zeros(1, 30)},
    }
    told = {"position_resize": PositionResize(antialias=False, offset=0.1)}
    return oracle("timm", values, weights, switches, {"offset": 0.1}, given=told)


def dino2(dtype: torch.dtype, form: str = "plain", registers: int = 0, **more: Any) -> Oracle:
    switches = {"num_classes": 0, "init_values": 1e-5, **more}
    if registers:
        switches |= {"reg_tokens": registers, "no_embed_class": True}
    weights = draw(dtype, **switches)
    values = renamed(weights, DINO2 if "swiglu" in more else {})
    values["mask_token"] = torch.randn(1, WIDTH, dtype=dtype)
    if registers:  # the original adds a position to the class token and none to registers
        row = torch.randn(1, 1, WIDTH, dtype=dtype)
        values["register_tokens"] = values.pop("reg_token")
        values["pos_embed"] = torch.cat([row, weights["pos_embed"]], dim=1)
        weights["cls_token"] = weights["cls_token"] + row
    file: dict[str, Any] = dict(values)
    if form != "plain":  # blocks in chunks of one, as its sharded training names them
        file = {
            f"backbone.{key.replace('blocks.', 'blocks.' + key.split('.')[1] + '.', 1)}"
            if key.startswith("blocks.")
            else f"backbone.{key}": tensor
            for key, tensor in values.items()
        }
        file["dino_head.mlp.0.weight"] = torch.randn(16, WIDTH, dtype=dtype)
        file = {"teacher": file}
    rule = {"antialias": True} if registers else {"offset": 0.1}
    found = {"registers": registers, "mlp": "swiglu" if "swiglu" in more else "plain"}
    return oracle("dinov2", file, weights, switches, rule, config=found)


def dino3(dtype: torch.dtype, *, gated: bool = False, bias: bool = True) -> Oracle:
    """Give DINOv3's names; the third of the bias that its mask takes out is drawn too."""
    model = drawn(eva_model(bias=bias, gated=gated, classes=0), dtype)
    values = renamed(model.state_dict(), {**EVA, **(GATED if gated else {})})
    for key in [key for key in values if key.endswith("q_bias")]:
        block = key.removesuffix("q_bias")
        q, v = values.pop(key), values.pop(f"{block}v_bias")
        values[f"{block}qkv.bias"] = torch.cat([q, torch.randn_like(q), v])
        one, zero = torch.ones_like(q), torch.zeros_like(q)
        values[f"{block}qkv.bias_mask"] = torch.cat([one, zero, one])
    values |= {
        "mask_token": torch.randn(1, WIDTH, dtype=dtype),
        "rope_embed.periods": 100 ** (torch.arange(3) / 3),
        "local_cls_norm.weight": torch.randn(WIDTH, dtype=dtype),
        "local_cls_norm.bias": torch.randn(WIDTH, dtype=dtype),
    }
    return Oracle(
        dialect="dinov3",
        write=partial(write_pth, values),
        answer=partial(timm_answer, model),
        given={"heads": 2, "image_size": NATIVE},
        config={"norm_eps": 1e-5, "positions": "rope", "registers": 4},
        bare=masked,
    )


CASES: dict[str, Build] = {
    "DeiT": deit,
    "DeiT, distilled": partial(deit, distilled=True),
    "DeiT-III": partial(deit, no_embed_class=True, init_values=1e-6),
    "MAE": partial(mae, tuned=False),
    "MAE, fine-tuned": partial(mae, tuned=True),
    "DINO": dino,
    "DINOv2": dino2,
    "DINOv2, registers": partial(dino2, registers=3),
    "DINOv2, SwiGLU": partial(dino2, swiglu=True),
    "DINOv2, SwiGLU and registers": partial(dino2, swiglu=True, registers=3),
    "DINOv2, training file": partial(dino2, form="training"),
    "DINOv3": dino3,
    "DINOv3, gated": partial(dino3, gated=True),
    "DINOv3 without qkv bias": partial(dino3, bias=False),
}
