"""What is given, or said beside the weights, is used as it was meant, or refused by its name."""

import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vitrail
from conftest import TINY, randomize
from oracles import NATIVE, SQUARE, write_pth
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, WeightsError
from vitrail.model.config import ViTConfig
from vitrail.model.presets import preset
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.origin import parse

TOLD: dict[str, Any] = {"heads": TINY.heads, "image_size": TINY.image_size}
# What CLIP's tower is, and DINOv3.
CLIP = TINY.replace(
    pre_norm=True, patch_bias=False, head_bias=False, norm_eps=1e-5, activation="quick_gelu"
)
DINO3 = TINY.replace(
    positions="rope", heads=3, classes=0, registers=2, qkv_bias="no_key", layer_scale=1e-5,
    prefix_positions=0, norm_eps=1e-5,
)  # fmt: skip


def bundle_of(config: ViTConfig = TINY) -> Bundle:
    return Bundle(
        model=randomize(ViT(config)).eval(),
        preprocess=Preprocess(size=config.image_size),
        labels=tuple("abcdefghi"[: config.classes]),
    )


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Give a plain ViT in timm's names, which are ours."""
    return randomize(ViT(TINY)).state_dict()


def folder_of(
    weights: dict[str, Tensor], folder: Path, config: Any, name: str = "config.json"
) -> Path:
    """Write weights with a library's config file beside them."""
    file = "open_clip_model" if name == "open_clip_config.json" else "model"
    save_file(
        {key: tensor.clone() for key, tensor in weights.items()}, folder / f"{file}.safetensors"
    )
    (folder / name).write_text(json.dumps(config))
    return folder


