from pathlib import Path

import pytest
import torch

from conftest import TINY, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.errors import WeightsError
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.loading import load
from vitrail.weights.origin import parse


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(1)
    model = randomize(ViT(TINY)).eval()
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=tuple("abcdefghi"))


@pytest.mark.parametrize("place", ["", "last"])
def test_an_origin_is_a_bundle_or_a_run_s_last_one(
    bundle: Bundle, tmp_path: Path, place: str
) -> None:
    save(bundle, tmp_path / "digits-1" / place)

    found = parse(str(tmp_path / "digits-1"))

    assert (found.kind, found.name) == ("bundle", "digits-1")
    assert load(tmp_path / "digits-1").labels == bundle.labels


def test_a_preset_is_an_origin_unless_a_bundle_has_its_name(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    (tmp_path / "nano").mkdir()
    assert parse("nano").kind == "preset"
    save(bundle, "nano")
    assert parse("nano").kind == "bundle"


@pytest.mark.parametrize("status", ['{"status": "interrupted"}', "[]", "{", None])
def test_a_run_without_weights_says_how_to_go_on(tmp_path: Path, status: str | None) -> None:
    (tmp_path / "recipe.toml").touch()
    if status is not None:
        (tmp_path / "summary.json").write_text(status)

    with pytest.raises(WeightsError, match=r"has no weights yet.*vitrail train"):
        parse(str(tmp_path))


@pytest.mark.parametrize(
    ("origin", "telling"),
    [
        ("vit-b61", 'Did you mean "vit-b16"'),
        ("no/such/folder", "there is no model"),
        ("a" * 300, "there is no model"),
        ("~nobody-has-this-name/model", "there is no model"),
        ("a\0b", "there is no model"),
    ],
)
def test_an_unknown_origin_is_refused_with_the_nearest(origin: str, telling: str) -> None:
    with pytest.raises(WeightsError, match=telling):
        load(origin)


def test_a_folder_of_something_else_is_no_origin(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no run, no bundle"):
        load(tmp_path)
