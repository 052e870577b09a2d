"""Images at their own aspect: their sizes, the stacks they come in, and answers as one by one."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, randomize
from vitrail.data import stream
from vitrail.data.aspect import OwnAspect
from vitrail.data.images import items_of
from vitrail.data.preprocess import Preprocess
from vitrail.data.stream import decoded
from vitrail.engines.build import engine
from vitrail.errors import ConfigError, DataError
from vitrail.inference.embed import embed
from vitrail.inference.evaluate import scored
from vitrail.inference.predict import predict
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

SQUARE = OwnAspect(plain=Preprocess(size=(64, 64), crop=0.8), patch=8)
SIZES = ((40, 56), (56, 40), (30, 90), (90, 30), (50, 50), (41, 57), (33, 33))
DRAW = np.random.default_rng(0)
PICTURES = [DRAW.integers(0, 256, (*SIZES[i % 7], 3), dtype=np.uint8) for i in range(23)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(4)
    model = randomize(ViT(TINY)).eval()
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=tuple("abcdefghi"))


@torch.no_grad()
def one_by_one(bundle: Bundle) -> torch.Tensor:
    """Answer each picture past the stream, in a batch of its own."""
    fit, logits = OwnAspect(plain=bundle.preprocess, patch=8), []
    for picture in PICTURES:
        pixels = torch.from_numpy(fit.pixels(picture))[None]
        logits.append(bundle.model(fit.normalize(pixels)))
    return torch.cat(logits)


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (64, 64, (64, 64)),
        (999, 999, (64, 64)),
        (300, 400, (56, 72)),  # 6.9 x 9.2 patches of 64
        (400, 300, (72, 56)),
        (200, 600, (40, 112)),  # 4.6 x 13.9
        (1, 50, (8, 456)),  # 1.1 x 56.6
        (1, 100, (8, 512)),  # 0.8 x 80: no more patches than the model is used to in one row
    ],
)
def test_a_size_has_the_image_s_aspect_and_the_model_s_patches(
    height: int, width: int, wanted: tuple[int, int]
) -> None:
    assert SQUARE.size(height, width) == wanted


def test_aspect_and_number_of_patches_are_kept_but_for_half_a_patch_a_side() -> None:
    fit = OwnAspect(plain=Preprocess(size=(224, 224)), patch=16)

    for height, width in DRAW.integers(100, 400, (200, 2)).tolist():
        down, across = (side / 16 for side in fit.size(height, width))
        exact = math.sqrt(196 * height / width), math.sqrt(196 * width / height)
        assert abs(down - exact[0]) <= 0.5 and abs(across - exact[1]) <= 0.5
        assert abs(down * across / 196 - 1) < 0.12


def test_a_square_image_is_what_it_is_without_it() -> None:
    picture = DRAW.integers(0, 256, (97, 97, 3), dtype=np.uint8)

    assert np.array_equal(SQUARE.pixels(picture), SQUARE.plain.pixels(picture))


@pytest.mark.parametrize(("resize", "kept"), [("shortest", 0.8), ("square", 0.8), ("pad", 1.0)])
def test_the_crop_keeps_its_share_of_both_sides(resize: Any, kept: float) -> None:
    across = np.linspace(0, 255, 600).astype(np.uint8)[None, :, None].repeat(200, axis=0)
    plain = Preprocess(size=(64, 64), crop=0.8, resize=resize, mean=(0.5,), std=(0.5,))

    wide, tall = (
        OwnAspect(plain=plain, patch=8).pixels(picture)
        for picture in (across, across.transpose(1, 0, 2))
    )

    assert wide.shape == (1, 40, 112) and tall.shape == (1, 112, 40)
    for row in (wide[0, 20], tall[0, :, 20]):
        low, high = 255 * (1 - kept) / 2, 255 * (1 + kept) / 2
        assert row[0] == pytest.approx(low, abs=4) and row[-1] == pytest.approx(high, abs=4)


def test_pil_images_and_what_is_no_image_are_met_as_ever() -> None:
    picture = PICTURES[2]

    assert np.array_equal(SQUARE.pixels(Image.fromarray(picture)), SQUARE.pixels(picture))
    with pytest.raises(DataError, match="one side may be up to"):
        SQUARE.pixels(np.zeros((2, 5000, 3), np.uint8))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("threads", [1, 3])
def test_stacks_hold_every_image_once_and_no_more_than_a_batch(
    batch_size: int, threads: int
) -> None:
    # Half from memory, half by threads; and one that is broken.
    images: list[Any] = [_png(p) if i % 2 else p for i, p in enumerate(PICTURES)]
    images[5] = b"broken"

    batches = list(decoded(items_of(images), SQUARE, batch_size, threads=threads))

    errors = [error for batch in batches for error in batch.errors]
    assert [i for i, error in enumerate(errors) if error] == [5]
    good = iter(picture for i, picture in enumerate(PICTURES) if i != 5)
    for batch in batches:
        assert len(batch.items) <= 4 * batch_size
        rows = {}
        for stack in batch.stacks:
            assert 1 <= len(stack.images) <= batch_size
            rows |= dict(zip(stack.places, stack.images, strict=True))
        assert sorted(rows) == list(range(batch.errors.count(None)))
        for place in sorted(rows):
            assert np.array_equal(rows[place].numpy(), SQUARE.pixels(next(good)))
    assert next(good, None) is None
    if batch_size == 64:  # all are in one batch, which has one stack for each shape
        assert len(batches[0].stacks) == len({SQUARE.size(*size) for size in SIZES})


def test_few_images_are_in_memory_however_long_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 0

    def endless() -> Any:
        nonlocal opened
        while True:
            opened += 1
            yield PICTURES[opened % len(PICTURES)]

    found = decoded(items_of(endless()), SQUARE, 2)

    for batch in range(1, 20):
        next(found)
        assert opened <= (batch + 3) * stream._WINDOW * 2


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_predictions_are_those_of_one_image_at_a_time(bundle: Bundle, batch_size: int) -> None:
    wanted = one_by_one(bundle).softmax(dim=1)
    images: list[Any] = [*PICTURES[:7], b"broken", *PICTURES[7:]]

    found = predict(bundle, images, top=9, batch_size=batch_size, device="cpu", aspect=True)

    assert [row.error is None for row in found] == [i != 7 for i in range(24)]
    del found[7]
    for row, likely in zip(found, wanted, strict=True):
        got = torch.zeros(9)
        got[[answer.index for answer in row.top]] = torch.tensor([a.probability for a in row.top])
        # A batch and a single image differ in the last bits of float32.
        torch.testing.assert_close(got, likely, rtol=1e-4, atol=1e-6)


def test_a_model_reads_its_own_aspect_as_ever_and_others_otherwise(bundle: Bundle) -> None:
    plain, own = (
        [row.top[0].probability for row in predict(bundle, PICTURES[:2], device="cpu", aspect=own)]
        for own in (False, True)
    )

    assert own[0] == pytest.approx(plain[0], abs=1e-6)  # 40 x 56, the model's own size
    assert own[1] != pytest.approx(plain[1], abs=1e-3)  # 56 x 40


class Labelled:
    """The pictures, of which the third cannot be read, in two classes."""

    classes = ("b", "a")

    def __len__(self) -> int:
        return len(PICTURES)

    def read(self, index: int) -> bytes:
        return b"" if index == 2 else _png(PICTURES[index])

    def label(self, index: int) -> int:
        return index % 2

    def name(self, index: int) -> str:
        return f"{index}.png"


def test_an_evaluation_measures_the_same_answers(bundle: Bundle) -> None:
    wanted = one_by_one(bundle)
    good = [i for i in range(len(PICTURES)) if i != 2]
    told: list[int] = []

    runs = engine(bundle, "torch", "float32", device="cpu", aspect=True)
    found = scored(runs, bundle, Labelled(), batch_size=2, seen=told.append)

    np.testing.assert_allclose(found.scores, wanted[good], rtol=1e-4, atol=1e-4)
    assert found.places.tolist() == good and sum(told) == len(good)
    assert found.labels.tolist() == [1 - i % 2 for i in good]
    assert found.sides.tolist() == [list(PICTURES[i].shape[:2]) for i in good]
    assert [(file.path, "empty" in file.reason) for file in found.bad] == [("2.png", True)]


def test_embeddings_are_of_one_length_whatever_the_shape(bundle: Bundle) -> None:
    fit = OwnAspect(plain=bundle.preprocess, patch=8)

    found = embed(bundle, PICTURES[:5], tokens="mean", batch_size=2, aspect=True, device="cpu")

    with torch.no_grad():
        for row, picture in zip(found, PICTURES, strict=False):
            tokens = bundle.model.tokens(fit.normalize(torch.from_numpy(fit.pixels(picture))[None]))
            np.testing.assert_allclose(row, tokens.patches.mean(dim=1)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="grids of patches of many shapes"):
        embed(bundle, PICTURES, tokens="patches", aspect=True, device="cpu")


def test_an_engine_merges_at_every_aspect(bundle: Bundle) -> None:
    found, plain = (
        predict(bundle, PICTURES[:3], top=9, device="cpu", aspect=True, merge=merge)
        for merge in (4, 0)
    )

    runs = engine(bundle, device="cpu", aspect=True, merge=4)
    assert isinstance(runs.preprocess, OwnAspect)
    for row, picture in zip(found, PICTURES, strict=False):
        pixels = torch.from_numpy(runs.preprocess.pixels(picture))[None]
        wanted = runs.run(pixels).softmax(dim=1)[0]
        assert row.top[0].probability == pytest.approx(float(wanted.max()), abs=1e-5)
    assert found != plain
