import re
from typing import Any

import pytest

from vitrail.errors import ConfigError, VitrailError
from vitrail.model.config import DropRates, PositionResize, ViTConfig


def test_the_default_is_vit_b16() -> None:
    config = ViTConfig()

    assert (config.width, config.depth, config.heads, config.patch_size) == (768, 12, 12, 16)
    assert (config.head_width, config.mlp_width) == (64, 3072)
    assert (config.grid, config.prefix, config.features) == ((14, 14), 1, 768)


def test_the_prefix_is_class_distillation_and_registers() -> None:
    config = ViTConfig(distillation_token=True, registers=4)

    assert config.prefix == 6


def test_class_token_beside_the_mean_doubles_the_features() -> None:
    assert ViTConfig(pooling="cls+mean").features == 2 * 768


def test_replace_lets_head_and_mlp_width_follow() -> None:
    config = ViTConfig().replace(width=192, heads=6)

    assert (config.head_width, config.mlp_width) == (32, 768)


def test_replace_keeps_a_head_or_mlp_width_that_never_followed() -> None:
    config = ViTConfig(head_width=80, mlp_width=1000).replace(width=192, heads=3)

    assert (config.head_width, config.mlp_width) == (80, 1000)


def test_replace_takes_a_head_or_mlp_width_that_is_given() -> None:
    config = ViTConfig().replace(width=192, heads=3, head_width=8, mlp_width=100)

    assert (config.head_width, config.mlp_width) == (8, 100)


def test_json_holds_plain_values_only() -> None:
    values = ViTConfig(image_size=(224, 160)).to_json()

    assert values["image_size"] == [224, 160]
    assert values["position_resize"] == {
        "mode": "bicubic",
        "antialias": True,
        "align_corners": False,
        "offset": 0.0,
    }


def test_json_may_leave_out_what_is_default() -> None:
    config = ViTConfig.from_json({"width": 192, "heads": 3, "position_resize": {"offset": 0.1}})

    expected = ViTConfig(width=192, heads=3, position_resize=PositionResize(offset=0.1))
    assert config == expected


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"width": 100}, ["width 100", "12 heads", "96 and 108"]),
        ({"width": 5}, ["width 5", "12 heads", "widths that do: 12"]),
        ({"width": 0}, ["width is 0", "1 or more"]),
        ({"heads": 0}, ["heads is 0", "1 or more"]),
        ({"depth": -1}, ["depth is -1", "0 or more"]),
        ({"norm_eps": 0.0}, ["norm_eps is 0.0", "above 0"]),
        ({"layer_scale": -1.0}, ["layer_scale is -1.0", "above 0"]),
        ({"image_size": (224, 230)}, ["224 x 230", "patch size 16", "230", "224 and 240"]),
        ({"image_size": (9, 224)}, ["9 x 224", "patch size 16", "sizes that it does: 16"]),
        ({"image_size": 224}, ["image_size is 224", "2 whole numbers"]),
        ({"image_size": (224, 224.0)}, ["image_size is (224, 224.0)", "2 whole numbers"]),
        ({"width": 768.0}, ["width is 768.0", "whole number"]),
        ({"width": True}, ["width is True", "whole number"]),
        ({"norm_eps": "1e-6"}, ["norm_eps is '1e-6'", "a number"]),
        ({"qk_norm": 1}, ["qk_norm is 1", "true or false"]),
        ({"mlp": "swigul"}, ["mlp is 'swigul'", "plain, swiglu", 'Did you mean "swiglu"?']),
        ({"pooling": "max"}, ["pooling is 'max'", "cls, mean, mean_all, map, cls+mean"]),
        ({"class_token": False}, ['pooling "cls"', "class_token = true", '"mean"']),
        (
            {"class_token": False, "pooling": "cls+mean"},
            ['pooling "cls+mean"', "class_token = true"],
        ),
        (
            {"class_token": False, "pooling": "mean"},
            ["prefix_positions is 1", "set prefix_positions to 0"],
        ),
        ({"distillation_token": True, "pooling": "mean"}, ["distillation", '"cls"', '"mean"']),
        (
            {"mlp": "swiglu", "activation": "quick_gelu"},
            ['"swiglu" gates with "silu"', 'not "quick_gelu"', 'mlp = "plain"'],
        ),
        ({"prefix_positions": 2}, ["prefix_positions is 2", "set prefix_positions to 1"]),
        (
            {"positions": "sincos", "width": 90, "heads": 3},
            ["sincos", "width that 4 divides", "90", "88 and 92"],
        ),
        (
            {"positions": "rope", "width": 90, "heads": 9},
            ["rope", "head_width that 4 divides", "10", "8 and 12"],
        ),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_told_with_what_can(
    fields: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        ViTConfig(**fields)

    for words in told:
        assert words in str(raised.value)


def test_a_head_width_of_its_own_frees_the_width_from_the_heads() -> None:
    assert ViTConfig(width=100, head_width=64).heads == 12


def test_swiglu_brings_its_own_activation() -> None:
    assert ViTConfig(mlp="swiglu").activation == "silu"


@pytest.mark.parametrize("read", [ViTConfig().replace, lambda **f: ViTConfig.from_json(f)])
def test_an_unknown_field_is_answered_with_the_nearest(read: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape('no "widht". Did you mean "width"?')):
        read(widht=192)


def test_an_unknown_field_of_position_resize_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=re.escape('Did you mean "antialias"?')):
        ViTConfig.from_json({"position_resize": {"antialiased": True}})


def test_a_table_cannot_be_resized_with_both_antialias_and_aligned_corners() -> None:
    with pytest.raises(ConfigError, match="both antialias and align_corners"):
        PositionResize(align_corners=True)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_drop_rate_is_a_share_below_one(rate: float) -> None:
    with pytest.raises(ConfigError, match=f"residual is {rate}; it should be from 0 to below 1"):
        DropRates(residual=rate)


def test_a_config_error_is_ours_and_exits_with_2() -> None:
    assert issubclass(ConfigError, VitrailError)
    assert ConfigError.exit_code == 2
