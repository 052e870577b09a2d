import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_sets import pictures
from test_decode import png_claiming
from vitrail.data.config import Augment
from vitrail.data.loader import Batch, Loader
from vitrail.data.preprocess import Preprocess
from vitrail.data.sources import open_data
from vitrail.errors import DataError

GREY = Preprocess(size=(4, 6), mean=(0.5,), std=(0.5,))


class Memory:
    """Plain grey images: the grey is the place, so that a mix-up shows in the pixels."""

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad, self.classes = count, bad, ("even", "odd", "third")
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        self.reads.append(index)
        if index in self.bad:
            return b"<html>not found"
        file = io.BytesIO()
        Image.new("L", (6, 4), index).save(file, format="PNG")
        return file.getvalue()

    def label(self, index: int) -> int:
        return index % 3

    def name(self, index: int) -> str:
        return f"{index}.png"


def loader(source: Memory, batch_size: int = 4, **how: float) -> Loader:
    return Loader(source, GREY, batch_size, **how)  # type: ignore[arg-type]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and np.array_equal(a.places, b.places)
        for a, b in zip(first, second, strict=True)
    )


def test_a_bad_file_is_named_with_its_split(tmp_path: Path) -> None:
    names = [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in range(2)]
    for name, image in (pictures(*names) | {"val/a/bad.png": b"", "train/a/bad.png": b""}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    data = open_data(str(tmp_path))

    for split, source in data.parts().items():
        reader = Loader(source, GREY, 5, max_bad_share=1.0)
        list(reader.once())
        assert [bad.path for bad in reader.bad.values()] == [f"{split}/a/bad.png"]


def decoding_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("decode")]


def check_rows(batches: list[Batch]) -> None:
    """Every row is the picture, and has the label, of its own place."""
    for images, labels, places, *_ in batches:
        assert images.dtype == torch.uint8 and images.shape == (len(places), 1, 4, 6)
        assert images[:, 0, 0, 0].tolist() == places.tolist()
        assert images.flatten(1).min(1).values.tolist() == places.tolist()
        assert labels.tolist() == (places % 3).tolist()


def test_an_epoch_visits_every_image_once() -> None:
    batches = list(loader(Memory(48)).epoch(seed=0, epoch=0))

    check_rows(batches)
    places = np.concatenate([batch.places for batch in batches])
    assert sorted(places.tolist()) == list(range(48))
    assert places.tolist() != list(range(48))


def test_an_epoch_has_whole_batches_alone() -> None:
    reader = loader(Memory(23), batch_size=5)

    batches = list(reader.epoch(0, 0))

    assert reader.steps() == 4
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5]
    assert len({int(i) for batch in batches for i in batch.places}) == 20


