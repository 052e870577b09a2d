"""An epoch is the same pixels, once each, however many threads, ranks and restarts it took."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_sets import pack
from vitrail.data.augment import augment, draw
from vitrail.data.config import Augment
from vitrail.data.draws import grouped_order, repeated
from vitrail.data.loader import Batch, Loader
from vitrail.data.mixing import mixed
from vitrail.data.preprocess import Preprocess
from vitrail.data.sources import Source, open_data
from vitrail.errors import ConfigError

COLOUR = Preprocess(size=(24, 32))
CROP = Augment(crop_scale=0.2, flip=True)
COUNT = 30  # training images: 3 batches of 8 and a remainder


def photo(number: int) -> bytes:
    """Give a JPEG with a texture of its own, larger than the model's input."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((240, 180)).save(file, format="JPEG", quality=90)
    return file.getvalue()


def members() -> dict[str, bytes]:
    names = [f"{split}/{c}/{i}.jpg" for split, n in (("train", COUNT // 2), ("val", 1))
             for c in "ab" for i in range(n)]  # fmt: skip
    return {name: photo(i) for i, name in enumerate(names)}


def as_folder(root: Path) -> str:
    for name, data in members().items():
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "photos" / name).write_bytes(data)
    return str(root / "photos")


def as_tar(root: Path) -> str:
    return str(pack(root / "photos.tar", members()))


def as_shards(root: Path) -> str:
    for s in range(4):
        of_shard = [photo(i) for i in range(s, COUNT + 2, 4)]
        files = {}
        for i, data in enumerate(of_shard):
            files |= {f"{i:03d}.jpg": data, f"{i:03d}.cls": str(i % 2).encode()}
        pack(root / "shards" / f"{'val' if s == 3 else 'train'}-{s}.tar", files)
    return str(root / "shards")


def as_parquet(root: Path) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    for split, first, count in (("train", 0, COUNT), ("val", COUNT, 2)):
        images = [{"bytes": photo(i), "path": f"{i}.jpg"} for i in range(first, first + count)]
        table = pa.table({"image": images, "label": [i % 2 for i in range(count)]})
        parquet.write_table(table, root / f"{split}-0.parquet", row_group_size=5)
    return str(root)


FORMS = {"folder": as_folder, "tar": as_tar, "shards": as_shards, "parquet": as_parquet}


@pytest.fixture(scope="module", params=FORMS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return open_data(FORMS[request.param](tmp_path_factory.mktemp("data"))).train


def loader(source: Source, threads: int = 2, batch_size: int = 8, **how: Any) -> Loader:
    return Loader(source, COLOUR, batch_size, threads=threads, **{"augment": CROP, **how})


def digest(batches: Iterable[Batch]) -> str:
    """Give the sha256 of all pixels and labels, in their order."""
    found = hashlib.sha256()
    for batch in batches:
        for image, label in zip(batch.images, batch.labels, strict=True):
            found.update(image.numpy().tobytes() + bytes([int(label)]))
    return found.hexdigest()


def together(ranks: list[list[Batch]]) -> list[Batch]:
    """Put the shares of the ranks side by side, batch by batch."""
    return [part for parts in zip(*ranks, strict=True) for part in parts]


@pytest.mark.parametrize("how", [{}, {"decode": "fast"}, {"augment": Augment()}])
def test_an_epoch_is_the_same_pixels_for_any_threads_ranks_and_starts(
    source: Source, how: dict[str, Any]
) -> None:
    wanted = digest(loader(source, 1, **how).epoch(3, 5))

    for threads in (2, 4):
        assert digest(loader(source, threads, **how).epoch(3, 5)) == wanted
    shares = [[*loader(source, rank=r, ranks=2, **how).epoch(3, 5)] for r in (0, 1)]
    assert digest(together(shares)) == wanted
    for start in (1, 2):
        reader = loader(source, **how)
        begun = [b for b, _ in zip(reader.epoch(3, 5), range(start), strict=False)]
        assert digest([*begun, *loader(source, **how).epoch(3, 5, start)]) == wanted
    assert digest(loader(source, **how).epoch(3, 6)) != wanted


@pytest.mark.parametrize("shuffle", ["whole", "grouped"])
def test_every_image_comes_once_an_epoch_on_two_ranks(source: Source, shuffle: Any) -> None:
    how: dict[str, Any] = {"batch_size": len(source) // 2 * 2, "shuffle": shuffle}
    if shuffle == "grouped" and source.layout is None:  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="files of their own"):
            loader(source, **how)
        return

    shares = [[*loader(source, rank=r, ranks=2, **how).epoch(0, 0)] for r in (0, 1)]

    places = [int(i) for batch in together(shares) for i in batch.places]
    assert sorted(places) == list(range(len(source)))


def test_a_stream_of_steps_is_its_epochs_one_after_the_other(source: Source) -> None:
    wanted = [b for e in range(3) for b in loader(source).epoch(1, e)]

    stream = [*loader(source).batches(1, 0, 3 * loader(source).steps())]

    assert digest(stream) == digest(wanted)
    assert [b.epoch for b in stream] == [b.epoch for b in wanted]
    assert digest(loader(source).batches(1, 2, 5)) == digest(wanted[2:5])


def test_ranks_together_give_every_held_out_image_once_in_order(source: Source) -> None:
    shares = [[*loader(source, rank=r, ranks=3, batch_size=9).once()] for r in range(3)]

    places = [int(i) for share in shares for batch in share for i in batch.places]
    assert places == list(range(len(source)))


def test_blocks_are_whole_and_the_same_on_any_number_of_ranks(source: Source) -> None:
    mixed = Augment(mixup=0.8, mix_block=4)
    one = [*loader(source, batch_size=16, augment=mixed).epoch(0, 0)]
    two = [
        [*loader(source, batch_size=16, augment=mixed, rank=r, ranks=2).epoch(0, 0)] for r in (0, 1)
    ]

    for batch, parts in zip(one, zip(*two, strict=True), strict=True):
        assert batch.blocks.tolist() == np.concatenate([p.blocks for p in parts]).tolist()
        assert not set(parts[0].blocks) & set(parts[1].blocks)
    with pytest.raises(ConfigError, match=r"batch_size 12 .* 2 processes .* give 8 or 16"):
        loader(source, batch_size=12, augment=mixed, ranks=2)


def test_an_image_that_would_be_a_block_alone_joins_the_one_before(source: Source) -> None:
    mixed = Augment(cutmix=1.0, mix_block=4)

    (batch, *_) = loader(source, batch_size=9, augment=mixed).epoch(0, 0)

    assert batch.blocks.tolist() == [0] * 4 + [1] * 5
    with pytest.raises(ConfigError, match="an image alone finds no partner"):
        loader(source, batch_size=1, augment=mixed)


def test_a_batch_that_does_not_split_over_the_ranks_is_refused(source: Source) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 7 .* 2 processes.* give 6 or 8"):
        loader(source, batch_size=7, ranks=2)


def test_repeated_augmentation_shows_fewer_images_each_so_many_times(source: Source) -> None:
    reader = loader(source, augment=Augment(crop_scale=0.2, repeats=3, mix_block=2))

    batches = [*reader.epoch(0, 0)]

    keys = np.concatenate([b.keys for b in batches])
    places = np.concatenate([b.places for b in batches])
    assert len(set(keys.tolist())) == len(keys)
    assert (keys % len(source) == places).all()
    counts = np.unique(places, return_counts=True)[1]
    assert counts.max() == 3 and len(counts) <= len(source) // 3 + 1
    for batch in batches:
        for block in np.unique(batch.blocks):  # nobody is mixed with a copy of itself
            inside = batch.places[batch.blocks == block]
            assert len(set(inside.tolist())) == len(inside)
    rows = {}
    for batch in batches:
        for image, place in zip(batch.images, batch.places.tolist(), strict=True):
            rows.setdefault(place, []).append(image)
    assert not any(torch.equal(r[0], r[1]) for r in rows.values() if len(r) > 1)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    window=st.integers(1, 200),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 1000),
)
def test_a_grouped_order_visits_every_place_once_and_keeps_groups_near(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)

    found = grouped_order(seed, epoch, groups, window)

    assert sorted(found.tolist()) == list(range(len(groups)))
    # A group lies in one piece before the window moves its samples, each by less than the window.
    for group, size in enumerate(sizes):
        at = np.flatnonzero(groups[found] == group)
        assert at.max() - at.min() < size + 2 * window


