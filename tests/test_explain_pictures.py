"""The pictures of explanations: every pixel where it belongs, for digits, photos and strips."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from conftest import TINY, randomize
from runs import write_photos
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.explaining.explain import explain
from vitrail.explaining.inside_pictures import draw_inside, draw_model
from vitrail.explaining.pictures import about, draw, overlay, scale_of, shown
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle, save

DIGITS = ViTConfig(
    image_size=(8, 8), patch_size=2, channels=1, classes=3, width=16, depth=2, heads=2
)


def bundle_of(config: ViTConfig, **how: Any) -> Bundle:
    torch.manual_seed(1)
    half = (0.5,) * config.channels
    return Bundle(
        model=randomize(ViT(config)).eval(),
        preprocess=Preprocess(size=config.image_size, mean=half, std=half, **how),
        labels=tuple(f"class {i}" for i in range(config.classes)),
    )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundle_of(TINY)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (40, 300), (300, 40), (8, 8), (1, 1)])
@pytest.mark.parametrize("resize", ["shortest", "pad"])
def test_the_map_lies_where_the_model_looked(size: tuple[int, int], resize: Any) -> None:
    bundle = bundle_of(TINY, resize=resize)
    image = noise(*size)
    top, left, bottom, right = bundle.preprocess.seen(*size)
    values = np.arange(35.0).reshape(5, 7)

    drawn = overlay(image, values, (top, left, bottom, right), 0.0, 34.0)

    assert drawn.shape == (*size, 3)
    for y in range(0, size[0], 7):
        for x in range(0, size[1], 7):
            row, column = (y + 0.5 - top) / (bottom - top), (x + 0.5 - left) / (right - left)
            grey = image[y, x].mean() / 255
            if 0 <= row < 1 and 0 <= column < 1:
                value = values[int(row * 5), int(column * 7)]
                wanted = 0.3 * grey + 0.7 * np.array(colormaps["inferno"](value / 34)[:3])
            else:
                wanted = np.full(3, 0.65 + 0.35 * grey)
            np.testing.assert_allclose(drawn[y, x], 255 * wanted, atol=0.51)


def test_a_map_that_goes_below_zero_has_a_scale_of_two_sides() -> None:
    assert scale_of(np.array([0.5, 2.0])) == (0.0, 2.0)
    assert scale_of(np.array([-3.0, 2.0])) == (-3.0, 3.0)
    black = overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2)), (0, 0, 4, 4), -1.0, 1.0)
    assert black.max() < 40
    nothing = overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2)), (0, 0, 4, 4), 0.0, 0.0)
    assert nothing.shape == (4, 4, 3)


def test_small_images_are_enlarged_by_whole_pixels_and_strips_fit_a_page() -> None:
    grey = noise(8, 8, 1)

    np.testing.assert_array_equal(
        shown(grey, 320), np.broadcast_to(grey, (8, 8, 3)).repeat(40, axis=0).repeat(40, axis=1)
    )
    assert max(shown(noise(40, 300), 320).shape) <= 600
    assert max(shown(noise(4000, 60), 320).shape) <= 600
    assert shown(noise(480, 640), 320).shape == (277, 370, 3)


@pytest.mark.parametrize("method", ["attention", "rollout", "relevance", "occlusion"])
@pytest.mark.parametrize("size", [(60, 90), (300, 40)])
def test_every_method_draws_a_picture(bundle: Bundle, method: Any, size: tuple[int, int]) -> None:
    found = explain(bundle, noise(*size), method, measure=method == "rollout")

    page = opened(draw(found, "a name"))

    assert 400 < page.shape[1] <= 1300 and 300 < page.shape[0] < 3000
    colourful = np.ptp(page.astype(int), axis=2) > 60  # maps and photos; text and frames are grey
    assert colourful.mean() > 0.05
    assert (page[:20] == 255).all() and (page[:, -20:] == 255).all()
    assert ("deletion" in about(found)) == (method == "rollout")
    assert found.label is not None and found.label in about(found)


def test_each_layer_head_and_query_has_its_picture(bundle: Bundle) -> None:
    def heads(layers: list[int], heads: list[int], queries: list[Any]) -> int:
        found = explain(bundle, noise(60, 90), "attention", None, layers, heads, queries)
        return len(opened(draw(found)))

    one, two = heads([0], [0, 1], ["class"]), heads([0, 1], [0, 1], ["class"])
    four = heads([0, 1], [0, 1], ["class", "patches"])

    row = two - one
    assert row > 100 and four - one == 3 * row


def test_the_same_explanation_is_the_same_file(bundle: Bundle) -> None:
    found = explain(bundle, noise(60, 90))

    for format, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first = draw(found, "x", format)  # type: ignore[arg-type]
        assert first.startswith(start) and len(first) > 5000
        assert draw(found, "x", format) == first  # type: ignore[arg-type]


@pytest.mark.parametrize("title", ["x" * 500, "$x^2$ \\alpha", "고양이 é", "\ud83d", "a\nb", ""])
def test_any_name_can_be_drawn(title: str) -> None:
    bundle = replace(bundle_of(DIGITS), labels=(title, title + "1", title + "2"))

    page = opened(draw(explain(bundle, noise(8, 8, 1)), title))

    assert (page[:, :20] == 255).all() and (page[:, -20:] == 255).all()


@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
@pytest.mark.parametrize("config", [TINY.replace(heads=3), DIGITS], ids=["photos", "digits"])
def test_the_inside_of_a_model_is_drawn(config: ViTConfig, positions: Any) -> None:
    bundle = bundle_of(config.replace(positions=positions))
    found = explain(bundle, noise(20, 20))

    for data in (draw_model(bundle), draw_inside(bundle, found)):
        page = opened(data)
        assert page.shape[1] >= 560 and (page < 200).any(axis=2).mean() > 0.02


@pytest.fixture
def saved(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle on the disk beside some photos."""
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))
    return save(bundle, "model")


