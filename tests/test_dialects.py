"""Weights of other libraries give their numbers: logits and all tokens, with every weight drawn.

One oracle for each form in which a plain ViT is found; `oracle_*.py` build them.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import oracle_blog
import oracle_clip
import oracle_google
import oracle_huggingface
import oracle_originals
import oracle_timm
import oracle_torchvision
import oracle_vit_pytorch
import vitrail
from oracles import HEADS, Build, Oracle, assert_same, libraries, read, write_pth

__all__ = ["libraries"]  # a fixture

pytestmark = pytest.mark.usefixtures("libraries")

FAMILIES: dict[str, dict[str, Build]] = {
    "timm": oracle_timm.CASES,
    "huggingface": oracle_huggingface.CASES,
    "torchvision": oracle_torchvision.CASES,
    "google": oracle_google.CASES,
    "clip": oracle_clip.CASES,
    "vit-pytorch": oracle_vit_pytorch.CASES,
    "blog": oracle_blog.CASES,
    "original": oracle_originals.CASES,
}
ORACLES = {
    f"{family}: {name}": build
    for family, cases in FAMILIES.items()
    for name, build in cases.items()
}
HALF = {"clip: float16", "clip: TorchScript archive", "google: big_vision, bfloat16"}
# transformers' rotations of a float64 model come of angles that are float32 in part: they differ
# by 1e-8 from those of DINOv3's code. With rotations alike, the rest agrees to 1e-15. SimpleViT's
# positions are float32 in a float64 model too, and come of other roundings: by 1e-9.
IN_FLOAT32 = (
    HALF
    | {"vit-pytorch: SimpleViT"}
    | {name for name in ORACLES if name.startswith("huggingface: DINOv3")}
)
FLOATS = [(name, torch.float32) for name in ORACLES]
DOUBLES = [(name, torch.float64) for name in ORACLES if name not in IN_FLOAT32]
EVERY = pytest.mark.parametrize(("name", "dtype"), FLOATS + DOUBLES, ids=str)


def load(oracle: Oracle, folder: Path, **more: Any) -> vitrail.Bundle:
    return vitrail.load(oracle.write(folder), **{**oracle.given, **more})


@EVERY
def test_a_model_of_another_library_gives_its_numbers_at_each_image_size(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    oracle = ORACLES[name](dtype)

    model = load(oracle, tmp_path).model

    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {key: getattr(model.config, key) for key in oracle.config} == dict(oracle.config)
    for size in (oracle.size, *oracle.others):
        assert_same(model, oracle, size)


# Those whose native size need not be told, so that `image_size` asks for another.
MADE_FOR = [
    f"{family}: {name}"
    for family, names in (
        (
            "huggingface",
            [
                n
                for n in oracle_huggingface.CASES
                if "other sizes" in n or n[:3] in ("DIN", "CLI", "Sig")
            ],
        ),
        ("torchvision", oracle_torchvision.CASES),
        ("google", [name for name in oracle_google.CASES if "other sizes" in name]),
        ("clip", ["all of CLIP", "TorchScript archive"]),
    )
    for name in names
]


@pytest.mark.parametrize("name", MADE_FOR)
def test_a_model_loaded_for_another_image_size_is_made_for_it(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name](torch.float32)
    size = oracle.others[-1]

    model = load(oracle, tmp_path, image_size=size).model

    assert model.config.image_size == size
    assert_same(model, oracle, size)


@pytest.mark.parametrize("write", [oracle_huggingface.shards, oracle_huggingface.in_memory])
@pytest.mark.parametrize("name", oracle_huggingface.CASES)
def test_shards_and_the_names_in_memory_give_the_same(
    name: str, write: Any, tmp_path: Path
) -> None:
    oracle = oracle_huggingface.CASES[name](torch.float32)
    assert isinstance(oracle.write, partial)

    path = write(oracle.write.args[0], tmp_path)

    assert_same(vitrail.load(path, **oracle.given).model, oracle)


# All but those that differ from the defaults of their home.
ALONE = [n for n in oracle_huggingface.CASES if "GELU" not in n and "base" not in n]


@pytest.mark.parametrize("names", ["on disk", "in memory"])
@pytest.mark.parametrize("name", ALONE)
def test_hugging_face_s_weights_without_a_config_file_run_as_its_own_defaults_do(
    name: str, names: str, tmp_path: Path
) -> None:
    oracle = oracle_huggingface.CASES[name](torch.float32)
    assert isinstance(oracle.write, partial)
    if names == "on disk":
        path = oracle.write(tmp_path) / "model.safetensors"
    else:
        path = oracle_huggingface.in_memory(oracle.write.args[0], tmp_path) / "pytorch_model.bin"
    (tmp_path / "config.json").unlink()

    told = {"heads": 2 if "DINOv3" in name else HEADS, "image_size": oracle.size}
    model = vitrail.load(path, **told).model

    assert_same(model, oracle)


def test_an_old_clip_s_table_of_indices_is_left(tmp_path: Path) -> None:
    oracle = oracle_huggingface.CASES["CLIP, projection"](torch.float32)
    assert isinstance(oracle.write, partial)
    path = oracle_huggingface.in_memory(oracle.write.args[0], tmp_path) / "pytorch_model.bin"
    weights = read(path)
    weights["vision_model.embeddings.position_ids"] = torch.arange(37)[None]
    torch.save(weights, path)

    assert_same(vitrail.load(tmp_path).model, oracle)


WRAPPERS: dict[str, Any] = {
    "state_dict, module.": lambda w: {"state_dict": w("module."), "epoch": 3},
    "model, compiled": lambda w: {"model": w("_orig_mod."), "args": Namespace(lr=0.1)},
    "module. of a compiled one": lambda w: w("module._orig_mod."),
    "compiled module.": lambda w: {"model_state": w("_orig_mod.module.")},
    "model.": lambda w: w("model."),
    "encoder, module.": lambda w: {"encoder": w("module."), "epoch": 3},
    "teacher.backbone.": lambda w: w("teacher.backbone."),
    "teacher": lambda w: {"teacher": w("backbone.")},
    "with an optimizer": lambda w: {
        "state_dict": w(""),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(24)}}, "param_groups": [{"lr": 0.1}]},
    },
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_wrapped_around_a_state_dict_is_taken_off(name: str, tmp_path: Path) -> None:
    oracle = oracle_timm.CASES["features"](torch.float32)
    weights = read(oracle.write(tmp_path))

    path = write_pth(
        WRAPPERS[name](lambda prefix: {prefix + key: weights[key] for key in weights}), tmp_path
    )

    assert_same(vitrail.load(path, **oracle.given).model, oracle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_in_half_precision_make_a_model_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    oracle = oracle_timm.CASES["ViT, DeiT, DINO"](torch.float32)
    assert isinstance(oracle.answer, partial)
    theirs = oracle.answer.args[0].to(dtype)
    path = write_pth(theirs.state_dict(), tmp_path)
    theirs.float()  # the same values, rounded once

    model = vitrail.load(path, **oracle.given).model

    assert next(model.parameters()).dtype == torch.float32
    assert_same(model, oracle)
