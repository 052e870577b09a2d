"""Embeddings: what they are, the files they are in, who is near whom, and what probes learn."""

import csv
import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from sklearn.metrics.pairwise import cosine_similarity

from conftest import TINY, randomize
from data_sets import pictures
from runs import write_photos
from vitrail.data.inputs import Item, inputs
from vitrail.data.preprocess import Preprocess
from vitrail.data.sets import labelled
from vitrail.engines.build import torch_engine
from vitrail.errors import ConfigError, DataError, NonFiniteError
from vitrail.inference import neighbours as module
from vitrail.inference.embed import embed, embedded
from vitrail.inference.embedding import Insight, collect, insight
from vitrail.inference.embedding_files import check_file
from vitrail.inference.neighbours import neighbours
from vitrail.inference.probes import probe
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

PICTURES = np.random.default_rng(0).integers(0, 256, (7, 40, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(2)
    model = randomize(ViT(TINY.replace(registers=2))).eval()
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=tuple("abcdefghi"))


@torch.no_grad()
def wanted(bundle: Bundle, tokens: str, layer: int | None) -> np.ndarray:
    """Take the embeddings one image at a time, past the runner."""
    rows = []
    for picture in PICTURES:
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
        images = bundle.preprocess.normalize(pixels)
        found = bundle.model.tokens(images, [TINY.depth - 1 if layer is None else layer])[0]
        rows.append(
            {
                "pooled": bundle.model.pool(found)[0],
                "class": found.prefix[0, 0],
                "mean": found.patches[0].mean(dim=0),
                "patches": found.patches[0],
            }[tokens]
        )
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("layer", [None, 0, -1])
@pytest.mark.parametrize("tokens", ["pooled", "class", "mean", "patches"])
def test_embeddings_are_the_model_s_tokens(bundle: Bundle, tokens: Any, layer: int | None) -> None:
    found = embed(bundle, list(PICTURES), tokens=tokens, layer=layer, batch_size=3, device="cpu")

    assert found.dtype == np.float32
    assert found.shape == ((7, 35, 24) if tokens == "patches" else (7, 24))
    # A batch of three and of one differ in the last bits of float32.
    np.testing.assert_allclose(found, wanted(bundle, tokens, layer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", ["pooled", "class", "mean", "patches"])
def test_no_images_have_embeddings_of_the_shape_of_others(bundle: Bundle, tokens: Any) -> None:
    one, none = embed(bundle, PICTURES[0], tokens=tokens), embed(bundle, [], tokens=tokens)

    assert none.shape == (0, *one.shape[1:]) and none.dtype == one.dtype


def test_no_images_of_a_pooling_that_joins_two_vectors_are_as_wide(bundle: Bundle) -> None:
    model = ViT(TINY.replace(pooling="cls+mean")).eval()
    joined = Bundle(model=model, preprocess=bundle.preprocess, labels=bundle.labels)

    assert embed(joined, []).shape == (0, 2 * TINY.width)


def test_one_image_and_none_at_all_have_embeddings_too(bundle: Bundle) -> None:
    assert embed(bundle, PICTURES[0]).shape == (1, 24)
    assert embed(bundle, []).shape == (0, 24)


def test_a_model_with_broken_weights_has_no_embeddings(bundle: Bundle) -> None:
    broken = ViT(TINY)
    torch.nn.init.constant_(broken.patch_embed.proj.weight, torch.nan)

    with pytest.raises(NonFiniteError, match="weights are broken"):
        embed(replace(bundle, model=broken), PICTURES[0])


def test_what_cannot_be_embedded_is_told(bundle: Bundle) -> None:
    no_class = ViT(TINY.replace(class_token=False, pooling="mean", prefix_positions=0))

    with pytest.raises(DataError, match="image 1 cannot be embedded: the file is empty"):
        embed(bundle, [PICTURES[0], b""])
    with pytest.raises(ConfigError, match="no class token"):
        embed(replace(bundle, model=no_class), PICTURES[0], tokens="class")
    for layer in (2, "x", 0.5, True):
        given: Any = layer
        with pytest.raises(ConfigError, match=f"no layer {layer!r}: the blocks are 0 to 1"):
            embed(bundle, PICTURES[0], layer=given)
    with pytest.raises(ConfigError, match='Did you mean "pooled"'):
        embed(bundle, PICTURES[0], tokens="poold")  # type: ignore[arg-type]


def batches(bundle: Bundle, tokens: Any = "pooled", size: int = 3) -> Any:
    """Embed seven pictures of odd names, with a bad one between them."""
    items = [
        Item(f"참새, {i}\n.png", lambda i=i: PICTURES[i], label=f"c{i % 2}", split="train")
        for i in range(7)
    ]

    def broken() -> Any:
        raise DataError("it is broken")

    items.insert(2, Item("bad.png", broken))
    return embedded(torch_engine(bundle, device="cpu"), items, tokens, batch_size=size)


@pytest.mark.parametrize("tokens", ["mean", "patches"])
@pytest.mark.parametrize("size", [1, 3])
def test_files_hold_a_row_for_each_image_that_can_be_read(
    bundle: Bundle, tokens: str, size: int, tmp_path: Path
) -> None:
    found = [
        collect(batches(bundle, tokens, size), str(tmp_path / name), keep=True)
        for name in ("a.npy", "a.parquet")
    ]

    names = [f"참새, {i}\n.png" for i in range(7)]
    array = np.load(tmp_path / "a.npy")
    table = parquet.read_table(tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose(array, wanted(bundle, tokens, None), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), "f4"), array)
    np.testing.assert_array_equal(found[0].vectors, array)
    assert found[0].names == names and found[0].bad == [("bad.png", "it is broken")]
    assert [row["path"] for row in rows] == table.column("path").to_pylist() == names
    assert [row["label"] for row in rows] == table.column("label").to_pylist() == found[0].labels
    assert table.column("split").to_pylist() == ["train"] * 7
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("rows", "size", "groups"), [(4, 2**20, [4, 3]), (99, 1, [1] * 7)])
def test_row_groups_of_parquet_hold_many_batches(
    bundle: Bundle,
    rows: int,
    size: int,
    groups: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitrail.inference.parquet._ROWS", rows)
    monkeypatch.setattr("vitrail.inference.parquet._BYTES", size)

    collect(batches(bundle, "mean", 1), str(tmp_path / "a.parquet"), keep=False)

    found = parquet.ParquetFile(tmp_path / "a.parquet").metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == groups


def test_without_one_image_there_is_no_file(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")

    for name in ("a.npy", "a.parquet"):
        runs = embedded(torch_engine(bundle, device="cpu"), inputs([str(tmp_path / "bad.png")]))
        with pytest.raises(DataError, match="none of the 1 images can be read: the file is empty"):
            collect(runs, str(tmp_path / name), keep=False)

    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


def test_other_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\.parquet or \.npy"):
        check_file("a.txt")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install vitrail\[datasets\]"):
        check_file("a.parquet")


@pytest.mark.parametrize(("block", "cells"), [(1, 2**24), (7, 2**24), (1024, 120), (1024, 2**24)])
def test_neighbours_are_exact_in_blocks_of_any_size(
    block: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    monkeypatch.setattr(module, "_CELLS", cells)
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    vectors[30] = 3 * vectors[4]
    vectors[17] = 0
    similar = cosine_similarity(vectors)

    found = neighbours(vectors, 3, threshold=0.9)

    for i in range(40):
        others = [j for j in np.argsort(-similar[i], kind="stable") if j != i][:3]
        # float32 products in blocks differ in their last bits.
        np.testing.assert_allclose(found.similarities[i], similar[i, others], atol=1e-5)
        assert i not in found.rows[i]
    near = {(i, j) for i in range(40) for j in range(i + 1, 40) if similar[i, j] >= 0.9}
    assert {(pair.first, pair.second) for pair in found.duplicates} == near
    assert found.duplicates_in_all == len(near) > 1
    assert found.duplicates[0][:2] == (4, 30)
    assert found.duplicates[0].similarity == pytest.approx(1, abs=1e-6)


def test_equal_neighbours_stand_in_the_order_of_their_rows() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 0, 2, 0]]

    found = neighbours(vectors, 4)

    assert found.rows[0].tolist() == [2, 4, 6, 1] and found.rows[4].tolist() == [0, 2, 6, 1]


def test_no_more_similarities_than_fit_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CELLS", 2**20)  # 4 MiB of them, not 64
    vectors = np.ones((4000, 2), np.float32)  # each row a duplicate of every other

    tracemalloc.start()
    found = neighbours(vectors, 3, most=50)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (len(found.duplicates), found.duplicates_in_all) == (50, 4000 * 3999 // 2)
    assert most < 64 * 2**20


def test_of_many_duplicates_the_most_similar_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2)
    angles = np.linspace(0, 0.2, 9)[:, None] ** 2
    vectors = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    found = neighbours(vectors, 99, threshold=0.9, most=4)

    assert (len(found.duplicates), found.duplicates_in_all) == (4, 36)
    assert found.rows.shape == (9, 8)
    listed = [pair.similarity for pair in found.duplicates]
    every = sorted((p.similarity for p in neighbours(vectors, 1, 0.9).duplicates), reverse=True)
    assert listed == every[:4]
    assert listed == sorted(listed, reverse=True)
    assert neighbours(vectors[:1], 3).rows.shape == (1, 0)


def test_probes_tell_clusters_and_not_noise() -> None:
    draw = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"] * 12)
    noise = draw.normal(size=(36, 6)).astype(np.float32)
    clusters = noise + 8 * np.eye(6, dtype=np.float32)[np.arange(36) % 3]

    good, bad = probe(clusters, labels), probe(noise, labels)

    assert [found.name for found in good] == ["kNN", "logistic"]
    for found in good:
        assert (found.accuracy, found.images, found.folds) == (1.0, 36, 5)
        assert found.interval[0] > 0.85 and len(found.chosen) == 5
    assert all(found.accuracy < 0.65 for found in bad)
    assert probe(clusters, labels) == good
    assert probe(clusters[:9], labels[:9])[0].folds == 3


def test_labels_that_cannot_be_cross_validated_are_refused() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 2))

    for labels in (["a"] * 6, ["a", "a", "a", "a", "b", "b"]):
        with pytest.raises(DataError, match="3 images or more"):
            probe(vectors, np.array(labels))


