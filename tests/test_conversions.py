"""From one dialect into another: the numbers stay, or an error names what has no place there."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import oracle_blog
import oracle_google
import oracle_huggingface
import oracle_timm
import oracle_torchvision
import vitrail
from oracles import HEADS, SQUARE, TOLERANCES, difference, libraries, ours, read, watch
from test_dialects import ORACLES, load
from test_round_trips import TARGETS, export
from vitrail.errors import VitrailError

__all__ = ["libraries"]  # a fixture
pytestmark = pytest.mark.usefixtures("libraries")

# A square ViT of 9 classes has a place in all of them but for its
# eps, which files of torchvision and Google cannot say, and JAX's GELU.
PLAIN: dict[str, Any] = {"image_size": SQUARE, "heads": HEADS}


def plain_vit(folder: Path, **told: Any) -> vitrail.Bundle:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**{**oracle_timm.SIZES, "img_size": SQUARE})
    torch.save(oracle_timm.drawn(model, torch.float32).state_dict(), folder / "plain.pth")
    return vitrail.load(folder / "plain.pth", **{**PLAIN, **told})


def through_timm(target: Path) -> Any:
    import timm

    return partial(
        oracle_timm.answer, timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    )


def through_huggingface(target: Path) -> Any:
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(target).eval()
    return partial(oracle_huggingface.classifier, model)


def through_torchvision(target: Path) -> Any:
    return partial(oracle_torchvision.answer, read(target), {})


def through_google(target: Path) -> Any:
    model = oracle_google.vision_transformer(SQUARE, {}).eval()
    model.load_pretrained(str(target))
    return partial(oracle_timm.answer, model)


def through_vitrail(target: Path, **told: Any) -> Any:
    return partial(ours, vitrail.load(target, **told).model)


CROSSINGS: dict[str, Any] = {
    "timm": through_timm,
    "huggingface": through_huggingface,
    "torchvision": through_torchvision,
    "google": through_google,
    "mae": partial(through_vitrail, heads=HEADS),
}


@torch.no_grad()
@pytest.mark.parametrize("to", CROSSINGS)
def test_a_plain_vit_has_a_place_in_another_dialect(to: str, tmp_path: Path) -> None:
    bundle = plain_vit(tmp_path, **({"activation": "gelu_tanh"} if to == "google" else {}))

    answer = CROSSINGS[to](export(bundle, tmp_path, to))

    images = torch.randn(2, 3, *SQUARE)
    for mine, theirs in zip(answer(images), ours(bundle.model, images), strict=True):
        assert difference(mine, theirs) <= TOLERANCES[torch.float32]


# transformers' class that an export names, and how it is asked.
CLASSES_OF: dict[str, Any] = {
    "ViTForImageClassification": oracle_huggingface.classifier,
    "IJepaForImageClassification": oracle_huggingface.classifier,
    "DeiTForImageClassificationWithTeacher": oracle_huggingface.classifier,
    "Dinov2WithRegistersModel": oracle_huggingface.class_token,
    "DINOv3ViTModel": oracle_huggingface.class_token,
    "CLIPVisionModelWithProjection": oracle_huggingface.clip,
    "SiglipVisionModel": oracle_huggingface.features,
}


def through_named_class(target: Path) -> Any:
    import transformers

    [name] = json.loads((target / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(target).eval()
    return partial(CLASSES_OF[name], model)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("huggingface: ViT", "timm"),
        ("huggingface: DeiT, distilled", "timm"),
        ("huggingface: DINOv2", "timm"),
        ("huggingface: DINOv2, SwiGLU", "timm"),
        ("huggingface: DINOv2, registers", "timm"),
        ("huggingface: DINOv3", "timm"),
        ("huggingface: DINOv3, gated", "timm"),
        ("huggingface: CLIP, projection", "timm"),
        ("huggingface: SigLIP, vision", "timm"),
        ("torchvision: ViT", "timm"),
        ("google: big_vision, MAP", "timm"),
        ("clip: all of CLIP", "timm"),
        ("blog: linear", "timm"),
        ("original: DINOv2", "timm"),
        ("original: DINOv3", "timm"),
        ("timm: DeiT, distilled", "huggingface"),
        ("timm: I-JEPA, gap", "huggingface"),
        ("torchvision: ViT", "huggingface"),
        ("google: vit_jax", "huggingface"),
        ("clip: all of CLIP", "huggingface"),
        ("original: DINOv3", "huggingface"),
        ("original: DINOv3, gated", "huggingface"),
        ("huggingface: ViT, other sizes", "torchvision"),
    ],
)
def test_what_has_a_place_in_another_library_gives_its_numbers_there(
    name: str, to: str, tmp_path: Path
) -> None:
    oracle = ORACLES[name](torch.float32)
    bundle = load(oracle, tmp_path)

    target = export(bundle, tmp_path, to)

    opened = {**CROSSINGS, "huggingface": through_named_class}[to](target)
    images = oracle.images()
    for mine, theirs in zip(opened(images), ours(bundle.model, images), strict=True):
        assert difference(mine, theirs) <= TOLERANCES[torch.float32]


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "scaled after softmax"])
@pytest.mark.parametrize("to", ["blog", "blog-after-softmax"])
def test_the_blog_s_two_scales_turn_into_each_other(name: str, to: str, tmp_path: Path) -> None:
    oracle = oracle_blog.CASES[name](torch.float64)
    bundle = load(oracle, tmp_path)

    target = export(bundle, tmp_path, to)

    scale: oracle_blog.Scale = "before softmax" if to == "blog" else "after softmax"
    model = oracle_blog.vit(scale, convolution=False).double().eval()
    model.load_state_dict(read(target))
    images = oracle.images(dtype=torch.float64)
    for mine, theirs in zip(watch(model, model[1], images), oracle.answer(images), strict=True):
        assert difference(mine, theirs) <= TOLERANCES[torch.float64]


@pytest.mark.parametrize(
    ("name", "to", "part"),
    [
        ("timm: DINOv2 with registers", "torchvision", "registers"),
        ("timm: DeiT, distilled", "torchvision", "distillation_token"),
        ("timm: SigLIP", "torchvision", "pooling"),
        ("timm: ViT-22B", "huggingface", "qk_norm"),
        ("timm: swiglu", "google", "mlp"),
        ("timm: ViT, DeiT, DINO", "google", "activation"),
        ("timm: ViT, DeiT, DINO", "vit-pytorch", "patch_norms"),
        ("vit-pytorch: class token", "timm", "patch_norms"),
        ("vit-pytorch: class token", "huggingface", "patch_norms"),
        ("huggingface: DINOv3", "torchvision", "positions"),
        ("blog: linear", "torchvision", "pooling"),
        ("clip: all of CLIP", "torchvision", "pre_norm"),
        ("timm: ViT, DeiT, DINO", "torchvision", "image_size"),
        ("timm: CLIP", "timm", "norm_eps"),
    ],
)
def test_what_has_no_place_in_a_dialect_is_named(
    name: str, to: str, part: str, tmp_path: Path
) -> None:
    bundle = load(ORACLES[name](torch.float32), tmp_path)

    with pytest.raises(VitrailError, match=part):
        export(bundle, tmp_path, to)

    assert not (tmp_path / TARGETS.get(to, "export.pth")).exists()
