"""Import, then export: every tensor comes back bit for bit, and its own library opens it."""

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import oracle_google
import oracle_huggingface
import oracle_timm
import oracle_torchvision
import oracle_vit_pytorch
import vitrail
from oracles import (
    NATIVE,
    TOLERANCES,
    Oracle,
    difference,
    libraries,
    read,
)
from test_dialects import HALF, ORACLES, load

__all__ = ["libraries"]  # a fixture
pytestmark = pytest.mark.usefixtures("libraries")

TARGETS = {"google": "export.npz", "huggingface": "export", "timm": "export"}
# Tensors that an export may add: their homes want them, and they say nothing.
ADDED = {"mask_token", "embeddings.mask_token"}
# timm's architecture of SwiGLU blocks has layer scale; ones are none.
SCALE = (".ls1.gamma", ".ls2.gamma")
# A factor is folded into these, and out again: one unit in the last place is allowed.
FOLDED = ("qkv.weight", "qkv.bias")


def export(origin: Any, folder: Path, to: str, **told: Any) -> Path:
    target = folder / TARGETS.get(to, "export.pth")
    vitrail.convert(origin, target, to=to, **told)
    return target


def assert_same_tensors(back: Any, source: Any, folded: tuple[str, ...] = ()) -> None:
    added = {name for name in set(back) - set(source) if name.endswith(SCALE)}
    assert all((back[name] == 1).all() for name in added)
    assert set(back) - ADDED - added == set(source) - ADDED
    for name in set(source) - ADDED:
        mine, theirs = back[name], source[name]
        assert mine.dtype == theirs.dtype, f"{name} {mine.dtype}, not {theirs.dtype}"
        assert mine.shape == theirs.shape, f"{name} {mine.shape}, not {theirs.shape}"
        if name.endswith(folded) and folded:
            up = torch.nextafter(theirs, torch.full_like(theirs, torch.inf)) - theirs
            down = theirs - torch.nextafter(theirs, torch.full_like(theirs, -torch.inf))
            assert ((mine - theirs).abs() <= torch.maximum(up, down)).all(), name
        else:
            assert torch.equal(mine, theirs), f"{name} has other values"


# An eps of 1e-3: no file of timm can say it (test_conversions.py).
NOT_BACK = ("timm: CLIP",)
BARE = [
    pytest.param(name, dtype, marks=[pytest.mark.slow] * (dtype == torch.float64))
    for name in ORACLES
    for dtype in (torch.float32, torch.float64)
    if name not in NOT_BACK and (dtype == torch.float32 or name not in HALF)
]