def test_what_was_found_is_told_in_both_forms(bundle: Bundle) -> None:
    found = insight(collect(batches(bundle), None, keep=True), 2, -1.0, with_probe=True)

    values = json.loads(json.dumps(found.to_json()))
    assert (values["images"], values["failed"], values["size"]) == (7, 1, [24])
    assert values["bad"] == [{"path": "bad.png", "reason": "it is broken"}]
    assert [len(row["nearest"]) for row in values["neighbours"]] == [2] * 7
    assert values["near_duplicates_in_all"] == len(values["near_duplicates"]) == 21
    assert [row["name"] for row in values["probes"]] == ["kNN", "logistic"]
    text = found.text()
    assert "7 images, 24 numbers each" in text and "21 pairs" in text and "logistic" in text
    assert "\n.png" not in text  # a name is shown on one line
    alone = Insight(collect(batches(bundle), None, keep=False), None, ())
    assert list(alone.to_json()) == ["images", "split", "failed", "size", "bad"]


def test_labels_and_splits_of_data_come_along(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    for name, data in pictures("train/a/1.png", "train/b/2.png", "val/a/3.png").items():
        path = tmp_path / "split" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    whole, split = (list(labelled(str(tmp_path / name))[0]) for name in ("photos", "split"))

    assert [item.label for item in whole] == ["dark"] * 10 + ["light"] * 10
    assert {item.split for item in whole} == {None}
    assert [(item.name, item.label, item.split) for item in split] == [
        ("train/a/1.png", "a", "train"),
        ("train/b/2.png", "b", "train"),
        ("val/a/3.png", "a", "val"),
    ]
