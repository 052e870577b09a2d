"""The certificate says what was found, and what the other library makes of the same file."""

import hashlib
import json
import logging
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import oracle_huggingface
import vitrail
from conftest import TINY
from oracles import DEPTH, NATIVE, Oracle, libraries, read
from test_dialects import ORACLES
from vitrail.weights.certificate import Certificate, certify
from vitrail.weights.convert import conversion
from vitrail.weights.loading import load_with_facts
from vitrail.weights.peers import Comparison, Difference

__all__ = ["libraries"]  # a fixture
pytestmark = pytest.mark.usefixtures("libraries")

# One or more of each dialect, and the library that knows it.
COMPARED = {
    "timm: ViT, DeiT, DINO": "timm",
    "timm: folder: ViT": "timm",
    "timm: DINOv3, gated": "timm",
    "timm: swiglu": "timm",
    "original: DeiT, distilled": "timm",
    "original: DeiT-III": "timm",
    "original: DINO": "timm",
    "original: MAE": "timm",
    "original: DINOv2, registers": "timm",
    "original: DINOv2, training file": "timm",
    "original: DINOv3": "timm",
    "google: vit_jax": "timm",
    "google: big_vision, scanned": "timm",
    "google: SigLIP": "timm",
    "clip: timm tower, SigLIP": "timm",
    "clip: all of CLIP": "open_clip",
    "clip: beside BERT": "open_clip",
    "clip: the image tower": "open_clip",
    "clip: training checkpoint": "open_clip",
    "clip: TorchScript archive": "open_clip",
    "huggingface: ViT": "transformers",
    "huggingface: DeiT, distilled": "transformers",
    "huggingface: MAE with decoder": "transformers",
    "huggingface: DINOv2, registers, SwiGLU": "transformers",
    "huggingface: DINOv3": "transformers",
    "huggingface: CLIP, whole": "transformers",
    "huggingface: SigLIP, classifier": "transformers",
    "torchvision: a layer before the head": "torchvision",
    "vit-pytorch: class token": "vit_pytorch",
    "vit-pytorch: mean": "vit_pytorch",
}
# transformers normalises CLIP's class token alone at the end, and not all tokens.
OTHER_TOKENS = ("huggingface: CLIP, whole",)


def certificate_of(origin: Path, oracle: Oracle, **more: Any) -> Certificate:
    given = {**oracle.given, **more}
    dialect = given.pop("dialect", None)
    return certify(str(origin), load_with_facts(origin, dialect, None, None, given))


def compared(certificate: Certificate) -> Comparison:
    assert certificate.comparison is not None, certificate.without
    return certificate.comparison


@pytest.mark.parametrize("name", COMPARED)
def test_the_other_library_gives_the_same_numbers_block_by_block(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name](torch.float32)

    certificate = certificate_of(oracle.write(tmp_path), oracle)

    comparison = compared(certificate)
    assert comparison.library.startswith(f"{COMPARED[name]} ")
    answer = "logits" if certificate.architecture["classes"] else "features"
    tokens = [] if name in OTHER_TOKENS else ["tokens"]
    blocks = [f"block {i}" for i in range(DEPTH)]
    assert [row.where for row in comparison.rows] == [*blocks, *tokens, answer]
    # Two orders of the same float32 sums.
    assert all(0 <= row.difference <= 1e-5 * row.largest for row in comparison.rows)
    assert json.loads(json.dumps(certificate.to_json()))["comparison"]["rows"][0]["largest"] > 0


@pytest.mark.parametrize(
    "name", ["torchvision: ViT", "huggingface: ViT", "vit-pytorch: class token", "original: DINOv2"]
)
def test_doubles_are_compared_as_doubles(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name](torch.float64)

    rows = compared(certificate_of(oracle.write(tmp_path), oracle)).rows

    assert all(row.share <= 1e-12 for row in rows)


@pytest.mark.parametrize("names", ["on disk", "in memory"])
@pytest.mark.parametrize("name", ["ViT", "DeiT, distilled", "MAE", "DINOv3, gated", "CLIP, whole"])
def test_hugging_face_s_weights_are_compared_without_their_config_file(
    name: str, names: str, tmp_path: Path
) -> None:
    oracle = oracle_huggingface.CASES[name](torch.float32)
    path = oracle.write(tmp_path) / "model.safetensors"
    if names == "in memory":
        path = oracle_huggingface.in_memory(model_of(oracle), tmp_path) / "pytorch_model.bin"
    (tmp_path / "config.json").unlink()
    heads = 2 if "DINOv3" in name else 6

    comparison = compared(certificate_of(path, oracle, heads=heads, image_size=oracle.size))

    assert comparison.how == "told this architecture"
    assert all(row.share <= 1e-5 for row in comparison.rows)