def edited(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def refused(origin: Path, **told: Any) -> str:
    with pytest.raises(WeightsError) as error:
        vitrail.load(origin, **told)
    return str(error.value)


# What the caller gives.


@pytest.fixture(params=["file", "bundle", "preset"])
def origin(request: pytest.FixtureRequest, weights: dict[str, Tensor], tmp_path: Path) -> Any:
    """Give one origin of each kind."""
    if request.param == "file":
        return write_pth(weights, tmp_path)
    return save(bundle_of(), tmp_path / "bundle") if request.param == "bundle" else "nano"


@pytest.mark.parametrize("size", [48, "48", ("8", "8")])
def test_an_image_size_that_is_no_pair_of_whole_numbers_is_refused(origin: Any, size: Any) -> None:
    with pytest.raises(ConfigError, match=r"image_size is .* 2 whole numbers"):
        vitrail.load(origin, **{**TOLD, "image_size": size})


def test_a_keyword_with_a_typo_is_refused_with_the_nearest(origin: Any) -> None:
    with pytest.raises(ConfigError, match=r'"image_sise".*"image_size"'):
        vitrail.load(origin, image_sise=NATIVE)


def test_layer_scale_that_the_file_has_not_is_refused(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    message = refused(write_pth(weights, tmp_path), **TOLD, layer_scale=1e-5)

    assert "layer_scale = None, you gave 1e-05" in message


def test_a_preset_of_another_width_is_refused_by_its_width(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    message = refused(write_pth(weights, tmp_path), preset="vit-s16", image_size=NATIVE)

    assert "width = 24, preset vit-s16 says 384" in message


# What a config file says.

TIMM: dict[str, Any] = {
    "architecture": "test_vit",
    "model_args": {"img_size": list(NATIVE), "num_heads": TINY.heads},
    "pretrained_cfg": {"input_size": [3, *NATIVE], "mean": [0.1, 0.2, 0.3], "crop_pct": 0.9},
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pretrained_cfg", [1]),
        ("pretrained_cfg.crop_pct", 0),
        ("pretrained_cfg.crop_pct", None),
        ("pretrained_cfg.mean", "x"),
        ("pretrained_cfg.input_size", 3),
        ("model_args", [1]),
    ],
)
def test_a_config_file_of_timm_that_timm_never_writes_is_refused(
    weights: dict[str, Tensor], tmp_path: Path, part: str, value: Any
) -> None:
    config = json.loads(json.dumps(TIMM))
    section, _, key = part.rpartition(".")
    (config[section] if section else config)[key] = value

    assert "config.json" in refused(folder_of(weights, tmp_path, config))


@pytest.mark.parametrize("changes", [{"width": "x"}, {"head_width": 0}, None])
def test_a_config_file_of_open_clip_that_it_never_writes_is_refused(
    tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    vision = {"image_size": list(NATIVE), "width": 24, "head_width": 4, **(changes or {})}
    config = {"model_cfg": [] if changes is None else {"vision_cfg": vision}}
    vitrail.convert(bundle_of(CLIP), tmp_path / "clip.pth", "clip")
    weights = torch.load(tmp_path / "clip.pth")

    message = refused(folder_of(weights, tmp_path, config, "open_clip_config.json"))

    assert "open_clip_config.json" in message


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_rope_224",
        "vit_base_patch16_rpn_224",
        "eva02_tiny_patch14_224",
        "vit_relpos_small_patch16_224",
    ],
)
def test_an_architecture_of_timm_s_that_is_no_plain_vit_is_refused_whatever_its_tensors(
    weights: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    folder = folder_of(weights, tmp_path, {**TIMM, "architecture": name})

    assert f'"{name}" is no plain ViT' in refused(folder)


def test_an_argument_for_timm_that_nobody_here_knows_is_refused_by_name(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    args = {**TIMM["model_args"], "scale_attn_norm": True}

    message = refused(folder_of(weights, tmp_path, {**TIMM, "model_args": args}))

    assert "scale_attn_norm" in message


def test_a_name_of_timm_s_that_goes_with_another_width_is_refused(tmp_path: Path) -> None:
    weights = ViT(TINY.replace(width=48)).state_dict()

    message = refused(folder_of(weights, tmp_path, {"architecture": "vit_base_patch16_224"}))

    assert "width = 48" in message
    assert "768" in message


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("width", {"hidden_size": 48}),
        ("depth", {"num_hidden_layers": 3}),
        ("mlp_width", {"intermediate_size": 96}),
        ("channels", {"num_channels": 1}),
        ("image_size", {"image_size": 64}),
    ],
)
def test_hugging_face_s_config_file_is_refused_where_tensors_show_another_size(
    tmp_path: Path, field: str, changes: dict[str, Any]
) -> None:
    folder = vitrail.convert(bundle_of(TINY.replace(image_size=SQUARE)), tmp_path, "huggingface")

    message = refused(edited(folder, changes))

    assert f"the tensors show {field} = " in message
    assert str(next(iter(changes.values()))) in message


def test_an_image_size_that_an_oblong_table_of_positions_has_not_is_refused(tmp_path: Path) -> None:
    folder = vitrail.convert(bundle_of(), tmp_path, "huggingface")

    message = refused(edited(folder, {"image_size": 64}))

    assert "image_size: the table of positions has 36 rows" in message


def test_class_names_with_a_gap_are_not_renumbered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = vitrail.convert(bundle_of(), tmp_path, "huggingface")
    names = {str(i): name for i, name in zip([*range(8), 9], "abcdefghi", strict=True)}

    with caplog.at_level(logging.WARNING, "vitrail"):
        bundle = vitrail.load(edited(folder, {"id2label": names}))

    assert bundle.labels == tuple(f"class {i}" for i in range(TINY.classes))
    assert "gaps: not used" in caplog.text


def test_open_clip_s_config_file_speaks_for_a_tower_of_timm_s(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    tower = {f"visual.trunk.{name}": tensor for name, tensor in weights.items()}
    config = {
        "model_cfg": {"vision_cfg": {"timm_model_name": "test_vit", "image_size": list(NATIVE)}},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }

    bundle = vitrail.load(folder_of(tower, tmp_path, config, "open_clip_config.json"))

    assert (bundle.model.config.heads, bundle.model.config.image_size) == (2, NATIVE)
    assert bundle.preprocess.mean == (0.1, 0.2, 0.3)
    assert bundle.preprocess.std == (0.4, 0.5, 0.6)


def test_a_bundle_that_claims_countless_blocks_is_refused_before_they_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(bundle_of(), tmp_path / "bundle")
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    edited(folder, {"architecture": architecture | {"depth": 10**9}})
    build = ViT.__init__

    def few(self: ViT, config: ViTConfig, *more: Any) -> None:
        assert config.depth <= TINY.depth + 1
        build(self, config, *more)

    monkeypatch.setattr(ViT, "__init__", few)

    assert "blocks.2.norm1.weight" in refused(folder)


# What nobody says.


def of_size(name: str) -> dict[str, Tensor]:
    """Give weights of a preset's sizes, all of them zero."""
    with torch.device("meta"):
        blank = ViT(preset(name)).state_dict()
    return {key: torch.zeros(tensor.shape) for key, tensor in blank.items()}


def test_a_preset_says_how_its_family_sees_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_pth(of_size("deit-ti16"), tmp_path)

    preprocess = vitrail.load(path, preset="deit-ti16").preprocess

    assert preprocess.mean == (0.485, 0.456, 0.406)
    assert preprocess.std == (0.229, 0.224, 0.225)
    assert preprocess.crop == 0.9
    assert "are taken" not in caplog.text


def test_that_nobody_says_how_images_are_normalised_is_told(
    weights: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preprocess = vitrail.load(write_pth(weights, tmp_path), **TOLD).preprocess

    assert preprocess.mean == preprocess.std == (0.5, 0.5, 0.5)
    assert "mean and std of .5 are taken" in caplog.text


@pytest.mark.parametrize("openai", [False, True])
def test_that_nobody_says_which_gelu_clip_has_is_told_but_for_openai_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, openai: bool
) -> None:
    vitrail.convert(bundle_of(CLIP), tmp_path / "clip.pth", "clip")
    weights = torch.load(tmp_path / "clip.pth")
    if openai:  # in whose archives these stand beside the weights
        names = ("input_resolution", "context_length", "vocab_size")
        weights |= dict.fromkeys(names, torch.tensor(40))
    caplog.clear()

    model = vitrail.load(write_pth(weights, tmp_path), **TOLD).model

    assert model.config.activation == "quick_gelu"
    assert ("quick_gelu is taken" in caplog.text) is not openai


@pytest.mark.parametrize(
    ("width", "side", "crop", "interpolation"),
    [
        (1024, 224, 224 / 242, "bilinear"),  # ViT-L/16, version 1
        (24, 224, 224 / 256, "bilinear"),
        (24, 384, 1.0, "bicubic"),  # SWAG
    ],
)
def test_torchvision_s_files_are_seen_as_its_weights_enums_say(
    tmp_path: Path, width: int, side: int, crop: float, interpolation: str
) -> None:
    config = ViTConfig(
        image_size=(side, side), width=width, depth=1, heads=2, mlp_width=8, classes=3
    )
    path = vitrail.convert(bundle_of(config), tmp_path / "weights.pth", "torchvision")

    preprocess = vitrail.load(path, heads=2).preprocess

    assert math.isclose(preprocess.crop, crop)
    assert preprocess.interpolation == interpolation


# What is in the file.


def test_of_a_block_that_is_missing_between_others_all_is_named(tmp_path: Path) -> None:
    whole = ViT(TINY.replace(depth=3)).state_dict()
    weights = {name: t for name, t in whole.items() if not name.startswith("blocks.1.")}

    message = refused(write_pth(weights, tmp_path), **TOLD)

    assert re.search(r"missing +12 +blocks\.1\.norm1\.weight", message)
    assert "unexpected" not in message


def test_names_under_one_prefix_that_nobody_knows_are_read(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write_pth({f"my_vit.{name}": tensor for name, tensor in weights.items()}, tmp_path)

    found = vitrail.load(path, **TOLD).model.state_dict()

    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_of_averaged_weights_and_raw_ones_the_averaged_are_taken(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    averaged = {name: tensor + 1 for name, tensor in weights.items()}
    path = write_pth({"model": weights, "model_ema": {"module": averaged}}, tmp_path)

    found = vitrail.load(path, **TOLD).model.state_dict()

    assert all(torch.equal(found[name], averaged[name]) for name in averaged)


def test_a_mask_of_dinov3_s_biases_that_is_another_is_refused(tmp_path: Path) -> None:
    path = vitrail.convert(bundle_of(DINO3), tmp_path / "weights.pth", "dinov3")
    weights = torch.load(path)
    told = {"heads": DINO3.heads, "image_size": NATIVE}
    vitrail.load(path, **told)

    weights["blocks.1.attn.qkv.bias_mask"][:] = 1

    assert "bias_mask is not 1, 0, 1" in refused(write_pth(weights, tmp_path), **told)


def test_a_folder_with_the_name_of_a_preset_that_holds_a_run_is_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    last = save(bundle_of(), "nano/last")

    found = vitrail.load("nano").model.state_dict()

    assert parse("nano").path == Path("nano/last")
    assert torch.equal(found["head.weight"], load_file(last / "model.safetensors")["head.weight"])


@pytest.fixture
def doubles() -> Iterator[None]:
    """Let torch make doubles where nobody says what."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("classes", [None, 4])
def test_loading_leaves_torch_as_it_was(origin: Any, classes: int | None, doubles: None) -> None:
    told = {} if origin == "nano" else TOLD
    state = torch.get_rng_state()

    vitrail.load(origin, **told, classes=classes)  # 4 classes: a head is drawn

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_device() == torch.device("cpu")
