"""What a weight file is, found out from its tensors; what they cannot show, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle_clip
import oracle_google
import oracle_huggingface
import oracle_timm
import vitrail
from oracles import HEADS, NATIVE, WIDTH, libraries, read, write_pth
from test_dialects import ORACLES
from vitrail.errors import VitrailError, WeightsError

__all__ = ["libraries"]  # a fixture
pytestmark = pytest.mark.usefixtures("libraries")


@pytest.fixture
def weights() -> dict[str, Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**oracle_timm.SIZES)
    return oracle_timm.drawn(model, torch.float32).state_dict()


TOLD: dict[str, Any] = {"heads": HEADS, "image_size": NATIVE}


def load_error(values: Any, folder: Path, **told: Any) -> str:
    with pytest.raises(VitrailError) as error:
        vitrail.load(write_pth(values, folder), **told)
    return str(error.value)


@pytest.mark.parametrize("name", ORACLES)
def test_a_dialect_may_be_named_as_it_is_found(name: str, tmp_path: Path) -> None:
    """The right name changes nothing: that it is accepted says that it was found."""
    oracle = ORACLES[name](torch.float32)
    origin = oracle.write(tmp_path)

    found = vitrail.load(origin, **oracle.given)
    named = vitrail.load(origin, **{**oracle.given, "dialect": oracle.dialect})

    assert found.model.config == named.model.config


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("timm: ViT, DeiT, DINO", "torchvision"),
        ("timm: ViT, DeiT, DINO", "google"),
        ("timm: ViT, DeiT, DINO", "vit-pytorch"),
        ("huggingface: ViT", "timm"),
        ("huggingface: ViT", "clip"),
        ("torchvision: ViT", "huggingface"),
        ("google: vit_jax", "timm"),
        ("vit-pytorch: class token", "blog"),
        ("clip: all of CLIP", "dinov2"),
    ],
)
def test_a_dialect_that_the_file_is_not_in_is_an_error(
    name: str, dialect: str, tmp_path: Path
) -> None:
    oracle = ORACLES[name](torch.float32)
    origin = oracle.write(tmp_path)

    with pytest.raises(WeightsError, match=dialect):
        vitrail.load(origin, **{**oracle.given, "dialect": dialect})


def test_an_unknown_dialect_is_an_error_with_the_nearest_one(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    message = load_error(weights, tmp_path, **TOLD, dialect="hugingface")

    assert "hugingface" in message
    assert '"huggingface"' in message


@pytest.mark.parametrize(
    "name",
    [
        "timm: ViT, DeiT, DINO",
        "torchvision: ViT",
        "vit-pytorch: class token",
        "clip: exact GELU",
        "blog: linear",
        "original: MAE",
        "original: DINOv2",
        "original: DINOv3",
    ],
)
def test_heads_that_no_tensor_shows_are_asked_for_by_name(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name](torch.float32)
    told = {key: value for key, value in oracle.given.items() if key != "heads"}

    with pytest.raises(WeightsError, match=r"\bheads\b"):
        vitrail.load(oracle.write(tmp_path), **told)


def test_openai_s_heads_follow_from_their_width_of_64(tmp_path: Path) -> None:
    """OpenAI's code says heads = width // 64, so that its own archives need nothing told."""
    oracle = oracle_clip.build(torch.float32, form="archive", half=True, width=128, head_width=64)

    bundle = vitrail.load(oracle.write(tmp_path))

    assert bundle.model.config.heads == 2