def test_images_have_the_rest_that_no_patch_reads(tmp_path: Path) -> None:
    settings = {**oracle_huggingface.EVEN, "image_size": 52}  # 6 patches of 8, and 4 pixels
    oracle = oracle_huggingface.build(
        "SiglipVisionModel", settings, oracle_huggingface.features, torch.float32
    )

    certificate = certificate_of(oracle.write(tmp_path), oracle)

    assert certificate.architecture["image_size"] == [48, 48]
    assert all(row.share <= 1e-5 for row in compared(certificate).rows)


def model_of(oracle: Oracle) -> Any:
    write: Any = oracle.write
    return write.args[0]


def test_verify_prints_what_was_found_and_who_said_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = ORACLES["original: DINOv2, training file"](torch.float32)
    path = oracle.write(tmp_path)

    bundle = vitrail.load(path, verify=True, **oracle.given)

    text = capsys.readouterr().out
    rows = dict(re.findall(r"^ +(\S.*?) {2,}(.*)$", text, re.MULTILINE))
    parameters = sum(p.numel() for p in bundle.model.parameters())
    assert text.splitlines()[0] == str(path)
    assert rows["found"] == "dinov2 (DINOv2), inside teacher."
    assert rows["sha256"] == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  weights.pth"
    assert rows["architecture"].startswith("width 24, depth 2, heads 6, patches of 8, images 40 x")
    assert "heads 6" in rows["given"]
    assert "norm_eps 1e-06" in rows["the dialect"]
    assert rows["keys"] == f"{len(read(path)['teacher']) - 2} read, 2 unused, 0 missing"
    assert re.search(
        r"1 \(the token of masked training\): teacher\.(backbone\.)?mask_token\n", text
    )
    assert "1 (heads of training): teacher.dino_head.mlp.0.weight" in text
    assert rows["parameters"] == f"{parameters:,}"
    assert rows["compared"].startswith("with timm ")
    for where in ("block 0", "block 1", "tokens", "features"):
        assert re.fullmatch(r"\S+ +\S+ +\S+", rows[where])


@pytest.mark.parametrize("name", ["huggingface: SigLIP, whole", "google: vit_jax of today"])
def test_no_line_is_longer_than_a_terminal(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name](torch.float32)

    text = certificate_of(oracle.write(tmp_path), oracle).text()

    lines = [line for line in text.splitlines()[1:] if not line.startswith("  sha256")]
    assert max(map(len, lines)) <= 110


def test_without_verify_nothing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = ORACLES["torchvision: ViT"](torch.float32)

    vitrail.load(oracle.write(tmp_path), **oracle.given)

    assert capsys.readouterr().out == ""


def test_each_part_of_sharded_weights_has_its_sha256(tmp_path: Path) -> None:
    oracle = ORACLES["huggingface: ViT"](torch.float32)
    folder = oracle_huggingface.shards(model_of(oracle), tmp_path)

    certificate = certificate_of(folder, oracle)

    parts = {path.name for path in folder.glob("*.safetensors*")}
    assert len(parts) > 2
    assert certificate.files == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in parts
    }
    assert compared(certificate).how == "which read the folder by itself"


def test_another_arithmetic_than_the_library_s_is_seen(tmp_path: Path) -> None:
    oracle = ORACLES["torchvision: ViT"](torch.float32)

    certificate = certificate_of(oracle.write(tmp_path), oracle, activation="quick_gelu")

    assert compared(certificate).rows[0].share > 1e-4
    assert "NOT the same: block 0 is the first apart" in certificate.text()


def test_what_is_not_a_number_is_not_the_same() -> None:
    row = Difference(where="block 0", difference=0.0, largest=1.0)
    comparison = Comparison(library="timm", how="", images=(2, 3, 8, 8), rows=(row,))

    broken = replace(comparison, rows=(row, replace(row, where="logits", difference=torch.nan)))

    assert ("", "the same, bit for bit") in comparison.text_rows()
    assert any("NOT the same: logits" in text for _, text in broken.text_rows())


def test_a_library_that_is_not_installed_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = ORACLES["vit-pytorch: class token"](torch.float32)
    monkeypatch.setitem(sys.modules, "vit_pytorch", None)

    certificate = certificate_of(oracle.write(tmp_path), oracle)

    assert certificate.comparison is None
    assert certificate.without == (
        "vit_pytorch is not installed: `pip install vit-pytorch` compares with it"
    )
    assert json.loads(json.dumps(certificate.to_json()))["comparison"] is None


