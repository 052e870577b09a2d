"""An exported file computes what torch does, for every family, batch and image size."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch

import vitrail
from conftest import TINY, needs, randomize
from exports import FILE, SMALL, bundle_of, need
from families import FAMILIES, VIT, build
from runs import write_photos
from vitrail.data.parts import part
from vitrail.data.sources import Source
from vitrail.engines import onnx_engine
from vitrail.engines.build import engine
from vitrail.engines.exported import Exported
from vitrail.engines.exported_files import ExportedFile, read_export
from vitrail.errors import ConfigError
from vitrail.exporting.any_size import at_any_size
from vitrail.exporting.checking import differences, plain_engine
from vitrail.exporting.export import export
from vitrail.exporting.graph import graph_of
from vitrail.exporting.writers import openvino_from, write
from vitrail.model.config import PositionResize, ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

RULES = [
    PositionResize(mode=mode, antialias=antialias, align_corners=corners, offset=offset)
    for mode in ("bicubic", "bilinear")
    for antialias, corners, offset in [
        (True, False, 0.0),
        (False, False, 0.0),
        (False, True, 0.0),
        (False, False, 0.1),
        (True, False, 0.1),
    ]
]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    return bundle_of(randomize(ViT(SMALL)))


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[str], Source]:
    """Twenty photos of two classes."""
    write_photos(tmp_path / "photos")
    return lambda which: part(str(tmp_path / "photos"), which)[0]  # type: ignore[arg-type]


def worst(bundle: Bundle, file: ExportedFile, sizes: list[tuple[int, int]]) -> float:
    rows = list(differences(plain_engine(bundle), engine(file), sizes))

    assert {row.batch for row in rows} == {1, 3, 8}
    return max(row.error for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("config", FAMILIES)
def test_onnx_and_openvino_are_torch_at_any_size_for_every_family(
    config: ViTConfig, tmp_path: Path
) -> None:
    needs("onnx")
    bundle = bundle_of(build(config.replace(depth=1)))
    facts = Exported(
        config=bundle.model.config,
        preprocess=bundle.preprocess,
        labels=bundle.labels,
        any_size=True,
    )

    write(graph_of(bundle.model, facts), tmp_path / "model.onnx")

    sizes = [config.image_size, (28, 16)]
    assert worst(bundle, read_export(tmp_path / "model.onnx"), sizes) <= 1e-4
    needs("openvino")
    openvino_from(tmp_path / "model.onnx", tmp_path / "model.xml", facts)
    assert worst(bundle, read_export(tmp_path / "model.xml"), sizes) <= 1e-4


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("size", [(12, 20), (28, 16), (4, 4), (8, 40)])
def test_positions_as_products_are_those_that_torch_resizes(
    rule: PositionResize, size: tuple[int, int]
) -> None:
    model = build(VIT.replace(position_resize=rule))
    images = torch.randn(2, 3, *size)

    with torch.no_grad():
        found = at_any_size(model)(images)

        torch.testing.assert_close(found, model(images), atol=1e-5, rtol=1e-5)


def test_the_model_is_left_as_it_was_by_what_is_made_of_it() -> None:
    model, images = build(VIT), torch.randn(1, 3, 12, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    at_any_size(model)(images)

    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.config == VIT


@pytest.mark.parametrize(
    "format", ["torch", *(pytest.param(f, marks=pytest.mark.slow) for f in ("onnx", "openvino"))]
)
def test_a_file_says_what_it_takes_and_answers_as_its_bundle(
    bundle: Bundle, tmp_path: Path, format: str
) -> None:
    need(format)
    path = tmp_path / FILE[format]

    done = export(bundle, path, format)
    file = read_export(path, trust=True)

    assert (done.path, file.labels, file.preprocess) == (path, bundle.labels, bundle.preprocess)
    assert file.origin == bundle.origin
    assert file.facts.config == bundle.model.config
    images = [np.full((30, 40, 3), value, np.uint8) for value in (0, 90, 200)]
    ours, theirs = (vitrail.predict(one, images) for one in (bundle, file))  # type: ignore[arg-type]
    for our, their in zip(ours, theirs, strict=True):
        assert [a.label for a in our.top] == [a.label for a in their.top]
        assert [a.probability for a in our.top] == pytest.approx(
            [a.probability for a in their.top], abs=1e-5
        )


def test_pixels_go_in_and_probabilities_come_out_of_onnx(bundle: Bundle, tmp_path: Path) -> None:
    needs("onnx")
    import onnxruntime

    export(bundle, tmp_path / "model.onnx", takes="pixels")

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == (
        "pixels",
        "tensor(uint8)",
        ["batch", 16, 24, 3],
    )
    assert [out.name for out in session.get_outputs()] == ["probabilities", "logits"]
    assert session.get_outputs()[0].shape == ["batch", 2]
    pixels = torch.randint(0, 256, (5, 16, 24, 3), dtype=torch.uint8)
    (found,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
    with torch.no_grad():
        wanted = bundle.model(bundle.preprocess.normalize(pixels.permute(0, 3, 1, 2)))
    np.testing.assert_allclose(np.asarray(found), wanted.softmax(dim=1).numpy(), atol=1e-5)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["vitrail"])
    assert facts["labels"] == ["dark", "light"]
    with pytest.raises(ConfigError, match="takes pixels, and these images are normalised"):
        engine(read_export(tmp_path / "model.onnx")).run(torch.randn(1, 3, 16, 24))


@pytest.mark.slow
def test_free_axes_have_names(bundle: Bundle, tmp_path: Path) -> None:
    needs("onnx")
    import onnxruntime

    done = export(bundle, tmp_path / "model.onnx", any_size=True)

    (given,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert given.shape == ["batch", 3, "8*rows", "8*columns"]
    assert done.card["input"]["shape"] == ["batch", 3, "H", "W"]
    assert {tuple(row["image_size"]) for row in done.card["differences"]} > {(16, 24)}
    with pytest.raises(ConfigError, match="patch size 8 does not divide 20"):
        engine(read_export(tmp_path / "model.onnx")).run(torch.randn(1, 3, 20, 24))


def test_a_file_of_one_size_says_so(bundle: Bundle, tmp_path: Path) -> None:
    runs = engine(read_export(export(bundle, tmp_path / "model.pt2", "torch").path, trust=True))

    with pytest.raises(ConfigError, match="takes 16 x 24 alone; export it with any_size"):
        runs.run(torch.randn(1, 3, 32, 24))


def test_a_file_of_any_size_wants_two_patches_each_way(bundle: Bundle, tmp_path: Path) -> None:
    path = export(bundle, tmp_path / "model.pt2", "torch", any_size=True).path
    runs, images = engine(read_export(path, trust=True)), torch.randn(1, 3, 40, 16)

    with torch.no_grad():
        torch.testing.assert_close(runs.run(images), bundle.model(images), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="takes two patches of 8 or more each way"):
        runs.run(torch.randn(1, 3, 8, 24))


@pytest.mark.parametrize("package", ["onnx", "openvino"])
def test_a_package_that_is_missing_is_told_before_anything_is_made(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    need("openvino")
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ConfigError, match=rf"needs {package}.* pip install 'vitrail\["):
        export(bundle, tmp_path / "model.xml", "openvino")


def test_features_are_exported_where_there_are_no_classes(tmp_path: Path) -> None:
    bundle = bundle_of(build(TINY.replace(classes=0, depth=1)))

    done = export(bundle, tmp_path / "model.pt2", "torch", takes="pixels")

    assert [out["name"] for out in done.card["outputs"]] == ["features"]
    assert done.card["outputs"][0]["shape"] == ["batch", TINY.width]
    file = read_export(done.path, trust=True)
    with pytest.raises(ConfigError, match="no classes to answer with"):
        vitrail.predict(file, [np.zeros((40, 56, 3), np.uint8)])  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_is_calibrated_and_held_to_its_answers(
    bundle: Bundle, tmp_path: Path, photos: Callable[[str], Source], format: str
) -> None:
    need(format)
    sources: Any = {"check": photos("held-out"), "calibrate": photos("train")}
    path = tmp_path / FILE[format]

    done = export(bundle, path, format, dtype="int8", agreement=0.5, data="photos", **sources)

    assert done.card["calibrated_on"] == {"images": 16}
    found = done.card["on_images"]
    assert (found["data"], found["images"], len(found["worst"])) == ("photos", 4, 4)
    assert found["change"] == found["top1"] - found["top1_torch"]
    assert found["agreement"] >= 0.5
    assert done.card["tolerance"] is None
    # Eight bits are no thirty-two: what is as near as float32 was not quantised.
    assert max(row["error"] for row in done.card["differences"]) > 1e-4
    assert engine(read_export(path)).dtype == "int8"
    with pytest.raises(ConfigError, match="computes in int8, and not in bfloat16"):
        engine(read_export(path), dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_weights_too_large_for_one_message_stand_beside_the_file(
    bundle: Bundle,
    tmp_path: Path,
    photos: Callable[[str], Source],
    monkeypatch: pytest.MonkeyPatch,
    dtype: Any,
) -> None:
    needs("onnx")
    monkeypatch.setattr(onnx_engine, "_LARGEST", 0)
    sources: Any = {"check": photos("held-out"), "calibrate": photos("train")}

    done = export(bundle, tmp_path / "model.onnx", dtype=dtype, agreement=0.5, **sources)

    assert set(done.card["files"]) == {"model.onnx", "model.onnx.data"}
    digest = read_export(done.path).digest()
    (tmp_path / "moved").mkdir()
    for name in done.card["files"]:
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = read_export(tmp_path / "moved" / "model.onnx")
    assert moved.digest() == digest
    assert engine(moved).run(torch.zeros(1, 3, 16, 24)).shape == (1, 2)


def test_a_torch_package_may_be_bfloat16(
    bundle: Bundle, tmp_path: Path, photos: Callable[[str], Source]
) -> None:
    check = photos("held-out")

    whole = export(bundle, tmp_path / "whole.pt2", "torch")
    half = export(
        bundle, tmp_path / "half.pt2", "torch", dtype="bfloat16", check=check, agreement=0.5
    )

    assert engine(read_export(half.path, trust=True)).dtype == "bfloat16"
    assert max(row["error"] for row in half.card["differences"]) > 1e-4
    weights = [
        sum(part.file_size for part in ZipFile(path).infolist() if "/weight_" in part.filename)
        for path in (whole.path, half.path)
    ]
    assert 0 < weights[1] < 0.6 * weights[0]
