"""vit-pytorch: state dicts of its `ViT`."""

from functools import partial
from typing import Any

import torch
from torch import nn

from conftest import randomize
from oracles import (
    CLASSES,
    DEPTH,
    HEADS,
    HIDDEN,
    NATIVE,
    PATCH,
    WIDTH,
    Build,
    Oracle,
    watch,
    write_pth,
)


@torch.no_grad()
def drawn(model: nn.Module) -> nn.Module:
    for child in model.children():
        randomize(child)
    for own in model.parameters(recurse=False):  # the class token has no row where it pools by mean
        own.normal_()
    return model


def build(dtype: torch.dtype, **changes: Any) -> Oracle:
    from vit_pytorch import ViT

    arguments: dict[str, Any] = {
        "image_size": NATIVE,
        "patch_size": PATCH,
        "num_classes": CLASSES,
        "dim": WIDTH,
        "depth": DEPTH,
        "heads": HEADS,
        "mlp_dim": HIDDEN,
        "dim_head": 5,  # its own field: 6 heads of 5 for a width of 24
        **changes,
    }
    model: Any = drawn(ViT(**arguments)).eval().to(dtype)
    return Oracle(
        dialect="vit-pytorch",
        write=partial(write_pth, model.state_dict()),
        answer=partial(watch, model, model.transformer),
        channels=arguments["channels"] if "channels" in changes else 3,
        given={"heads": arguments["heads"], "image_size": NATIVE},
        config={"patch_norms": True, "head_width": arguments["dim_head"], "qkv_bias": "none"},
    )


def simple(dtype: torch.dtype) -> Oracle:
    """Give its SimpleViT: the baseline of Beyer et al. 2022, with computed positions."""
    from vit_pytorch.simple_vit import SimpleViT

    model: Any = SimpleViT(
        image_size=NATIVE,
        patch_size=PATCH,
        num_classes=CLASSES,
        dim=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        mlp_dim=HIDDEN,
        dim_head=5,
    )
    model = drawn(model).eval().to(dtype)
    return Oracle(
        dialect="vit-pytorch",
        write=partial(write_pth, model.state_dict()),
        answer=partial(watch, model, model.transformer),
        given={"heads": HEADS, "image_size": NATIVE},
        config={"positions": "sincos", "class_token": False, "pooling": "mean"},
        bare=None,  # what is written is always a `ViT`
    )


CASES: dict[str, Build] = {
    "class token": build,
    "mean": partial(build, pool="mean"),
    "grey": partial(build, channels=1),
    "heads of 64": partial(build, dim_head=64, heads=2),
    "SimpleViT": simple,
}
