import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vitrail
from conftest import TINY, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, WeightsError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.loading import load

LABELS = ("a, b", "ü", "🦊", '"', "new\nline", "6", "7", "8", "9")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(1)
    return Bundle(
        model=randomize(ViT(TINY)).eval(),
        preprocess=Preprocess(size=TINY.image_size, resize="pad", mean=(0.4, 0.5, 0.6)),
        labels=LABELS,
        origin={"run": "runs/é-1", "step": 12},
        metrics={"top1": 0.75},
    )


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return save(bundle, tmp_path / "bundle")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path)


def equal(first: Bundle, second: Bundle) -> bool:
    one, other = first.model.state_dict(), second.model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_what_is_loaded_is_what_was_saved(bundle: Bundle, folder: Path) -> None:
    found = load(folder)

    assert equal(found, bundle)
    assert found.model.config == bundle.model.config
    assert replace(found, model=bundle.model) == bundle
    assert not found.model.training
    assert all(p.requires_grad and p.is_leaf for p in found.model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "sincos"},
        {"positions": "rope", "heads": 3, "prefix_positions": 0},
        {"mlp": "swiglu", "registers": 2, "layer_scale": 1e-5, "qk_norm": True},
        {"pooling": "map", "class_token": False, "prefix_positions": 0},
    ],
)
def test_every_kind_of_model_answers_as_before(changes: dict[str, Any], tmp_path: Path) -> None:
    config = TINY.replace(**changes)
    bundle = Bundle(
        model=randomize(ViT(config)).eval(), preprocess=Preprocess(size=(40, 56)), labels=LABELS
    )
    x = torch.randn(1, 3, 40, 56)

    found = load(save(bundle, tmp_path / "bundle"))

    assert torch.equal(found.model(x), bundle.model(x))


def test_config_json_has_the_form_that_others_rely_on(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")

    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    stored = json.loads(text)
    assert list(stored) == [
        "format", "version", "architecture", "preprocess", "labels", "origin", "metrics"
    ]  # fmt: skip
    assert (stored["format"], stored["version"]) == ("vitrail", vitrail.__version__)
    assert list(stored["architecture"]) == [f.name for f in fields(ViTConfig)]
    assert stored["architecture"]["image_size"] == [40, 56]
    assert stored["preprocess"] == {
        "size": [40, 56], "resize": "pad", "crop": 1.0, "interpolation": "bicubic",
        "antialias": True, "mean": [0.4, 0.5, 0.6], "std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    assert stored["labels"] == list(LABELS)
    assert stored["origin"] == {"run": "runs/é-1", "step": 12}
    assert stored["metrics"] == {"top1": 0.75}


def test_a_preset_is_a_bundle_with_random_weights_that_are_the_same_every_time() -> None:
    first, again = load("nano"), load("nano")

    assert equal(first, again)
    assert len(first.labels) == first.model.config.classes
    assert first.preprocess.size == first.model.config.image_size
    assert len(load("nano", classes=4).labels) == 4


@pytest.mark.parametrize(
    ("edit", "telling"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "norm.weight"}, "missing +1 +norm.weight"),
        (lambda t: {**t, "mask_token": torch.zeros(3)}, "unexpected +1 +mask_token"),
        (
            lambda t: {**t, "head.bias": torch.zeros(4)},
            r"misshapen +1 +head.bias \(4,\), not \(9,\)",
        ),
        (lambda t: {**t, "head.bias": t["head.bias"].long()}, "head.bias"),
        (lambda t: {}, "missing.*, \\.\\.\\."),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, edit: Any, telling: str) -> None:
    edit_tensors(folder, edit)

    with pytest.raises(WeightsError, match=telling) as caught:
        load(folder)

    assert str(folder / "model.safetensors") in str(caught.value)


def test_weights_in_half_precision_are_loaded_as_the_model_s_own(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: {k: v.half() for k, v in tensors.items()})

    assert load(folder).model(torch.zeros(1, 3, 40, 56)).dtype == torch.float32


HUGE = (2**62).to_bytes(8, "little")
OVERFLOW = b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: b"",
        lambda whole: whole[:5],
        lambda whole: whole[:200],
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda whole: HUGE + whole[8:],
        lambda whole: len(OVERFLOW).to_bytes(8, "little") + OVERFLOW + b"\0" * 4,
        lambda whole: b"<html>sign in</html>",
    ],
)
def test_a_file_that_is_no_whole_safetensors_is_refused(folder: Path, content: Any) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))

    with pytest.raises(WeightsError, match="no whole safetensors file"):
        load(folder)


def test_a_bundle_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    with pytest.raises(WeightsError, match="there is no weight file"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"vitrail"', "[" * 100_000, "\udcff"])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")

    with pytest.raises(WeightsError, match=r"config\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"format": "timm"}, "another tool"),
        ({"format": None}, "another tool"),
        ({"architecture": {"widht": 24}}, 'Did you mean "width"'),
        ({"architecture": {"width": "24"}}, "width"),
        ({"architecture": {"width": 25}}, "25"),
        ({"architecture": []}, "architecture"),
        ({"architecture": "vit-b16"}, "architecture"),
        ({"architecture": None}, "architecture"),
        ({"preprocess": {"size": [40, 56], "foo": 1}}, "foo"),
        ({"preprocess": {"size": [0, 0]}}, "size"),
        ({"preprocess": []}, "preprocess"),
        ({"preprocess": None}, "preprocess"),
        ({"labels": ["a", "b"]}, "2 labels for a model of 9 classes"),
        ({"labels": None}, "labels"),
        ({"labels": "123456789"}, "labels"),
        ({"labels": list(range(9))}, "labels"),
        ({"labels": {str(i): i for i in range(9)}}, "labels"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(
    folder: Path, changes: dict[str, Any], telling: str
) -> None:
    edit_config(folder, **changes)

    with pytest.raises(WeightsError, match=telling) as caught:
        load(folder)

    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("key", ["architecture", "preprocess", "labels"])
def test_a_config_that_lacks_a_part_is_refused(folder: Path, key: str) -> None:
    stored = json.loads((folder / "config.json").read_text())
    del stored[key]
    (folder / "config.json").write_text(json.dumps(stored))

    with pytest.raises(WeightsError, match=f"lacks {key}"):
        load(folder)


def test_labels_and_channels_must_be_the_model_s(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="3 labels for a model of 9 classes"):
        replace(bundle, labels=("a", "b", "c"))
    with pytest.raises(ConfigError, match="gives 1 channels, the model reads 3"):
        replace(bundle, preprocess=Preprocess(size=(40, 56), mean=(0.5,), std=(0.5,)))
