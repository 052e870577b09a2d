"""A conversion writes what was proved, or nothing; what was there stays as it was."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vitrail
from conftest import TINY, randomize
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.errors import OutputError, WeightsError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights import rules
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.convert import conversion
from vitrail.weights.dialect import Dialect, plain
from vitrail.weights.dialects.table import DIALECTS, for_export
from vitrail.weights.target import FORMS

# What a dialect lets be anything, or answers for by itself.
SIZES = {
    "image_size", "patch_size", "channels", "classes", "width", "depth", "heads", "mlp_width"
}  # fmt: skip
TARGETS = {"timm": "target", "mae": "target.pth"}  # a folder, and a file


def bundle_of(config: ViTConfig = TINY) -> Bundle:
    return Bundle(
        model=randomize(ViT(config)).eval(),
        preprocess=Preprocess(size=config.image_size),
        labels=tuple("abcdefghi"),
    )


def tree(folder: Path) -> dict[str, str]:
    """Give the sha256 of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# What is there stays.


@pytest.mark.parametrize("origin", ["run", "other"])
@pytest.mark.parametrize("target", ["run", "run/last", "other", "notes"])
def test_no_bundle_is_written_over_what_is_there(
    tmp_path: Path, origin: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(bundle_of(), tmp_path / "run/last")
    (tmp_path / "run/recipe.toml").touch()
    save(bundle_of(), tmp_path / "other")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("a")
    before = tree(tmp_path)
    words = [str(tmp_path / origin), str(tmp_path / target), "--to", "vitrail"]

    code = main(["convert", *words])

    assert code == OutputError.exit_code == 5
    assert "holds files already" in capsys.readouterr().err
    assert tree(tmp_path) == before


# Nothing is left that was not proved.


def spoiled(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Tensor], Tensor]) -> None:
    """Let one tensor of what is written be another."""
    write = rules.write

    def wrong(*args: Any) -> tuple[Mapping[str, Tensor], set[str]]:
        theirs, used = write(*args)
        return {**theirs, name: spoil(theirs[name])}, used

    monkeypatch.setattr(rules, "write", wrong)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "head.bias"])
def test_a_model_whose_numbers_are_none_is_not_written(tmp_path: Path, to: str, name: str) -> None:
    bundle = bundle_of()
    bundle.model.get_parameter(name).data.view(-1)[0] = torch.nan

    with pytest.raises(WeightsError, match="not finite"):
        vitrail.convert(bundle, tmp_path / TARGETS[to], to)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", TARGETS)
