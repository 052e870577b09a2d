"""torchvision: state dicts of its VisionTransformer, which knows square images alone."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from conftest import randomize
from oracles import (
    CLASSES,
    DEPTH,
    HEADS,
    HIDDEN,
    PATCH,
    SQUARE,
    WIDTH,
    Answer,
    Build,
    Oracle,
    renamed,
    watch,
    write_pth,
)

SPELLINGS = {
    "before version 2": {"mlp.0": "mlp.linear_1", "mlp.3": "mlp.linear_2"},
    # `model.heads = nn.Linear(...)`, as many a tutorial on fine-tuning has it.
    "one layer for heads": {"heads.head": "heads"},
}


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = {"mlp.linear_1": "mlp.0", "mlp.linear_2": "mlp.3"}
    if "heads.weight" in weights:
        parts["heads."] = "heads.head."
    return renamed(weights, parts)


def vision_transformer(side: int, **changes: Any) -> Any:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=side,
        patch_size=PATCH,
        num_layers=DEPTH,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=HIDDEN,
        num_classes=CLASSES,
        **changes,
    )


def answer(weights: Mapping[str, Tensor], changes: dict[str, Any], images: Tensor) -> Answer:
    """Answer at any square size, by torchvision's own function for it."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    side = images.shape[-1]
    model = vision_transformer(side, **changes).eval().to(images.dtype)
    state: Any = dict(weights)
    model.load_state_dict(interpolate_embeddings(side, PATCH, state))
    return watch(model, model.encoder, images)


def build(dtype: torch.dtype, *, spelling: str = "", **changes: Any) -> Oracle:
    weights = randomize(vision_transformer(SQUARE[0], **changes)).to(dtype).state_dict()
    return Oracle(
        dialect="torchvision",
        write=partial(write_pth, renamed(weights, SPELLINGS.get(spelling, {}))),
        answer=partial(answer, weights, changes),
        size=SQUARE,
        others=((64, 64), (24, 24)),
        given={"heads": HEADS},
        config={"pre_logits": "representation_size" in changes},
        bare=bare,
    )


CASES: dict[str, Build] = {
    "ViT": build,
    "a layer before the head": partial(build, representation_size=WIDTH),
    **{f"names {name}": partial(build, spelling=name) for name in SPELLINGS},
}