def told(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["explain", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_bad_file_gets_its_error_and_the_others_their_pictures(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.png").write_text("<html>")
    Path("other").mkdir()
    Image.fromarray(noise(9, 9)).save("other/0.png")
    images = ["photos/dark/0.png", "bad.png", "gone.png", "photos/light/0.png", "other"]

    code, out, err = told("model", *images, "-o", "out/deep", capsys=capsys)

    lines = out.splitlines()
    assert (code, err) == (2, "")
    assert "error: this is an HTML page" in lines[1] and "No such file" in lines[2]
    files = sorted(file.name for file in Path("out/deep").iterdir())
    assert files == ["0-2.rollout.png", "0-3.rollout.png", "0.rollout.png"]
    assert [line.split()[1] for line in (lines[0], lines[3], lines[4])] == [
        "out/deep/0.rollout.png", "out/deep/0-2.rollout.png", "out/deep/0-3.rollout.png",
    ]  # fmt: skip
    assert all(opened(Path("out/deep", file).read_bytes()).shape[1] > 500 for file in files)


def test_json_says_all_that_is_no_picture(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "attention", "--layers", "0", "-1", "--heads", "1", "--json", "--inside"]
    words += ["--queries", "class", "2,3", "--target", "class 4", "--measure", "--format", "svg"]

    code, out, err = told("model", "photos/dark/0.png", "-o", "out", *words, capsys=capsys)

    (row,) = json.loads(out)
    assert (code, err, row["error"]) == (0, "", None)
    assert row["files"] == ["out/0.attention.svg", "out/0.inside.svg"]
    assert (row["layers"], row["heads"], row["queries"]) == ([0, 1], [1], ["class", [2, 3]])
    assert (row["target"]["label"], row["target"]["index"]) == ("class 4", 4)
    assert row["grid"] == [5, 7] and row["faithfulness"]["passes"] == 170
    assert all(
        Path(file).read_text().startswith("<?xml") for file in [*row["files"], "out/model.svg"]
    )


@pytest.mark.parametrize(
    ("words", "code", "told_of"),
    [
        ("model -o out", 2, "no image to answer for"),
        ("model photos -o file", 5, "file is a file; pictures need a folder"),
        ("model photos -o file/out", 5, "cannot be written"),
        ("nowhere photos -o out", 2, 'no model "nowhere"'),
        ("model photos -o out --layers 5", 2, "no layer 5"),
        ("model photos -o out --layers pol --method attention", 2, "no layer 'pol'"),
        ("model photos -o out --heads 9", 2, "no head 9"),
        ("model photos -o out --queries 9,9", 2, "no patch in row 9"),
        ("model photos -o out --target dog", 2, 'no class "dog"'),
        ("model photos -o out --lyers 1", 2, 'Did you mean "--layers"'),
        ("model photos -o out --method relevance --queries class", 2, "relevance has no queries"),
        ("dino-s16 photos -o out --method relevance", 2, "explains a class"),
    ],
)
def test_a_mistake_is_told_before_a_picture_is_drawn(
    words: str, code: int, told_of: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("mine")

    found, out, err = told(*words.split(), capsys=capsys)

    assert (found, out) == (code, "") and told_of in err
    assert not list(Path(".").rglob("*.rollout.png"))