def test_a_grouped_order_depends_on_seed_and_epoch_and_is_no_listing() -> None:
    groups = np.repeat(np.arange(50), 40)

    orders = {tuple(grouped_order(s, e, groups, 320)) for s in range(2) for e in range(2)}

    assert len(orders) == 4
    for found in map(np.array, orders):
        in_use = [len(set(groups[found[i : i + 40]])) for i in range(0, 2000, 40)]
        assert 6 <= np.median(in_use) <= 14  # eight groups are mixed, not one and not all
        assert np.abs(np.corrcoef(groups[found], np.arange(2000))[0, 1]) < 0.5


@given(count=st.integers(1, 200), repeats=st.integers(1, 5), block=st.integers(1, 16))
def test_repeats_are_whole_blocks_of_different_samples(
    count: int, repeats: int, block: int
) -> None:
    places, copies = repeated(np.arange(count), repeats, block)

    assert len(places) <= count and len(places) > count - repeats * (block + 1)
    assert len(set(zip(places.tolist(), copies.tolist(), strict=True))) == len(places)
    assert all((places == p).sum() == repeats for p in set(places.tolist()))


def finished(batches: Iterable[Batch], how: Augment) -> list[torch.Tensor]:
    """Give every image after augmentation and mixing."""
    images = []
    for b in batches:
        draws = draw(3, b.epoch, b.keys, b.blocks, how, (24, 32))
        assert draws.mixing is not None
        images += [*mixed(augment(b.images, draws, how), draws.mixing)]
    return images


def test_mixed_pixels_are_the_same_on_two_ranks(source: Source) -> None:
    how = Augment(crop_scale=0.2, mixup=0.8, cutmix=1.0, contrast=0.3, erase=0.5, mix_block=4)
    one = finished(loader(source, augment=how).epoch(3, 5), how)

    shares = [[*loader(source, augment=how, rank=r, ranks=2).epoch(3, 5)] for r in (0, 1)]

    two = finished(together(shares), how)
    assert len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
