"""The picture of a batch: the images that train, pixel for pixel, with legible names."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import pictures
from runs import RECIPE, write_photos
from vitrail.data.config import Augment
from vitrail.data.sources import open_data
from vitrail.errors import ConfigError, DataError
from vitrail.explaining.fonts import fonts_for
from vitrail.reporting import batch_picture
from vitrail.training.first_batch import training_batch
from vitrail.training.run_folder import RunFolder
from vitrail.training.session import Session


def noise(count: int, channels: int = 3, size: tuple[int, int] = (4, 5)) -> np.ndarray:
    draws = np.random.default_rng(0)
    return draws.integers(0, 256, (count, channels, *size)).astype(np.uint8)


def drawn(images: np.ndarray, names: list[list[str]] | None = None, suffix: str = ".png") -> bytes:
    return batch_picture.draw(images, names or [["a"]] * len(images), "title", "about", suffix)


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_a_small_image_is_a_square_of_its_colour(channels: int) -> None:
    images = noise(9, channels)
    page = opened(drawn(images))

    for i in range(9):
        enlarged = np.broadcast_to(np.moveaxis(images[i], 0, -1), (4, 5, 3))
        enlarged = enlarged.repeat(32, axis=0).repeat(32, axis=1)
        left, top = 24 + (i % 8) * (160 + 14), 83 + (i // 8) * (128 + 17 + 18)
        np.testing.assert_array_equal(page[top : top + 128, left : left + 160], enlarged)


def test_a_photo_is_shown_as_it_is_and_a_large_one_is_brought_down() -> None:
    one = opened(drawn(noise(1, size=(200, 224))))
    large = opened(drawn(noise(2, size=(600, 300))))

    assert one.shape[1] == 560  # room for the title
    assert (large != 255).any(axis=-1).sum(axis=0).max() > 256
    assert large.shape[0] < 420 and large.shape[1] == 560


@pytest.mark.parametrize(
    ("suffix", "start"),
    [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".jpg", b"\xff\xd8")],
)
def test_the_same_batch_is_the_same_file_in_every_format(suffix: str, start: bytes) -> None:
    first = drawn(noise(3), suffix=suffix)

    assert first.startswith(start)
    assert drawn(noise(3), suffix=suffix) == first


@pytest.mark.parametrize("file", ["x", "x.gif", "x.png.txt", "png", "folder.png/x"])
def test_a_suffix_that_cannot_be_drawn_is_told(file: str) -> None:
    with pytest.raises(ConfigError, match=r"wanted is one of \.png"):
        batch_picture.check_suffix(file)


def test_a_suffix_may_be_in_capitals() -> None:
    assert batch_picture.check_suffix("a/B.PNG") == ".png"


def test_a_mixture_names_each_class_with_its_share() -> None:
    targets = np.array([[1, 0, 0], [0.3, 0.7, 0], [0.499, 0.5, 0.001]])

    lines = batch_picture.captions(targets, ("dog", "cat", "a\nb"))

    assert lines == [["dog"], ["70% cat", "30% dog"], ["50% cat", "50% dog"]]
    drawn(noise(3), lines)


@pytest.mark.parametrize(
    "name", ["x" * 500, "$x^2$ \\alpha $", "고양이 é", "\ud83d", "\U0010fffd \U0001f408", "", " "]
)
def test_any_name_can_be_written(name: str) -> None:
    images = noise(2)

    page = opened(drawn(images, batch_picture.captions(np.eye(2), (name, "plain"))))

    assert page.shape == opened(drawn(images)).shape
    outside = page[:, 24 + 2 * 174 :]
    assert (page[:83, 400:] == 255).all() and (page[:, :23] == 255).all() and (outside == 255).all()


def test_letters_that_no_font_has_are_spelt_out() -> None:
    fonts = fonts_for("aé\U0010fffd")

    assert fonts.families == ["DejaVu Sans"]
    assert fonts.spelt("aé\U0010fffd") == "aé\\U0010fffd"


def test_a_font_that_cannot_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Broken-Regular.ttf").write_text("no font")
    monkeypatch.setattr(
        "matplotlib.font_manager.findSystemFonts",
        lambda: [str(tmp_path / "Broken-Regular.ttf"), str(tmp_path / "gone.ttf")],
    )

    assert fonts_for("고").lacking == {"고"}


def test_what_is_shown_is_what_the_model_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))
    data = open_data("photos")
    recipe = replace(RECIPE, train=replace(RECIPE.train, seed=5, batch_size=6))

    shown = training_batch(recipe, data)

    session = Session(recipe, data, RunFolder(Path("run")))
    inputs, targets = session.learner.prepared(next(session.batches()), 0)
    trained = (255 * (inputs / 2 + 0.5)).clamp(0, 255)  # mean and std are .5
    assert np.abs(shown.images - trained.numpy()).max() <= 0.51
    assert np.array_equal(shown.targets, targets.numpy())
    assert shown.targets.sum(axis=1) == pytest.approx(np.ones(6))


def test_held_out_images_stay_in_memory_where_training_ones_are_cropped_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = replace(RECIPE, augment=Augment(crop_scale=0.5))

    session = Session(recipe, open_data(str(write_photos(Path("photos")))), RunFolder(Path("run")))

    assert session.loader.kept is None and session.held_out.kept is not None


def test_no_more_is_read_than_is_shown(tmp_path: Path) -> None:
    data = open_data(str(write_photos(tmp_path / "photos", tuple("abcdefgh"))))
    read: list[int] = []
    real = data.train.read
    data.train.read = lambda i: (read.append(i), real(i))[1]  # type: ignore[method-assign]

    shown = training_batch(replace(RECIPE, train=replace(RECIPE.train, batch_size=64)), data)

    assert len(shown.images) == 32
    assert len(read) == 32


def test_images_that_cannot_be_read_are_told_and_left_out(tmp_path: Path) -> None:
    names = [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in range(3)]
    for name, image in (pictures(*names) | {"train/a/bad.png": b""}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    recipe = replace(RECIPE, augment=Augment(), train=replace(RECIPE.train, batch_size=64))

    shown = training_batch(recipe, open_data(str(tmp_path)))

    assert (len(shown.images), [bad.path for bad in shown.bad]) == (6, ["train/a/bad.png"])
    for file in (tmp_path / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none of the first 7 training images"):
        training_batch(recipe, open_data(str(tmp_path)))
