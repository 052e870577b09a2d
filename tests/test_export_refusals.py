"""A wrong file is not written, one that is not ours is told, and a card says what was found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import needs, randomize
from exports import SMALL, bundle_of, need
from runs import write_photos
from vitrail.data.parts import part
from vitrail.data.sources import Source
from vitrail.engines import onnx_engine
from vitrail.engines.build import engine
from vitrail.engines.exported import Exported
from vitrail.engines.exported_files import read_export
from vitrail.errors import ConfigError, OutputError, UnsafeError, WeightsError
from vitrail.exporting import checking, writers
from vitrail.exporting.checking import Difference, check_differences
from vitrail.exporting.export import export
from vitrail.model.vit import ViT
from vitrail.weights import disk
from vitrail.weights.bundle import Bundle


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    return bundle_of(randomize(ViT(SMALL)))


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[str], Source]:
    """Twenty photos of two classes."""
    write_photos(tmp_path / "photos")
    return lambda which: part(str(tmp_path / "photos"), which)[0]  # type: ignore[arg-type]


def test_a_card_stands_beside_the_file(
    bundle: Bundle, tmp_path: Path, photos: Callable[[str], Source]
) -> None:
    path = tmp_path / "model.pt2"

    done = export(bundle, path, "torch", check=photos("all"), data="photos")

    names = {p.name for p in tmp_path.iterdir()} - {"photos"}
    assert names == {"model.pt2", "model.pt2.card.json", "model.pt2.card.md"}
    stored = json.loads((tmp_path / "model.pt2.card.json").read_text())
    assert stored == json.loads(json.dumps(done.card))
    assert stored["labels"] == ["dark", "light"]
    assert stored["files"]["model.pt2"]["bytes"] == path.stat().st_size
    assert stored["on_images"]["agreement"] == 1
    told = (tmp_path / "model.pt2.card.md").read_text()
    assert told == done.text()
    assert "## On 20 images of photos" in told and "the same answer: 100.00%" in told


def off(model: ViT, by: float) -> Any:
    """An exporter that is wrong by so much."""

    def wrong(graph: Any, path: Path, batches: Any) -> None:
        with torch.no_grad():
            graph.module.head.bias.add_(by)
            try:
                writers._write_package(graph, path, batches)
            finally:
                graph.module.head.bias.sub_(by)

    return wrong


def test_a_file_that_is_wrong_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(randomize(ViT(SMALL)))
    monkeypatch.setitem(writers._WRITERS, ".pt2", off(bundle.model, 0.01))

    with pytest.raises(OutputError, match=r"model.pt2 is not written: its logits differ by 0.01"):
        export(bundle, tmp_path / "model.pt2", "torch")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("largest", "logit", "good"),
    [(9e-5, 0.5, True), (2e-4, 0.5, False), (9e-4, 10, True), (2e-3, 10, False),
     (float("nan"), 1, False)],
)  # fmt: skip
def test_the_tolerance_is_absolute_below_1_and_relative_above(
    largest: float, logit: float, good: bool
) -> None:
    rows = [Difference(1, (8, 8), 0.0, 1.0), Difference(3, (8, 8), largest, logit)]

    if good:
        check_differences(rows, "model.onnx")
        return
    with pytest.raises(OutputError, match=r"at 8 x 8 in a batch of 3; at most 1e-04"):
        check_differences(rows, "model.onnx")


def test_too_few_equal_answers_are_refused_with_their_number(
    photos: Callable[[str], Source],
) -> None:
    bundle = bundle_of(randomize(ViT(SMALL)))
    bundle.model.load_state_dict({"head.bias": torch.tensor([0.0, 100.0])}, strict=False)
    exact = checking.plain_engine(bundle)

    def upside_down(images: torch.Tensor) -> torch.Tensor:
        return -exact.run(images)

    class Other:
        device, preprocess, run = exact.device, exact.preprocess, staticmethod(upside_down)

    found = checking.on_images(exact, Other(), bundle, photos("all"), "photos")  # type: ignore[arg-type]

    assert (found.agreement, found.top1, found.top1_torch) == (0, 0.5, 0.5)
    assert {(one.torch, one.file) for one in found.worst} == {("light", "dark")}
    with pytest.raises(OutputError, match=r"answers 0.00% of 20 images .* at least 99.00%"):
        checking.check_agreement(found, 0.99, "model.onnx")


@pytest.mark.parametrize(
    ("path", "how", "told"),
    [
        ("model.onnx", {"format": "onxx"}, 'no format "onxx", .* Did you mean "onnx"'),
        ("model.xml", {}, "ends in .onnx, and .*model.xml. does not: name it model.onnx"),
        ("model.onnx", {"dtype": "bfloat16"}, 'no dtype "bfloat16", but float32 and int8'),
        ("model.pt2", {"format": "torch", "dtype": "int8"}, "but float32 and bfloat16"),
        ("model.onnx", {"dtype": "int8"}, "give labelled images to check it on"),
        ("model.onnx", {"agreement": 1.5}, "agreement is 1.5; it should be a share"),
    ],
)
def test_what_cannot_be_is_told(
    bundle: Bundle, tmp_path: Path, path: str, how: dict[str, Any], told: str
) -> None:
    need("openvino")
    with pytest.raises(ConfigError, match=told):
        export(bundle, tmp_path / path, **how)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.pt2", "model.pt2.card.json", "model.pt2.card.md"])
def test_nothing_that_is_there_is_written_over(bundle: Bundle, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")

    with pytest.raises(OutputError, match=f"{name} is there already; remove it, or give another"):
        export(bundle, tmp_path / "model.pt2", "torch")

    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_not_there_is_told(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*none to write model.pt2 in"):
        export(bundle, tmp_path / "none/model.pt2", "torch")
    with pytest.raises(OutputError, match="cannot be written"):
        export(bundle, tmp_path / ("x" * 300 + ".pt2"), "torch")


def test_a_disk_that_fills_up_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        if path.name == "model.pt2":  # the last one, when its cards are in their places
            assert (tmp_path / "model.pt2.card.md").exists()
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(disk, "sync", full)

    with pytest.raises(OutputError, match=r"No space left on device .* bytes are free there"):
        export(bundle, tmp_path / "model.pt2", "torch")

    assert list(tmp_path.iterdir()) == []


def test_an_exporter_that_fails_is_named_with_what_it_said(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setitem(writers._WRITERS, ".pt2", broken)

    with pytest.raises(ConfigError, match=r"exported as .pt2: RuntimeError: no such operator"):
        export(bundle, tmp_path / "model.pt2", "torch")

    assert list(tmp_path.iterdir()) == []


def test_a_torch_package_is_not_opened_without_trust(bundle: Bundle, tmp_path: Path) -> None:
    path = export(bundle, tmp_path / "model.pt2", "torch").path

    with pytest.raises(UnsafeError, match="can run code when it is opened"):
        read_export(path)


def test_files_of_other_makers_are_told(tmp_path: Path) -> None:
    needs("onnx")
    model = torch.nn.Linear(3, 2)
    path = tmp_path / "model.onnx"
    onnx_engine.exported(model, torch.zeros(2, 3), {}).save(path)

    with pytest.raises(WeightsError, match="vitrail did not write it"):
        read_export(path)
    path.write_bytes(b"nothing of this kind")
    with pytest.raises(WeightsError, match=r"cannot be opened: .*export the model again"):
        read_export(path)
    with pytest.raises(WeightsError, match=r"no exported file: these end in .onnx, .xml, .pt2"):
        read_export(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="there is no file"):
        read_export(tmp_path / "other.onnx")


@pytest.mark.slow
def test_an_openvino_file_without_its_weights_is_told(bundle: Bundle, tmp_path: Path) -> None:
    need("openvino")
    path = export(bundle, tmp_path / "model.xml", "openvino").path
    path.with_suffix(".bin").unlink()

    with pytest.raises(WeightsError, match=r"has its weights in model.bin, which is not there"):
        read_export(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": ["dark"]}, "1 labels for 2 classes"),
        ({"labels": "dark"}, "no list of texts"),
        ({"takes": "sound"}, "takes is 'sound'"),
        ({"preprocess": []}, "no preprocessing"),
        ({"architecture": {"width": -1}}, "export the model again"),
        ({"origin": 3}, "origin is no table"),
    ],
)
def test_what_a_file_says_of_itself_is_not_believed(
    bundle: Bundle, change: dict[str, Any], told: str
) -> None:
    config, preprocess = bundle.model.config, bundle.preprocess
    text = Exported(config=config, preprocess=preprocess, labels=bundle.labels).to_text()

    assert Exported.from_text(text, "model.onnx").labels == bundle.labels
    with pytest.raises(WeightsError, match=told):
        Exported.from_text(json.dumps(json.loads(text) | change), "model.onnx")
    with pytest.raises(WeightsError, match="cannot be read"):
        Exported.from_text("[" * 100_000, "model.onnx")


def test_an_exported_file_has_one_engine(bundle: Bundle, tmp_path: Path) -> None:
    file = read_export(export(bundle, tmp_path / "model.pt2", "torch").path, trust=True)

    for how, told in (
        ({"name": "onnx"}, 'run by engine "torch", not "onnx"'),
        ({"device": "cuda"}, 'run on the CPU, not on "cuda"'),
        ({"merge": 2}, "has no merge"),
        ({"aspect": True}, "has no aspect"),
    ):
        with pytest.raises(ConfigError, match=told):
            engine(file, **how)  # type: ignore[arg-type]
    assert engine(file).name == "torch"
    assert (
        file.digest()
        != read_export(
            export(bundle, tmp_path / "other.pt2", "torch", takes="pixels").path, trust=True
        ).digest()
    )
