"""Every ViT of timm's, small, by its name alone: the same numbers, or refused by name."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vitrail
from conftest import randomize
from vitrail.errors import WeightsError
from vitrail.weights.dialects.timm import HOME
from vitrail.weights.dialects.timm_files import from_name, sidecar

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
MODULES = ("vision_transformer", "deit", "eva", "beit", "vision_transformer_relpos")


def small(timm: ModuleType, name: str) -> tuple[Any, dict[str, Any]]:
    """Give the model of that name, small, and its arguments."""
    with torch.device("meta"):
        patch = timm.create_model(name, depth=1).patch_embed.patch_size[0]
    args = {"img_size": 4 * patch, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    return randomize(timm.create_model(name, **args)).eval(), args


def write(model: Any, name: str, args: dict[str, Any], folder: Path) -> None:
    size = args["img_size"]
    config = {
        "architecture": name,
        "model_args": {key: value for key, value in args.items() if key != "num_classes"},
        "num_classes": args["num_classes"],
        "global_pool": model.global_pool,
        "pretrained_cfg": {"input_size": [3, size, size]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({n: t.clone() for n, t in model.state_dict().items()}, folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_each_of_timm_s_gives_its_numbers_or_is_refused(
    timm: ModuleType, module: str, tmp_path: Path
) -> None:
    same, refused, wrong = [], [], {}
    for name in timm.list_models(module=module, exclude_filters=["*sapiens2"]):
        model, args = small(timm, name)
        write(model, name, args, tmp_path)
        try:
            ours = vitrail.load(tmp_path).model
        except WeightsError:
            refused.append(name)
            continue
        images = torch.randn(1, 3, args["img_size"], args["img_size"])
        with torch.no_grad():
            theirs = model(images)
            share = (ours(images) - theirs).abs().max() / theirs.abs().max()
        (same.append(name) if share <= 1e-5 else wrong.update({name: float(share)}))

    assert wrong == {}
    assert len(same) >= {"vision_transformer": 100, "deit": 12, "eva": 10}.get(module, 0)
    if module in ("beit", "vision_transformer_relpos"):
        assert same == [] and refused


@pytest.mark.parametrize("name", ["vit_base_patch16_sapiens2", "naflexvit_base_patch16_gap"])
def test_what_cannot_be_made_small_is_refused_by_name(name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        sidecar({"config.json": {"architecture": name}})


@pytest.mark.slow
def test_heads_width_eps_and_activation_follow_from_the_name(timm: ModuleType) -> None:
    """AIMv2, and those with parallel branches, are told by their tensors."""
    others = ["aimv2*", "*sapiens2", "*18x2*", "*_pwee_*", "*_dpwee_*", "*_xp_*"]
    names, wrong = [], {}
    for module in ("vision_transformer", "deit", "eva"):
        names += timm.list_models(module=module, exclude_filters=others)
    for name in names:
        try:
            said = from_name(name)
        except WeightsError:
            continue
        with torch.device("meta"):
            model: Any = timm.create_model(name, depth=1)
        block = model.blocks[0]
        built = {"heads": block.attn.num_heads, "width": model.embed_dim}
        if "lingbot" not in name:  # DINOv3's eps, by its tensors
            built["norm_eps"] = block.norm1.eps
        if type(block.mlp.act).__name__ != "SiLU":
            built["activation"] = ACTIVATIONS[type(block.mlp.act).__name__]
        said = {"width": model.embed_dim, **HOME, **said}  # not every name has a width of its own
        if {field: said.get(field) for field in built} != built:
            wrong[name] = built

    assert len(names) > 170
    assert wrong == {}


@pytest.mark.parametrize(("pooling", "ours"), [("token", "cls"), ("avg", "mean"), ("map", "map")])
def test_the_pooling_of_a_folder_is_read(pooling: str, ours: str) -> None:
    stored = {"architecture": "vit_base_patch16_224", "global_pool": pooling, "pretrained_cfg": {}}

    assert sidecar({"config.json": stored}).config["pooling"] == ours
