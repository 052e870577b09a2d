import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, NonFiniteError
from vitrail.inference.predict import Answer, Prediction, predict, stream
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

LABELS = tuple("abcdefghi")
PICTURES = np.random.default_rng(0).integers(0, 256, (7, 30, 44, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(2)
    return Bundle(
        model=randomize(ViT(TINY)).eval(), preprocess=Preprocess(size=(40, 56)), labels=LABELS
    )


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def answers(found: list[Prediction]) -> list[tuple[str | None, tuple[Answer, ...]]]:
    """Leave out the names, which say where an image was."""
    return [(row.error, row.top) for row in found]


def test_the_answer_is_the_model_s_softmax(bundle: Bundle) -> None:
    pixels = bundle.preprocess.pixels(Image.fromarray(PICTURES[0]))
    logits = bundle.model(bundle.preprocess.normalize(torch.from_numpy(pixels[None].copy())))

    (found,) = predict(bundle, PICTURES[0], top=9)

    wanted = logits[0].softmax(dim=0)
    assert [a.index for a in found.top] == wanted.argsort(descending=True).tolist()
    assert all(a.label == LABELS[a.index] for a in found.top)
    probabilities = torch.tensor([a.probability for a in found.top])
    torch.testing.assert_close(probabilities, wanted.sort(descending=True).values)


def test_every_form_of_an_image_gets_the_same_answer(bundle: Bundle, tmp_path: Path) -> None:
    pixels, data = PICTURES[0], png(PICTURES[0])
    (tmp_path / "a.png").write_bytes(data)
    forms = [
        tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.fromarray(pixels),
        Image.open(tmp_path / "a.png"), pixels, torch.from_numpy(pixels).permute(2, 0, 1),
    ]  # fmt: skip

    together = predict(bundle, forms)
    alone = [predict(bundle, form)[0] for form in forms]

    assert len({answer for answer in answers(alone)}) == 1
    for first, second in zip(together, alone, strict=True):
        assert [a.label for a in first.top] == [a.label for a in second.top]
    assert [row.path for row in together[:3]] == [str(tmp_path / "a.png")] * 2 + ["image 2"]


@pytest.mark.parametrize("shape", [(30, 44), (30, 44, 1)])
def test_grey_arrays_and_tensors_are_images_too(bundle: Bundle, shape: tuple[int, ...]) -> None:
    grey = PICTURES[0, :, :, 0]
    wanted = predict(bundle, Image.fromarray(grey))
    tensor = torch.from_numpy(grey.copy())

    assert answers(predict(bundle, grey.reshape(shape))) == answers(wanted)
    assert answers(predict(bundle, tensor if len(shape) == 2 else tensor[None])) == answers(wanted)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_keep_the_order_and_do_not_depend_on_the_batch(
    bundle: Bundle, batch_size: int
) -> None:
    found = predict(bundle, list(PICTURES), top=9, batch_size=batch_size)

    assert [row.path for row in found] == [f"image {i}" for i in range(7)]
    for picture, row in zip(PICTURES, found, strict=True):
        (alone,) = predict(bundle, picture, top=9)
        assert [a.index for a in row.top] == [a.index for a in alone.top]
        np.testing.assert_allclose(
            [a.probability for a in row.top], [a.probability for a in alone.top], rtol=1e-4
        )


def test_a_stream_reads_three_batches_ahead_and_no_further(bundle: Bundle) -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield PICTURES[0]

    found = stream(bundle, endless(), batch_size=2)

    for answered in range(1, 20):
        next(found)
        assert answered <= len(taken) <= answered + 2 * 4
    found.close()  # type: ignore[attr-defined]


def test_what_is_in_memory_may_change_once_the_next_image_is_asked_for(bundle: Bundle) -> None:
    def frames() -> Any:
        frame = np.empty_like(PICTURES[0])
        for picture in PICTURES:
            frame[:] = picture
            yield frame

    found = list(stream(bundle, frames(), batch_size=2, top=9))

    wanted = predict(bundle, list(PICTURES), batch_size=2, top=9)
    assert answers(found) == answers(wanted)


def test_answers_that_are_not_finite_are_no_answers(bundle: Bundle) -> None:
    broken = ViT(TINY)
    torch.nn.init.constant_(broken.patch_embed.proj.weight, torch.nan)

    with pytest.raises(NonFiniteError, match="weights are broken"):
        predict(replace(bundle, model=broken), PICTURES[0])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty"),
        (b"<html>", "HTML"),
        ("no/such/file.png", "No such file"),
        (".", "Is a directory"),
        ("a\0b.png", "null byte"),
        ("a" * 300, "too long"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 4), np.uint8), r"4, 4, 4"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"2, 4, 4, 3"),
        (np.zeros((0, 4, 3), np.uint8), "0"),
        (Image.new("RGB", (0, 0)), "0"),
        (torch.zeros(3, 4, 4), "float32"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), "bfloat16"),
        (torch.zeros(3, 4, 4, requires_grad=True), "float32"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_has_an_error_in_its_place(
    bundle: Bundle, image: Any, reason: str
) -> None:
    first, bad, last = predict(bundle, [PICTURES[0], image, PICTURES[1]])

    assert bad.error is not None and bad.top == ()
    assert reason in bad.error
    assert first.error is None and last.error is None
    for row, picture in ((first, PICTURES[0]), (last, PICTURES[1])):
        assert row.top[0].label == predict(bundle, picture)[0].top[0].label


def test_no_image_at_all_has_no_answer(bundle: Bundle) -> None:
    assert predict(bundle, []) == []


@pytest.mark.parametrize(("top", "count"), [(1, 1), (5, 5), (9, 9), (1000, 9)])
def test_top_is_how_many_classes_there_are_at_most(bundle: Bundle, top: int, count: int) -> None:
    (row,) = predict(bundle, PICTURES[0], top)

    assert len(row.top) == count
    assert sorted(row.top, key=lambda a: -a.probability) == list(row.top)


@pytest.mark.parametrize(
    "how",
    [
        {"top": 0}, {"top": -1}, {"batch_size": 0}, {"batch_size": -1}, {"device": "gpu"},
        {"dtype": "float8"}, {"threads": 0},
    ],
)  # fmt: skip
def test_an_argument_that_cannot_work_is_refused(bundle: Bundle, how: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(how.values())))):
        predict(bundle, [PICTURES[0]], **how)


def test_a_model_without_classes_cannot_answer(bundle: Bundle) -> None:
    features = ViT(TINY.replace(classes=0))

    with pytest.raises(ConfigError, match="no classes"):
        predict(replace(bundle, model=features, labels=()), PICTURES[0])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"top": "five"}, "top is 'five'; it should be a whole number, 1 or more"),
        ({"top": 2.5}, "top is 2.5; it should be a whole number"),
        ({"top": True}, "top is True; it should be a whole number"),
        ({"top": 0}, "top is 0; it should be 1 or more"),
        ({"batch_size": None}, "batch_size is None; it should be a whole number"),
        ({"threads": "2"}, "threads is '2'; it should be a whole number"),
    ],
)
def test_an_argument_of_another_type_is_told(
    bundle: Bundle, flags: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        predict(bundle, PICTURES[0], **flags)


def test_what_is_neither_an_image_nor_several_is_told(bundle: Bundle) -> None:
    nothing: Any = None

    with pytest.raises(ConfigError, match="images is None; it should be one image, or several"):
        predict(bundle, nothing)


def test_a_whole_number_may_be_one_of_numpy(bundle: Bundle) -> None:
    top: Any = np.int64(2)

    assert len(predict(bundle, PICTURES[0], top)[0].top) == 2
