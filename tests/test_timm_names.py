"""What the names of timm's architectures say here is what timm builds by them."""

from types import ModuleType
from typing import Any

import pytest
import torch

from vitrail.weights.dialects.timm import HOME
from vitrail.weights.dialects.timm_files import sidecar

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}


def plain(timm: ModuleType) -> list[str]:
    """Give timm's plain ViTs: AIMv2's norms have no bias, and some have parallel branches."""
    names = [
        name
        for module in ("vision_transformer", "deit")
        for name in timm.list_models(module=module)
    ]
    names += [name for name in timm.list_models(module="eva") if "dinov3" in name]
    others = ("aimv2", "18x2", "_xp_", "_pwee_", "_dpwee_")
    return [name for name in names if not any(other in name for other in others)]


def test_heads_eps_activation_and_pooling_follow_from_the_name(timm: ModuleType) -> None:
    names, wrong = plain(timm), {}
    for name in names:
        with torch.device("meta"):
            model: Any = timm.create_model(name, depth=1)
        block = model.blocks[0]
        built = {
            "heads": block.attn.num_heads,
            "norm_eps": block.norm1.eps,
            "activation": ACTIVATIONS[type(block.mlp.act).__name__],
        }
        stored = {"architecture": name, "pretrained_cfg": dict(model.pretrained_cfg)}
        said = HOME | dict(sidecar({"config.json": stored}).config)
        said["activation"] = "silu" if built["activation"] == "silu" else said["activation"]
        if any(said.get(field) != value for field, value in built.items()):
            wrong[name] = {field: (value, said.get(field)) for field, value in built.items()}

    assert len(names) > 150
    assert wrong == {}


@pytest.mark.parametrize(("pooling", "ours"), [("token", "cls"), ("avg", "mean"), ("map", "map")])
def test_the_pooling_of_a_folder_is_read(pooling: str, ours: str) -> None:
    stored = {"architecture": "vit_base_patch16_224", "global_pool": pooling, "pretrained_cfg": {}}

    assert sidecar({"config.json": stored}).config["pooling"] == ours