def test_a_library_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = ORACLES["vit-pytorch: class token"](torch.float32)
    (tmp_path / "vit_pytorch.py").write_text("raise RuntimeError('made for another torch')")
    monkeypatch.delitem(sys.modules, "vit_pytorch")
    monkeypatch.syspath_prepend(tmp_path)

    text = certificate_of(oracle.write(tmp_path), oracle).text()

    assert "vit_pytorch cannot be imported: RuntimeError: made for another torch" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("google: vit_jax of today", "KeyError"),
        ("google: vit_jax, a layer before the head", "timm has no place for pre_logits"),
        ("google: big_vision, bfloat16", "TypeError"),
    ],
)
def test_a_form_that_the_library_does_not_read_is_said(
    name: str, said: str, tmp_path: Path
) -> None:
    oracle = ORACLES[name](torch.float32)

    without = certificate_of(oracle.write(tmp_path), oracle).without

    assert re.match(r"timm [\d.]+ does not read this file: ", without)
    assert said in without
    assert "\n" not in without


@pytest.mark.parametrize("name", ["huggingface: SigLIP, whole", "timm: folder: ViT"])
def test_a_config_file_that_asks_for_too_much_gets_no_memory(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name](torch.float32)
    path = oracle.write(tmp_path)
    config = json.loads((path / "config.json").read_text())
    if "timm" in name:
        config["model_args"]["num_classes"] = 10**9
    else:
        config["text_config"]["vocab_size"] = 10**9
    (path / "config.json").write_text(json.dumps(config))

    without = certificate_of(path, oracle).without

    assert re.search(r"config\.json asks for [\d,]{13,} parameters, and [\d,]+ are there", without)


def test_the_blog_post_s_model_is_in_no_package(tmp_path: Path) -> None:
    oracle = ORACLES["blog: linear"](torch.float32)

    certificate = certificate_of(oracle.write(tmp_path), oracle)

    assert certificate.without == "the blog post is in no package that could be asked"


def test_a_bundle_and_a_preset_are_certified_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = ORACLES["torchvision: ViT"](torch.float32)
    vitrail.convert(oracle.write(tmp_path), tmp_path / "bundle", "vitrail", **oracle.given)
    weights = (tmp_path / "bundle" / "model.safetensors").read_bytes()

    vitrail.load(tmp_path / "bundle", verify=True)
    vitrail.load("vit-ti16", verify=True, depth=1)

    bundle, preset = capsys.readouterr().out.split("vit-ti16\n")
    assert f"{hashlib.sha256(weights).hexdigest()}  model.safetensors" in bundle
    assert "our own names and our own arithmetic" in bundle
    assert "the preset vit-ti16, random weights" in preset


@pytest.mark.parametrize(
    "name", ["huggingface: MAE with decoder", "original: DINOv3", "clip: all of CLIP"]
)
def test_other_libraries_leave_no_trace(
    name: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oracle = ORACLES[name](torch.float32)
    path = oracle.write(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = torch.get_rng_state(), logging.root.manager.disable, torch.is_grad_enabled()
    capfd.readouterr()

    certificate = certificate_of(path, oracle)

    after = torch.get_rng_state(), logging.root.manager.disable, torch.is_grad_enabled()
    assert compared(certificate)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert capfd.readouterr().out == ""


def refuse(*address: Any) -> None:
    raise AssertionError(f"a connection to {address}")


def test_a_conversion_s_record_has_both_ends(tmp_path: Path) -> None:
    oracle = ORACLES["timm: ViT, DeiT, DINO"](torch.float32)
    path, target = oracle.write(tmp_path), tmp_path / "export"

    record = conversion(path, target, "huggingface", oracle.given, certified=True)

    source, written = record.text().split("\n\n")
    assert source.splitlines()[0] == str(path)
    assert "compared" in source
    assert written.splitlines()[0] == str(target)
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    assert f"{digest}  model.safetensors" in written
    assert json.loads(json.dumps(record.to_json()))["source"]["parameters"] > 0
    again = certify(str(target), load_with_facts(target, None, None, None, {}))
    comparison = compared(again)
    assert comparison.library.startswith("transformers ")
    assert all(row.share <= 1e-5 for row in comparison.rows)


@pytest.mark.slow
def test_timm_is_imported_where_torchvision_s_compiled_part_does_not_load(tmp_path: Path) -> None:
    oracle = ORACLES["timm: ViT, DeiT, DINO"](torch.float32)
    path = oracle.write(tmp_path)
    code = (
        "import vitrail\n"
        f"vitrail.load({str(path)!r}, heads={TINY.heads}, image_size={NATIVE}, verify=True)"
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )

    assert "compared              with timm" in done.stdout