def test_once_gives_every_image_in_the_source_s_order() -> None:
    batches = list(loader(Memory(11)).once())

    check_rows(batches)
    assert [batch.places.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_batches_depend_on_seed_and_epoch_and_not_on_threads(threads: int) -> None:
    reader = loader(Memory(48), threads=threads)
    wanted = list(loader(Memory(48), threads=3).epoch(7, 2))

    first = list(reader.epoch(7, 2))
    from_memory = list(reader.epoch(7, 2))

    assert same(first, wanted) and same(from_memory, wanted)
    for seed, epoch in ((7, 3), (8, 2)):
        assert not same(list(reader.epoch(seed, epoch)), wanted)


@pytest.mark.parametrize("start", [0, 1, 5, 11, 12])
def test_a_start_in_the_middle_gives_the_rest_of_the_same_epoch(start: int) -> None:
    wanted = list(loader(Memory(48)).epoch(1, 1))

    assert same(list(loader(Memory(48)).epoch(1, 1, start)), wanted[start:])


def test_images_that_fit_in_memory_are_read_once() -> None:
    source = Memory(20)
    reader = loader(source)

    for epoch in range(3):
        list(reader.epoch(0, epoch))

    assert sorted(source.reads) == list(range(20))


def test_images_that_do_not_fit_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.data.loader.KEPT_BYTES", 20 * 24 - 1)
    source = Memory(20)
    reader = loader(source)

    epochs = [list(reader.epoch(0, epoch)) for epoch in (0, 0)]

    assert same(*epochs)
    assert sorted(source.reads) == sorted([*range(20)] * 2)


def test_a_bad_file_is_left_out_and_listed_and_never_replaced() -> None:
    reader = loader(Memory(12, bad=(2, 5)), max_bad_share=0.5)

    for _ in range(2):
        batches = list(reader.once())

        check_rows(batches)
        places = [batch.places.tolist() for batch in batches]
        assert places == [[0, 1, 3], [4, 6, 7], [8, 9, 10, 11]]
    assert sorted((file.path, file.reason) for file in reader.bad.values()) == [
        ("2.png", "this is an HTML page, not an image"),
        ("5.png", "this is an HTML page, not an image"),
    ]


def test_a_batch_of_bad_files_alone_is_empty() -> None:
    batches = list(loader(Memory(8, bad=(0, 1, 2, 3)), max_bad_share=1.0).once())

    assert [len(batch.labels) for batch in batches] == [0, 4]
    assert batches[0].images.shape == (0, 1, 4, 6)


def test_a_file_that_vanishes_is_a_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Memory(8)
    read = source.read

    def gone(index: int) -> bytes:
        if index == 3:
            raise FileNotFoundError(2, "No such file or directory", "3.png")
        return read(index)

    monkeypatch.setattr(source, "read", gone)
    reader = loader(source, max_bad_share=0.5)

    check_rows(list(reader.once()))

    assert [file.path for file in reader.bad.values()] == ["3.png"]


def test_more_bad_files_than_allowed_stop_the_run() -> None:
    reader = loader(Memory(20, bad=(1, 7, 13)), max_bad_share=0.1)

    with pytest.raises(DataError) as caught:
        list(reader.epoch(0, 0))

    text = str(caught.value)
    assert "3 of 20" in text and "max_bad_share" in text
    assert all(f"{i}.png: this is an HTML page" in text for i in (1, 7, 13))
    assert not decoding_threads()


def test_as_many_bad_files_as_allowed_do_not_stop_it() -> None:
    batches = list(loader(Memory(20, bad=(1, 7)), max_bad_share=0.1).epoch(0, 0))

    assert sum(len(batch.labels) for batch in batches) == 18


def test_no_thread_outlives_a_consumer_that_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        for batch in loader(Memory(100), threads=4).epoch(0, 0):
            _ = len(batch.labels) / 0

    assert not decoding_threads()


def test_no_thread_outlives_an_epoch_that_is_closed_or_over() -> None:
    batches = loader(Memory(100), threads=4).once()
    next(batches)
    assert decoding_threads()

    batches.close()  # type: ignore[attr-defined]
    list(loader(Memory(8), threads=4).once())

    assert not decoding_threads()


class Photos(Memory):
    """JPEGs in which the place of a pixel shows in its colour, with damaged ones among them."""

    def __init__(self, count: int, bad: dict[int, bytes] | None = None) -> None:
        super().__init__(count, tuple(bad or ()))
        self.data = bad or {}

    def read(self, index: int) -> bytes:
        return self.data.get(index) or self.photo(index)

    def photo(self, index: int) -> bytes:
        down, right = np.mgrid[:256, :320].astype(np.float64)
        picture = np.stack([down * 0.9, right * 0.7, np.full_like(down, 3 * index)], axis=-1)
        file = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(file, format="JPEG", quality=95)
        return file.getvalue()


COLOUR = Preprocess(size=(24, 32))
CROP = Augment(crop_scale=0.2, flip=True)


def photos(threads: int = 2, source: Photos | None = None, **how: Any) -> Loader:
    how = {"augment": CROP, "max_bad_share": 1.0, **how}
    return Loader(source or Photos(12), COLOUR, 4, threads=threads, **how)


def by_place(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): row for b in batches for row, i in zip(b.images, b.places, strict=True)}


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_crops_depend_on_seed_and_epoch_and_not_on_threads_or_start(decode: Any) -> None:
    wanted = list(photos(decode=decode).epoch(7, 2))

    for threads in (1, 4):
        reader = photos(threads, decode=decode)
        assert same(list(reader.epoch(7, 2)), wanted)
        assert same(list(reader.epoch(7, 2, start=1)), wanted[1:])
    whole = by_place(list(photos(augment=Augment()).once()))
    for other in (photos(decode=decode).epoch(7, 3), photos(decode=decode).epoch(8, 2)):
        assert not same(list(other), wanted)
    assert not any(torch.equal(row, whole[i]) for i, row in by_place(wanted).items())


def test_what_is_not_trained_on_is_whole() -> None:
    plain = list(photos(augment=Augment()).once())

    assert same(list(photos().once()), plain)
    assert not same(list(photos().epoch(0, 0)), list(photos(augment=Augment()).epoch(0, 0)))


def test_a_crop_shows_its_part_of_the_photo_and_a_mirrored_one_the_other_way_round() -> None:
    mirrored = []
    for batch in photos().epoch(0, 0):
        for image in batch.images.float():
            down, right = image[0].mean(dim=1).diff(), image[1].mean(dim=0).diff()
            assert (down >= -0.5).all()
            mirrored.append(bool(right.mean() < 0))
            assert (right <= 0.5).all() if mirrored[-1] else (right >= -0.5).all()

    assert any(mirrored) and not all(mirrored)


def test_fast_pixels_are_near_the_exact_ones() -> None:
    exact, fast = (
        torch.cat([batch.images for batch in photos(decode=how).epoch(0, 0)]).float()
        for how in ("exact", "fast")
    )

    assert not torch.equal(exact, fast)
    assert (exact - fast).abs().mean() < 1.5


def test_damaged_photos_are_listed_with_their_reasons_and_never_replaced() -> None:
    whole = Photos(12).photo(0)
    bad = {
        1: whole[: len(whole) // 2],
        3: b" ",
        4: b"no photo",
        6: b"<html>not found</html>",
        7: png_claiming(60_000, 60_000),
    }
    reasons = ["truncated", "no image", "no image", "HTML page", "pixels"]
    wanted = by_place(list(photos().epoch(3, 1)))

    reader = photos(source=Photos(12, bad))
    batches = list(reader.epoch(3, 1))

    seen = [int(i) for batch in batches for i in batch.places]
    assert sorted(seen) == [0, 2, 5, 8, 9, 10, 11]
    for batch in batches:
        assert batch.labels.tolist() == (batch.places % 3).tolist()
    assert all(torch.equal(row, wanted[i]) for i, row in by_place(batches).items())
    for (index, reason), file in zip(
        zip(sorted(bad), reasons, strict=True), [reader.bad[i] for i in sorted(bad)], strict=True
    ):
        assert file.path == f"{index}.png" and reason in file.reason


def test_one_pixel_has_crops_too() -> None:
    dot = io.BytesIO()
    Image.new("RGB", (1, 1), (9, 99, 199)).save(dot, format="PNG")

    dots = Photos(4, dict.fromkeys(range(4), dot.getvalue()))
    (batch,) = photos(source=dots).epoch(0, 0)

    assert batch.images.flatten(2).unique(dim=2).squeeze().unique(dim=0).tolist() == [[9, 99, 199]]
