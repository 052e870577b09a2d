"""Saving goes wrong: what was there must still be there."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import TINY, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.errors import OutputError
from vitrail.model.vit import ViT
from vitrail.weights import disk
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.loading import load

LABELS = tuple("abcdefghi")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(1)
    return Bundle(
        model=randomize(ViT(TINY)).eval(), preprocess=Preprocess(size=(40, 56)), labels=LABELS
    )


@pytest.fixture
def newer(bundle: Bundle) -> Bundle:
    return replace(bundle, labels=tuple("ABCDEFGHI"))


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> list[int]:
    """Make the `call`-th call of a function raise "no space left"; give the calls so far."""
    real, calls = getattr(owner, name), [0]

    def failing(*args: object) -> object:
        calls[0] += 1
        if calls[0] == call:
            raise FULL
        return real(*args)

    monkeypatch.setattr(owner, name, failing)
    return calls


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_bundle_takes_the_old_one_s_place(
    bundle: Bundle, newer: Bundle, tmp_path: Path
) -> None:
    save(bundle, tmp_path / "best")

    save(newer, tmp_path / "best")

    assert load(tmp_path / "best").labels == newer.labels
    assert names(tmp_path) == ["best"]


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(os, "fsync", 1), (os, "fsync", 2), *((Path, "replace", call) for call in (1, 2, 3, 4))],
)
def test_a_save_that_fails_leaves_the_old_bundle_and_nothing_else(
    bundle: Bundle,
    newer: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    call: int,
) -> None:
    save(bundle, tmp_path / "best")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "_exchange", lambda *_: False)  # as on a disk that cannot
        calls = fail_at(patch, owner, name, call)
        with pytest.raises(OutputError, match="No space left"):
            save(newer, tmp_path / "best")

    assert calls[0] >= call
    assert load(tmp_path / "best").labels == LABELS
    assert names(tmp_path) == ["best"]
    save(newer, tmp_path / "best")
    assert load(tmp_path / "best").labels == newer.labels


def test_an_interrupt_while_saving_leaves_the_old_bundle(
    bundle: Bundle, newer: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(bundle, tmp_path / "best")

    def interrupted(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(disk, "write_bytes", interrupted)
        save(newer, tmp_path / "best")

    assert load(tmp_path / "best").labels == LABELS


def test_what_a_killed_save_left_is_in_nobody_s_way(bundle: Bundle, tmp_path: Path) -> None:
    for left in (".best.part", ".best.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.safetensors").write_bytes(b"half")

    save(bundle, tmp_path / "best")

    assert load(tmp_path / "best").labels == LABELS
    assert names(tmp_path) == ["best"]


def test_a_failed_file_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write_bytes(tmp_path / "answers.csv", b"old")

    with monkeypatch.context() as patch, pytest.raises(OutputError) as caught:
        fail_at(patch, os, "fsync", 1)
        disk.write_bytes(tmp_path / "answers.csv", b"new")

    assert "answers.csv" in str(caught.value) and "bytes are free" in str(caught.value)
    assert (tmp_path / "answers.csv").read_bytes() == b"old"
    assert names(tmp_path) == ["answers.csv"]


def test_a_folder_of_something_else_is_never_replaced(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"dear")

    with pytest.raises(OutputError, match="photos"):
        save(bundle, tmp_path / "photos")

    assert (tmp_path / "photos" / "wedding.jpg").read_bytes() == b"dear"
    assert names(tmp_path) == ["photos"]


def test_a_file_is_never_replaced_by_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_bytes(b"dear")

    with pytest.raises(OutputError, match="thesis"):
        save(bundle, tmp_path / "thesis")

    assert (tmp_path / "thesis").read_bytes() == b"dear"


def test_an_empty_folder_and_a_missing_parent_are_filled(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        assert load(save(bundle, folder)).labels == LABELS


def test_a_place_below_a_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OutputError, match="file"):
        save(bundle, tmp_path / "file" / "bundle")


def test_the_working_folder_is_refused_unless_it_is_a_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(OutputError):
        save(bundle, ".")

    assert names(tmp_path) == ["notes.txt"]


def test_home_is_the_same_place_for_save_and_load(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    save(bundle, "~/mine")

    assert load("~/mine").labels == LABELS
    assert names(tmp_path) == ["mine"]


@pytest.mark.parametrize("name", ["x" * 250, "é" * 125, "new\nline", "-o"])
def test_any_name_that_a_disk_takes_can_be_written(tmp_path: Path, name: str) -> None:
    disk.write_bytes(tmp_path / name, b"data")

    assert (tmp_path / name).read_bytes() == b"data"
    assert names(tmp_path) == [name]


def test_an_output_that_is_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_bytes(b"old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")

    disk.write_bytes(tmp_path / "link.csv", b"new")

    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_bytes() == b"new"