@pytest.mark.parametrize(("name", "dtype"), BARE, ids=str)
def test_import_then_export_gives_back_every_tensor(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    oracle = ORACLES[name](dtype)
    if oracle.bare is None:
        pytest.skip("its home writes no such form of its own")
    (tmp_path / "source").mkdir()
    origin = oracle.write(tmp_path / "source")

    target = export(origin, tmp_path, oracle.dialect, **oracle.given)

    source, back = (oracle.bare(read(path)) for path in (origin, target))
    assert_same_tensors(back, source, FOLDED if oracle.dialect.startswith("blog") else ())


def open_timm(target: Path, like: Oracle) -> Any:
    import timm

    model = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    return partial(oracle_timm.answer, model)


def open_huggingface(target: Path, like: Oracle) -> Any:
    """Open a classifier by transformers' own choice of its class, and ask the same of it."""
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(
        target, dtype="auto", attn_implementation="sdpa"
    ).eval()
    assert isinstance(like.answer, partial)
    return partial(like.answer.func, model, **like.answer.keywords)


def open_torchvision(target: Path, like: Oracle) -> Any:
    weights = read(target)
    assert isinstance(like.answer, partial)
    return partial(oracle_torchvision.answer, weights, like.answer.args[1])


def open_vit_pytorch(target: Path, like: Oracle) -> Any:
    assert isinstance(like.answer, partial)
    model = like.answer.args[0]
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.load_state_dict(read(target))
    return like.answer


def open_google(target: Path, like: Oracle) -> Any:
    """Open by timm's reader, which takes the numbering that a layout of positions goes with."""
    assert isinstance(like.answer, partial)
    model = oracle_google.vision_transformer(like.size, like.answer.args[1]).eval()
    model.load_pretrained(str(target))
    return partial(oracle_timm.answer, model)


OPENS: dict[str, tuple[Any, list[str]]] = {
    "timm": (
        open_timm,
        [
            *(f"timm: {name}" for name in ("ViT, DeiT, DINO", "AugReg in JAX", "DeiT-III")),
            *(f"timm: {name}" for name in ("MAE fine-tuned", "I-JEPA, gap", "RADIO", "SigLIP")),
            *(f"timm: {name}" for name in ("DINOv2 with registers", "registers with positions")),
            *(f"timm: {name}" for name in ("swiglu", "DeiT, distilled", "DINOv3", "DINOv3, gated")),
            *(f"timm: folder: {name}" for name in oracle_timm.FOLDERS),
            "original: DeiT",
            "original: DINO",
        ],
    ),
    "huggingface": (
        open_huggingface,
        [
            "huggingface: ViT",
            "huggingface: ViT, other sizes",
            "huggingface: ViT without qkv bias",
            "huggingface: ViT, another GELU and eps",
            "huggingface: DeiT",
            "huggingface: DeiT, distilled",
            "huggingface: DINOv2, classifier",
            "huggingface: DINOv2, registers, classifier",
            "huggingface: SigLIP, classifier",
        ],
    ),
    "torchvision": (
        open_torchvision,
        [f"torchvision: {name}" for name in oracle_torchvision.CASES],
    ),
    "vit-pytorch": (
        open_vit_pytorch,
        [f"vit-pytorch: {name}" for name in oracle_vit_pytorch.CASES if name != "SimpleViT"],
    ),
    "google": (open_google, [f"google: {name}" for name in oracle_google.TIMM_READS]),
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "to"), [(name, to) for to, (_, names) in OPENS.items() for name in names]
)
def test_the_library_at_home_opens_an_export_and_gives_its_numbers(
    name: str, to: str, tmp_path: Path
) -> None:
    oracle = ORACLES[name](torch.float32)
    bundle = load(oracle, tmp_path)

    answer = OPENS[to][0](export(bundle, tmp_path, to), oracle)

    images = oracle.images()
    for mine, theirs in zip(answer(images), oracle.answer(images), strict=True):
        assert difference(mine, theirs) <= TOLERANCES[torch.float32]


def test_half_precision_comes_back_in_its_own_dtype(tmp_path: Path) -> None:
    oracle = ORACLES["clip: float16"](torch.float32)

    target = export(oracle.write(tmp_path), tmp_path, "clip", **oracle.given)

    assert {tensor.dtype for tensor in read(target).values()} == {torch.float16}


# What travels beside the weights.


def test_labels_and_preprocessing_travel_through_timm(timm: ModuleType, tmp_path: Path) -> None:
    oracle = oracle_timm.folder("ViT", torch.float32)
    bundle = load(oracle, tmp_path)
    bundle = vitrail.Bundle(
        model=bundle.model, preprocess=bundle.preprocess, labels=tuple("abcdefghi")
    )

    again = vitrail.load(export(bundle, tmp_path, "timm"))

    # timm resizes to floor(40 / 0.9) = 44 pixels.
    assert bundle.preprocess.crop == pytest.approx(40 / 44)
    assert bundle.preprocess.size == NATIVE
    assert again.preprocess == bundle.preprocess
    assert again.labels == bundle.labels


def test_labels_and_preprocessing_travel_through_hugging_face(tmp_path: Path) -> None:
    config = {**oracle_huggingface.OBLONG, "id2label": dict(enumerate("abcdefghi"))}
    oracle = oracle_huggingface.build(
        "ViTForImageClassification", config, oracle_huggingface.classifier, torch.float32
    )
    (tmp_path / "source").mkdir()
    origin = oracle.write(tmp_path / "source")
    (origin / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "do_resize": true, "do_normalize": true,'
        ' "do_rescale": true, "rescale_factor": 0.00392156862745098, "resample": 2,'
        ' "size": {"height": 40, "width": 56}, "image_mean": [0.1, 0.2, 0.3],'
        ' "image_std": [0.4, 0.5, 0.6]}'
    )

    bundle = vitrail.load(origin)
    again = vitrail.load(export(origin, tmp_path, "huggingface"))

    assert bundle.labels == tuple("abcdefghi")
    assert (bundle.preprocess.resize, bundle.preprocess.interpolation) == ("square", "bilinear")
    assert bundle.preprocess.mean == (0.1, 0.2, 0.3)
    assert again.labels == bundle.labels
    assert again.preprocess == bundle.preprocess
