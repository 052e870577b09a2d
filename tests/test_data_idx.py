import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from vitrail.data.decode import decode
from vitrail.data.sources import open_data
from vitrail.errors import DataError

PIXELS = np.arange(8 * 5 * 7, dtype=np.uint8).reshape(8, 5, 7)
LABELS = np.arange(8, dtype=np.uint8) % 3


def idx(array: np.ndarray) -> bytes:
    sides = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.tobytes()


def write(root: Path, split: str, images: bytes, labels: bytes, packed: bool = False) -> str:
    for name, data in (
        (f"{split}-images-idx3-ubyte", images),
        (f"{split}-labels-idx1-ubyte", labels),
    ):
        file = root / (name + ".gz" * packed)
        file.write_bytes(gzip.compress(data) if packed else data)
    return str(root)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_row_by_row(tmp_path: Path, packed: bool) -> None:
    write(tmp_path, "train", idx(PIXELS), idx(LABELS), packed)
    data = write(tmp_path, "t10k", idx(PIXELS[::-1]), idx(LABELS[::-1]), packed)

    found = open_data(data)

    for source, pixels, labels in (
        (found.train, PIXELS, LABELS),
        (found.held_out, PIXELS[::-1], LABELS[::-1]),
    ):
        read = [decode(source.read(i))[..., 0] for i in range(len(source))]
        assert np.array_equal(read, pixels)
        assert [source.label(i) for i in range(len(source))] == labels.tolist()
    assert found.train.classes == ("0", "1", "2")


def test_idx_images_may_have_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 5, 7, 3), np.uint8)
    data = write(tmp_path, "train", idx(pixels), idx(LABELS))

    found = open_data(data)

    rows = {source.name(i): source.read(i) for source in found[:2] for i in range(len(source))}
    read = [decode(rows[name]) for name in sorted(rows)]
    assert np.array_equal(read, pixels)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("images", "labels", "telling"),
    [
        (idx(PIXELS)[:-1], idx(LABELS), "promises 8 x 5 x 7 bytes and has 279"),
        (idx(PIXELS) + b"x", idx(LABELS), "has more"),
        (idx(PIXELS), idx(LABELS[:-1]), "8 images and .* 7 labels"),
        (b"", idx(LABELS), "no idx file"),
        (b"\0\0\x0d\x03" + idx(PIXELS)[4:], idx(LABELS), "no idx file"),
        (idx(PIXELS)[:7], idx(LABELS), "header"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, idx(LABELS), "promises"),
        (idx(LABELS), idx(LABELS), "wanted are images x height x width"),
    ],
)
def test_idx_files_that_are_not_whole_are_refused(
    tmp_path: Path, images: bytes, labels: bytes, telling: str, packed: bool
) -> None:
    data = write(tmp_path, "train", images, labels, packed)

    with pytest.raises(DataError, match=telling):
        open_data(data)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path, "train", idx(PIXELS), idx(LABELS), packed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-12])

    with pytest.raises(DataError, match="no gzip file, or a damaged one"):
        open_data(data)


def test_images_without_labels_are_named(tmp_path: Path) -> None:
    data = write(tmp_path, "train", idx(PIXELS), idx(LABELS))
    (tmp_path / "train-labels-idx1-ubyte").unlink()

    with pytest.raises(DataError, match='no labels beside it: "train-labels-idx1-ubyte"'):
        open_data(data)