def test_what_does_not_give_the_same_numbers_is_not_left(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY
    if to == "mae":  # which has a rule of resizing of its own
        config = TINY.replace(position_resize=replace(TINY.position_resize, antialias=False))
    bundle = bundle_of(config)
    spoiled(monkeypatch, "blocks.1.mlp.fc2.weight", lambda tensor: 1.01 * tensor)

    with pytest.raises(WeightsError, match="would not give the same numbers"):
        vitrail.convert(bundle, tmp_path / TARGETS[to], to)

    assert list(tmp_path.iterdir()) == []


def test_a_head_of_zeros_hides_no_mistake_in_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of()
    for parameter in bundle.model.head.parameters():
        parameter.data.zero_()
    vitrail.convert(bundle, tmp_path / "right", "timm")
    spoiled(monkeypatch, "blocks.1.mlp.fc2.weight", lambda tensor: 1.01 * tensor)

    with pytest.raises(WeightsError, match="would not give the same numbers"):
        vitrail.convert(bundle, tmp_path / "wrong", "timm")

    assert [path.name for path in tmp_path.iterdir()] == ["right"]


# The same values, or it is told.


@pytest.mark.parametrize("stored", [False, True])
def test_a_bundle_in_bfloat16_is_converted_to_the_bit(tmp_path: Path, stored: bool) -> None:
    bundle = bundle_of()
    bundle = replace(bundle, model=bundle.model.bfloat16())
    origin = save(bundle, tmp_path / "bundle") if stored else bundle

    target = vitrail.convert(origin, tmp_path / "target", "timm")

    found, weights = load_file(target / "model.safetensors"), bundle.model.state_dict()
    assert all(torch.equal(found[name].float(), weights[name].float()) for name in weights)
    assert all(parameter.dtype == torch.bfloat16 for parameter in bundle.model.parameters())


def test_an_eps_that_changes_the_last_digits_alone_is_told(tmp_path: Path) -> None:
    bundle = bundle_of(TINY.replace(norm_eps=1e-12))

    done = conversion(bundle, tmp_path / "target", "timm", {}, certified=False)

    assert [line for line in done.changes if "norm_eps 1e-12 -> 1e-06" in line]
    assert "norm_eps 1e-12 -> 1e-06" in done.text()


def test_an_eps_that_changes_more_than_the_last_digits_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(TINY.replace(norm_eps=1e-3))

    with pytest.raises(WeightsError, match=r"norm_eps = 0.001 \(there: 1e-06\)"):
        vitrail.convert(bundle, tmp_path / "target", "timm")

    assert list(tmp_path.iterdir()) == []


# On the command line.

# Each with what its message tells.
MISTAKES = {
    "wrong dialect": (["nano", "target", "--to", "hugingface"], 2, '"huggingface"'),
    "wrong ending": (["nano", "target.npz", "--to", "torchvision"], 5, "should end in .pth"),
    "file for a folder": (["nano", "target.pth", "--to", "timm"], 5, "is a folder of files"),
    "something there": (["nano", "there.pth", "--to", "torchvision"], 5, "is there already"),
    "folder in use": (["nano", "full", "--to", "huggingface"], 5, "holds files already"),
    "no parent": (["nano", "no/target.pth", "--to", "mae"], 5, "there is no folder no"),
    "wrong dialect of the origin": (
        ["nano", "target", "--to", "timm", "--dialect", "tim"], 2, '"timm"'
    ),
    "wrong preset": (["nano", "target", "--to", "timm", "--preset", "vit-b61"], 2, '"vit-b16"'),
}  # fmt: skip


def test_a_mistake_in_the_words_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "there.pth").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").touch()
    code = (
        "import contextlib, io, json, sys\n"
        "from vitrail.cli import main\n"
        "found = {}\n"
        "for name, words in json.loads(sys.argv[1]).items():\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as told:\n"
        "        code = main(['convert', *words])\n"
        "    found[name] = [code, told.getvalue(), 'torch' in sys.modules]\n"
        "print(json.dumps(found))"
    )
    words = json.dumps({name: words for name, (words, *_) in MISTAKES.items()})

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, words],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip

    found = json.loads(done.stdout)
    for name, (_, exit_code, telling) in MISTAKES.items():
        code, message, torch_is_there = found[name]
        assert (code, torch_is_there) == (exit_code, False), name
        assert telling in message, name


def test_a_conversion_s_record_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin, target = save(bundle_of(), tmp_path / "bundle"), tmp_path / "target"

    code = main(["convert", str(origin), str(target), "--to", "timm", "--json"])

    record = json.loads(capsys.readouterr().out)
    assert code == 0
    assert record["to"] == "timm"
    assert record["digests"] == {
        "model.safetensors": hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    }
    assert record["source"]["found"] == "a vitrail bundle"


def test_the_command_compares_with_transformers_by_itself(tmp_path: Path) -> None:
    """In a new process: here, other tests have made the way for its import."""
    folder = vitrail.convert(bundle_of(), tmp_path / "folder", "huggingface")
    words = [str(folder), str(tmp_path / "target"), "--to", "timm"]

    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "vitrail.cli", "convert", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert re.search(r"^  compared +with transformers ", done.stdout, re.MULTILINE)
    assert "NOT the same" not in done.stdout
    assert re.search(r"^ +block 0 +\S+ +\S+ +\S+$", done.stdout, re.MULTILINE)


# The tables behind it.

WRITERS = [dialect for dialect in DIALECTS if dialect.holds(TINY)]


def test_each_dialect_that_is_written_says_what_it_holds() -> None:
    written = {for_export(dialect.name, TINY, {}).variant for dialect in DIALECTS}

    assert written <= {dialect.variant for dialect in WRITERS}
    assert set(FORMS) == {dialect.name for dialect in DIALECTS} | {"vitrail"}


def test_a_plain_vit_is_told_in_every_field_that_is_no_size() -> None:
    assert plain(TINY).keys() == {field.name for field in fields(ViTConfig)} - SIZES


@pytest.mark.parametrize("dialect", WRITERS, ids=lambda dialect: dialect.variant)
def test_what_a_dialect_holds_names_every_field_that_is_no_size(dialect: Dialect) -> None:
    """In the order of `plain`, which has positions before the rows of the prefix in them."""
    told = plain(TINY)

    held = [name for name in dialect.holds(TINY) if name in told]

    assert held == list(told)
