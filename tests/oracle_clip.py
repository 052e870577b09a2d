"""OpenAI's CLIP and open_clip: the image tower within CLIP, and timm's tower in its place."""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from conftest import randomize
from oracles import (
    DEPTH,
    HEADS,
    HIDDEN,
    NATIVE,
    PATCH,
    SQUARE,
    WIDTH,
    Answer,
    Build,
    Oracle,
    Size,
    watch,
    write_pth,
)

PROJECTION = 20
TEXT: dict[str, Any] = {
    "context_length": 12,
    "vocab_size": 40,
    "width": 16,
    "heads": 2,
    "layers": 1,
}


def bare(values: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = {k.removeprefix("module."): v for k, v in values.get("state_dict", values).items()}
    if any(key.startswith("visual.") for key in weights):
        weights = {key: weights[key] for key in weights if key.startswith("visual.")}
    return {key.removeprefix("visual."): tensor for key, tensor in weights.items()}


def settings(size: Size, **vision: Any) -> dict[str, Any]:
    return {
        "layers": DEPTH,
        "width": WIDTH,
        "head_width": WIDTH // HEADS,
        "mlp_ratio": HIDDEN / WIDTH,
        "patch_size": PATCH,
        "image_size": size,
        **vision,
    }


def clip(size: Size, quick: bool, **vision: Any) -> Any:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    tower = CLIPVisionCfg(**settings(size, **vision))
    return CLIP(PROJECTION, tower, CLIPTextCfg(**TEXT), quick_gelu=quick)


def answer(
    weights: Mapping[str, Tensor], quick: bool, vision: dict[str, Any], images: Tensor
) -> Answer:
    """Answer at any image size, by open_clip's own function for it, which takes square tables."""
    from open_clip.model import resize_pos_embed

    model = clip((images.shape[2], images.shape[3]), quick, **vision).eval().to(images.dtype)
    state = {key: tensor.to(images.dtype) for key, tensor in weights.items()}
    resize_pos_embed(state, model)
    model.load_state_dict(state)
    return watch(model.visual, model.visual.ln_post, images)


def archive(model: nn.Module, size: Size, folder: Path) -> Path:
    """Write a TorchScript archive with the three sizes that OpenAI's hold as tensors."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in model.named_children():
                self.add_module(name, child)
            for name, parameter in model.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
            sizes = {"input_resolution": size[0], "context_length": 12, "vocab_size": 40}
            for name, value in sizes.items():
                self.register_buffer(name, torch.tensor(value))

        def forward(self, images: Tensor) -> Tensor:
            return self.get_submodule("visual")(images)

    blank = torch.zeros(1, 3, *size, dtype=torch.float16)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wishes that nobody wrote such archives today
        traced = torch.jit.trace(Whole().eval(), blank, check_trace=False)
        torch.jit.save(traced, folder / "weights.pt")
    return folder / "weights.pt"


def hub_folder(model: Any, config: dict[str, Any], folder: Path) -> Path:
    """Write the folder that open_clip pushes to the hub, but for its tokenizer."""
    from open_clip.push_to_hf_hub import save_config_for_hf

    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    model.visual.image_mean, model.visual.image_std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    path: Any = folder / "open_clip_config.json"
    save_config_for_hf(model, path, config)
    return folder


def build(
    dtype: torch.dtype,
    *,
    quick: bool = True,
    form: str = "whole",
    half: bool = False,
    size: Size = SQUARE,
    **vision: Any,
) -> Oracle:
    model = randomize(clip(size, quick, **vision)).eval().to(dtype)
    if half:
        model = model.half()  # rounds the weights; the arithmetic of both sides is `dtype`'s
    weights = model.state_dict()
    given: dict[str, Any] = (
        {"heads": HEADS} if size == SQUARE else {"heads": HEADS, "image_size": size}
    )
    # open_clip's towers of text may be transformers' BERT, whose norms come after its branches.
    bert = {
        "text.transformer.encoder.layer.0.attention.output.LayerNorm.weight": torch.ones(16),
        "text.transformer.embeddings.word_embeddings.weight": torch.ones(40, 16),
        "text.proj.0.weight": torch.ones(PROJECTION, 16),
        "logit_scale": torch.ones(()),
    }
    images = {key: weights[key] for key in weights if key.startswith("visual.")}
    tower = {key.removeprefix("visual."): tensor for key, tensor in images.items()}
    write = {
        "whole": partial(write_pth, weights),
        "beside BERT": partial(write_pth, {**images, **bert}),
        "tower": partial(write_pth, tower),
        "trained": partial(
            write_pth,
            {
                "epoch": 3,
                "name": "a run",
                "state_dict": {f"module.{key}": weights[key] for key in weights},
                "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
            },
        ),
        "archive": partial(archive, model, size),
        "hub": partial(
            hub_folder,
            model,
            {
                "embed_dim": PROJECTION,
                "vision_cfg": settings(size, **vision),
                "text_cfg": TEXT,
                **({"quick_gelu": True} if quick else {}),
            },
        ),
    }[form]
    return Oracle(
        dialect="clip",
        write=write,
        answer=partial(answer, weights, quick, vision),
        size=size,
        others=(NATIVE, (64, 80)) if size == SQUARE else (),
        given={} if form == "hub" else given if quick else {**given, "activation": "gelu"},
        config={"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5},
        bare=None if form == "archive" else bare,
    )


def timm_tower(dtype: torch.dtype) -> Oracle:
    """Give open_clip's form of a timm model, with its linear projection on top."""
    from open_clip.timm_model import TimmModel

    tower: Any = randomize(TimmModel("test_vit", PROJECTION, image_size=160, pool="")).eval()
    tower = tower.to(dtype)
    weights = {f"visual.{key}": tensor for key, tensor in tower.state_dict().items()}
    weights["text.positional_embedding"] = torch.randn(12, 16, dtype=dtype)
    weights["logit_scale"] = torch.randn((), dtype=dtype)
    return Oracle(
        dialect="timm",
        write=partial(write_pth, weights),
        answer=lambda images: Answer(tower(images), tower.trunk.forward_features(images)),
        size=(160, 160),
        given={"heads": 2, "activation": "gelu", "norm_eps": 1e-6},
        bare=None,
    )


def siglip_tower(dtype: torch.dtype) -> Oracle:
    """Give open_clip's SigLIP: a timm tower that pools by attention and has no projection."""
    from timm.models.vision_transformer import VisionTransformer

    from oracle_timm import SIZES

    tower: Any = VisionTransformer(
        **{**SIZES, "num_classes": 0},
        class_token=False,
        global_pool="map",
        act_layer="gelu_tanh",
    )
    tower = randomize(tower).eval().to(dtype)
    weights = {f"visual.trunk.{key}": tensor for key, tensor in tower.state_dict().items()}
    weights["text.positional_embedding"] = torch.randn(12, 16, dtype=dtype)
    return Oracle(
        dialect="timm",
        write=partial(write_pth, weights),
        answer=lambda images: Answer(tower(images), tower.forward_features(images)),
        given={
            "heads": HEADS,
            "image_size": NATIVE,
            "activation": "gelu_tanh",
            "norm_eps": 1e-6,
        },
        bare=None,
    )


CASES: dict[str, Build] = {
    "all of CLIP": build,
    "the image tower": partial(build, form="tower"),
    "beside BERT": partial(build, form="beside BERT"),
    "oblong": partial(build, size=NATIVE),
    "exact GELU": partial(build, quick=False),
    "layer scale": partial(build, ls_init_value=1e-5),
    "training checkpoint": partial(build, form="trained"),
    "float16": partial(build, half=True),
    "TorchScript archive": partial(build, form="archive", half=True),
    "folder of the hub": partial(build, form="hub", size=NATIVE),
    "folder of the hub, exact GELU": partial(build, form="hub", quick=False),
    "timm tower": timm_tower,
    "timm tower, SigLIP": siglip_tower,
}