def test_a_table_that_is_no_square_grid_asks_for_the_image_size(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    message = load_error(weights, tmp_path, heads=HEADS)

    assert "image_size" in message
    assert "36" in message


@pytest.mark.parametrize(
    ("field", "given", "shown"),
    [
        ("width", 48, WIDTH),
        ("depth", 3, 2),
        ("mlp_width", 96, 72),
        ("registers", 4, 0),
        ("pre_norm", True, False),
        ("qkv_bias", "none", "all"),
        ("class_token", False, True),
        ("head_width", 8, 4),
    ],
)
def test_a_given_value_that_contradicts_a_tensor_is_an_error_with_both(
    weights: dict[str, Tensor], tmp_path: Path, field: str, given: Any, shown: Any
) -> None:
    message = load_error(weights, tmp_path, **TOLD, **{field: given})

    assert field in message
    assert str(given) in message
    assert str(shown) in message


def test_heads_that_do_not_divide_the_rows_are_an_error_with_both(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    message = load_error(weights, tmp_path, heads=5, image_size=NATIVE)

    assert "5" in message
    assert "24" in message


def test_a_config_file_that_contradicts_a_tensor_is_an_error_with_both(tmp_path: Path) -> None:
    origin = oracle_huggingface.CASES["ViT"](torch.float32).write(tmp_path)
    config = origin / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 24', '"hidden_size": 48'))

    with pytest.raises(WeightsError, match=r"24[\s\S]*48|48[\s\S]*24"):
        vitrail.load(origin)


def test_an_unknown_field_is_an_error_with_the_nearest_one(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    message = load_error(weights, tmp_path, image_size=NATIVE, head=6)

    assert '"heads"' in message


def test_every_missing_tensor_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for name in ("norm.bias", "blocks.1.mlp.fc2.weight", "blocks.0.norm2.weight"):
        del weights[name]

    message = load_error(weights, tmp_path, **TOLD)

    for name in ("norm.bias", "blocks.1.mlp.fc2.weight", "blocks.0.norm2.weight"):
        assert name in message


def test_every_tensor_that_nothing_uses_is_named(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    weights |= {"blocks.1.adapter.weight": torch.ones(3), "neck.bias": torch.ones(4)}

    message = load_error(weights, tmp_path, **TOLD)

    assert "blocks.1.adapter.weight" in message
    assert "neck.bias" in message


def test_a_misshapen_tensor_is_named_with_both_shapes(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    weights["blocks.1.attn.proj.weight"] = torch.ones(24, 25)

    message = load_error(weights, tmp_path, **TOLD)

    assert "proj.weight" in message
    assert "25" in message


def test_a_block_that_is_missing_between_others_is_named(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """A gap must not make a shorter model."""
    moved = {key.replace("blocks.1.", "blocks.2."): tensor for key, tensor in weights.items()}

    message = load_error(moved, tmp_path, **TOLD)

    assert "blocks.1" in message or "blocks.2" in message


def swin() -> dict[str, Tensor]:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=32, patch_size=2, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4
    )
    return model.state_dict()


def beit() -> dict[str, Tensor]:
    from timm.models.beit import Beit

    sizes = {key: value for key, value in oracle_timm.SIZES.items() if key != "mlp_ratio"}
    return Beit(**sizes, use_rel_pos_bias=True).state_dict()


def hybrid() -> dict[str, Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    weights = VisionTransformer(**oracle_timm.SIZES).state_dict()
    stem = {
        "patch_embed.backbone.stem.conv.weight": torch.ones(8, 3, 7, 7),
        "patch_embed.backbone.stem.norm.weight": torch.ones(8),
        "patch_embed.proj.weight": torch.ones(24, 8, 1, 1),
    }
    return {**weights, **stem}


def post_norm() -> dict[str, Tensor]:
    layer = nn.TransformerEncoderLayer(24, 6, 72, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return {
        "cls_token": torch.ones(1, 1, 24),
        "pos_embed": torch.ones(1, 36, 24),
        "patch_embed.weight": torch.ones(24, 3, 8, 8),
        **{f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()},
    }


def hmlp() -> dict[str, Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    weights = VisionTransformer(**oracle_timm.SIZES).state_dict()
    stem = {key: weights.pop(key) for key in list(weights) if key.startswith("patch_embed.")}
    assert stem
    return {
        **weights,
        "patch_embed.proj.0.weight": torch.ones(6, 3, 4, 4),
        "patch_embed.proj.1.weight": torch.ones(6),
        "patch_embed.proj.3.weight": torch.ones(24, 6, 2, 2),
    }


REFUSED: dict[str, tuple[Any, str]] = {
    "Swin": (swin, "Swin"),
    "relative positions": (beit, "relative"),
    "hybrid": (hybrid, "hybrid"),
    "post-norm": (post_norm, r"norm"),
    "stem of convolutions": (hmlp, "stem|convolution|patch"),
    "ResNet": (lambda: {"conv1.weight": torch.ones(64, 3, 7, 7), "fc.bias": torch.ones(9)}, "ViT"),
    "nothing": (dict, "tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_vit_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, word = REFUSED[name]

    with pytest.raises(WeightsError, match=f"(?i){word}"):
        vitrail.load(write_pth(make(), tmp_path), **TOLD)


def test_google_s_hybrids_are_refused_by_name(tmp_path: Path) -> None:
    oracle = oracle_google.build(torch.float32)
    arrays = {key: tensor.numpy() for key, tensor in read(oracle.write(tmp_path)).items()}
    arrays |= {"conv_root/kernel": torch.ones(7, 7, 3, 64).numpy()}
    path = oracle_google.write(arrays, tmp_path)

    with pytest.raises(WeightsError, match=r"(?i)hybrid"):
        vitrail.load(path, image_size=NATIVE)


# Settings of a config file that change the numbers and that no plain ViT of ours has.
UNHEARD_OF: dict[str, tuple[str, dict[str, Any], str]] = {
    "another activation": ("ViT", {"hidden_act": "relu"}, "relu"),
    "another activation of the pooler": ("ViT, pooler", {"pooler_act": "relu"}, "pooler|relu"),
    "another gate": ("DINOv3, gated", {"hidden_act": "gelu"}, "gelu|gate"),
}


@pytest.mark.parametrize("name", UNHEARD_OF)
def test_a_setting_that_no_field_can_say_is_refused(name: str, tmp_path: Path) -> None:
    case, changes, word = UNHEARD_OF[name]
    origin = oracle_huggingface.CASES[case](torch.float32).write(tmp_path)
    config = json.loads((origin / "config.json").read_text())
    (origin / "config.json").write_text(json.dumps(config | changes))

    with pytest.raises(WeightsError, match=word):
        vitrail.load(origin)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"act_layer": "relu"}, "relu"),
        ({"global_pool": "max"}, "max"),
    ],
)
def test_a_setting_of_timm_that_no_field_can_say_is_refused(
    changes: dict[str, Any], word: str, tmp_path: Path
) -> None:
    origin = oracle_timm.folder("ViT", torch.float32).write(tmp_path)
    config = json.loads((origin / "config.json").read_text())
    config["model_args"] |= changes
    (origin / "config.json").write_text(json.dumps(config))

    with pytest.raises(WeightsError, match=word):
        vitrail.load(origin)


def test_a_preset_says_what_tensors_cannot_show(tmp_path: Path) -> None:
    """The preset's own sizes must be the file's, so that this one is of a real size."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(embed_dim=192, depth=12, num_heads=3)
    path = write_pth(model.state_dict(), tmp_path)

    assert vitrail.load(path, preset="deit-ti16").model.config.heads == 3
    with pytest.raises(WeightsError, match=r"depth|width"):
        vitrail.load(path, preset="vit-s16")


def test_classes_and_channels_that_are_asked_for_are_made(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write_pth(weights, tmp_path)

    grey = vitrail.load(path, **TOLD, classes=4, channels=1)
    features = vitrail.load(path, **TOLD, classes=0)

    assert grey.model(torch.randn(2, 1, *NATIVE)).shape == (2, 4)
    assert len(grey.labels) == 4
    assert features.model(torch.randn(2, 3, *NATIVE)).shape == (2, WIDTH)
