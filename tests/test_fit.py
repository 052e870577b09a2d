from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from conftest import TINY, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.errors import WeightsError
from vitrail.model.config import PositionResize, ViTConfig
from vitrail.model.vit import ViT, patches, seeded
from vitrail.weights.fit import adapt_channels, fit, preprocess_for, resize_patch, resize_table

KERNEL = "patch_embed.proj.weight"
RULES = {
    "timm": PositionResize(),
    "DeiT": PositionResize(antialias=False),
    "DINO": PositionResize(antialias=False, offset=0.1),
    "JAX": PositionResize(mode="bilinear", antialias=False, align_corners=True),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT, distilled": {"distillation_token": True, "prefix_positions": 2},
    "DINOv2 with registers": {"registers": 3, "prefix_positions": 0, "layer_scale": 1e-5},
    "registers with positions": {"registers": 3, "prefix_positions": 4},
    "DINOv2's classifier": {"pooling": "cls+mean"},
    "SigLIP": {"pooling": "map", "class_token": False, "prefix_positions": 0},
    "AugReg 21k": {"pre_logits": True},
    "rope": {"positions": "rope"},
    "sincos": {"positions": "sincos"},
    "no positions": {"positions": "none"},
}
CHANGES: dict[str, tuple[Any, ...]] = {
    "image_size": ((40, 56), (56, 40), (48, 24)),
    "patch_size": (8, 4),
    "channels": (3, 1, 5),
    "classes": (9, 0, 13),
}


def weights(config: ViTConfig) -> dict[str, Tensor]:
    return randomize(ViT(config)).state_dict()


def fitted(tensors: dict[str, Tensor], stored: ViTConfig, asked: ViTConfig) -> ViT:
    """Build the model that was asked for; nothing may be missing, left over or misshapen."""
    model = ViT(asked).to(tensors[KERNEL].dtype)
    model.load_state_dict(fit(tensors, stored, asked)[0])
    return model.eval()


def resized(images: Tensor, size: int) -> Tensor:
    """Resize square images, ... s s, to ... size size."""
    flat = images.reshape(-1, 1, *images.shape[-2:])
    flat = F.interpolate(flat, size=(size, size), mode="bicubic", antialias=True)
    return flat.reshape(*images.shape[:-2], size, size)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("size", [1, 4, 7, 9, 14, 16, 24])
@pytest.mark.parametrize("patch", [8, 14, 16])
def test_a_patch_kernel_is_resized_as_in_timm(timm: ModuleType, patch: int, size: int) -> None:
    kernel = torch.randn(5, 3, patch, patch)

    found = resize_patch(kernel, size)

    # timm takes the pseudo-inverse of the whole matrix, in float32.
    assert relative(found, timm.layers.resample_patch_embed(kernel, [size, size])) < 1e-5
    assert found.dtype == torch.float32 and found.is_contiguous()


@pytest.mark.parametrize(("patch", "size"), [(8, 5), (5, 8), (7, 6), (4, 12), (12, 4)])
def test_a_patch_kernel_is_multiplied_by_the_pseudo_inverse(patch: int, size: int) -> None:
    kernel = torch.randn(4, 3, patch, patch, dtype=torch.float64)
    basis = torch.eye(patch**2, dtype=torch.float64).unflatten(-1, (patch, patch))
    matrix = resized(basis, size).flatten(1).T  # size size, p p: the resize of a whole patch

    found = resize_patch(kernel, size)

    dense = kernel.flatten(2) @ torch.linalg.pinv(matrix)
    torch.testing.assert_close(found.flatten(2), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("patch", "size"), [(4, 5), (4, 8), (7, 16), (14, 16), (16, 17)])
def test_a_larger_kernel_gives_a_larger_patch_the_same_token(patch: int, size: int) -> None:
    kernel = torch.randn(6, 3, patch, patch, dtype=torch.float64)
    images = torch.randn(5, 3, patch, patch, dtype=torch.float64)

    found = F.conv2d(resized(images, size), resize_patch(kernel, size))

    torch.testing.assert_close(found, F.conv2d(images, kernel), rtol=0, atol=1e-10)


def test_a_smaller_kernel_gives_a_smaller_patch_the_nearest_token() -> None:
    kernel = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    basis = torch.eye(64, dtype=torch.float64).unflatten(-1, (8, 8))
    matrix = resized(basis, 5).flatten(1)  # p p, size size

    small = resize_patch(kernel, 5).flatten(2)

    # Least squares: what is left of the kernel lies across all that a smaller kernel can read.
    left = kernel.flatten(2) - small @ matrix.T
    torch.testing.assert_close(left @ matrix, torch.zeros_like(small), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 9])
@pytest.mark.parametrize("stored", [1, 3, 4])
def test_channels_are_adapted_as_in_timm(timm: ModuleType, stored: int, channels: int) -> None:
    kernel = torch.randn(5, stored, 4, 4)

    found = adapt_channels(kernel, channels)

    assert torch.equal(found, timm.models.adapt_input_conv(channels, kernel, base_chans=stored))
    assert found.is_contiguous()


@pytest.mark.parametrize(("stored", "channels"), [(3, 1), (3, 6), (3, 9), (1, 4), (2, 4)])
def test_equal_channels_give_the_tokens_that_they_gave(stored: int, channels: int) -> None:
    kernel = torch.randn(24, stored, 8, 8, dtype=torch.float64)
    grey = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    found = F.conv2d(grey.expand(-1, channels, -1, -1), adapt_channels(kernel, channels))

    before = F.conv2d(grey.expand(-1, stored, -1, -1), kernel)
    torch.testing.assert_close(found, before, rtol=0, atol=1e-12)


def test_a_kernel_that_is_repeated_more_often_weighs_more() -> None:
    kernel = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)

    assert adapt_channels(kernel, 4).flatten().tolist() == [0.75, 7.5, 75.0, 0.75]


@pytest.mark.parametrize("prefix", [0, 1, 4])
@pytest.mark.parametrize("target", [(8, 3), (7, 5), (10, 14)], ids=str)
def test_a_table_is_resized_as_in_timm(
    timm: ModuleType, target: tuple[int, int], prefix: int
) -> None:
    table = torch.randn(1, prefix + 5 * 7, 24)

    found = resize_table(table, prefix, (5, 7), target, PositionResize())

    by_timm = timm.layers.resample_abs_pos_embed(table, list(target), [5, 7], prefix)
    assert torch.equal(found, by_timm)
    assert torch.equal(found[:, :prefix], table[:, :prefix])
    assert found.is_contiguous()


def test_what_keeps_its_size_is_the_same_tensor() -> None:
    kernel, table = torch.randn(5, 3, 4, 4), torch.randn(1, 36, 24)

    assert resize_patch(kernel, 4) is kernel
    assert adapt_channels(kernel, 3) is kernel
    assert resize_table(table, 1, (5, 7), (5, 7), PositionResize(offset=0.1)) is table


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_precision_and_are_resized_in_a_wide_one(dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in weights(TINY).items()}
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    asked = TINY.replace(image_size=(36, 20), patch_size=4, channels=2)

    found, _ = fit(tensors, TINY, asked)

    exact, _ = fit(wide, TINY, asked)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    rounding = 1.01 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
    for name in (KERNEL, "pos_embed"):
        torch.testing.assert_close(found[name].double(), exact[name], rtol=rounding, atol=1e-5)


@pytest.mark.parametrize(
    ("stored", "head"),
    [
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_new_head_is_as_wide_as_the_rest(stored: torch.dtype, head: torch.dtype) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in weights(TINY).items()}

    found, _ = fit(tensors, TINY, TINY.replace(classes=4))

    assert found["head.weight"].dtype == found["head.bias"].dtype == head


def test_what_is_fitted_has_no_history_of_gradients() -> None:
    parameters: dict[str, Tensor] = dict(ViT(TINY).named_parameters())

    found, _ = fit(parameters, TINY, TINY.replace(image_size=(48, 24), channels=1))

    assert not found[KERNEL].requires_grad and not found["pos_embed"].requires_grad


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_every_combination_fits(variant: dict[str, Any]) -> None:
    stored = TINY.replace(**variant)
    tensors = weights(stored)

    for values in product(*CHANGES.values()):
        changes = dict(zip(CHANGES, values, strict=True))
        asked = stored.replace(**changes)
        model = fitted(tensors, stored, asked)
        logits = model(torch.randn(1, asked.channels, *asked.image_size))
        assert logits.shape == (1, asked.classes or asked.features), changes


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_what_does_not_change_is_the_same_tensor(variant: dict[str, Any]) -> None:
    stored = TINY.replace(**variant)
    tensors = weights(stored)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    asked = stored.replace(image_size=(72, 16), channels=1, classes=2)
    fitting = {name for name in tensors if name.startswith("head")} | {KERNEL}
    fitting |= {"pos_embed"} & tensors.keys()

    found, _ = fit(tensors, stored, asked)

    assert {name for name in found if found[name] is not tensors[name]} == fitting
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_where_nothing_that_has_weights_changes_nothing_is_done() -> None:
    tensors = weights(TINY)
    asked = TINY.replace(activation="quick_gelu", heads=3, head_width=8, norm_eps=1e-5)

    found, done = fit(tensors, TINY, asked.replace(position_resize=RULES["DINO"]))

    assert found is not tensors and done == []
    assert found.keys() == tensors.keys()
    assert all(found[name] is tensors[name] for name in tensors)


def test_each_thing_that_is_done_is_told() -> None:
    asked = TINY.replace(image_size=(36, 20), patch_size=4, channels=1, classes=13)

    _, done = fit(weights(TINY), TINY, asked, seed=3)

    assert done == [
        "patches of 8 -> 4 pixels (pseudo-inverse of bicubic, antialias)",
        "channels 3 -> 1 (sum of the kernels)",
        "positions 5 x 7 -> 9 x 5 (bicubic, antialias)",
        "head 9 -> 13 classes (random, seed 3)",
    ]
    rule = TINY.replace(position_resize=RULES["JAX"], image_size=(48, 24), channels=4, classes=0)
    assert fit(weights(TINY), TINY, rule)[1] == [
        "channels 3 -> 4 (kernels in turn)",
        "positions 5 x 7 -> 6 x 3 (bilinear, align_corners)",
        "head of 9 classes left out",
    ]
    rule = TINY.replace(position_resize=RULES["DINO"], image_size=(48, 24))
    assert fit(weights(TINY), TINY, rule)[1] == ["positions 5 x 7 -> 6 x 3 (bicubic, offset 0.1)"]


@pytest.mark.parametrize("size", [(56, 40), (48, 24), (72, 80)], ids=str)  # first: as many patches
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_another_image_size_gives_the_logits_of_running_at_that_size(
    variant: dict[str, Any], rule: PositionResize, size: tuple[int, int]
) -> None:
    stored = TINY.replace(**variant, position_resize=rule)
    asked = stored.replace(image_size=size)
    model = randomize(ViT(stored)).eval()
    images = torch.randn(2, 3, *size)

    found = fitted(model.state_dict(), stored, asked)(images)

    torch.testing.assert_close(found, model(images), rtol=0, atol=1e-6)


def test_positions_are_resized_by_the_rule_that_is_asked_for() -> None:
    tensors, asked = weights(TINY), TINY.replace(image_size=(48, 24), position_resize=RULES["DINO"])

    found, _ = fit(tensors, TINY, asked)

    by_hand = resize_table(tensors["pos_embed"], 1, (5, 7), (6, 3), RULES["DINO"])
    assert torch.equal(found["pos_embed"], by_hand)


def test_larger_patches_of_a_larger_image_give_the_same_logits() -> None:
    asked = TINY.replace(image_size=(60, 84), patch_size=12)  # the same grid
    model = randomize(ViT(TINY)).double().eval()
    images = torch.randn(2, 3, *TINY.image_size, dtype=torch.float64)
    cut = rearrange(patches(images, 8), "b n (s1 s2 c) -> b n c s1 s2", s1=8, s2=8)
    larger = rearrange(resized(cut, 12), "b (h w) c s1 s2 -> b c (h s1) (w s2)", h=5)

    found = fitted(model.state_dict(), TINY, asked)(larger)

    torch.testing.assert_close(found, model(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("channels", [1, 6])
def test_a_grey_image_gives_the_logits_that_it_gave_in_colour(channels: int) -> None:
    model = randomize(ViT(TINY)).double().eval()
    grey = torch.randn(2, 1, *TINY.image_size, dtype=torch.float64)

    found = fitted(model.state_dict(), TINY, TINY.replace(channels=channels))

    logits = model(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found(grey.expand(-1, channels, -1, -1)), logits, rtol=0, atol=1e-12)
    narrow = found.float()(grey.float().expand(-1, channels, -1, -1))
    torch.testing.assert_close(narrow, logits.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_heads_for_other_classes_are_those_of_a_new_model(variant: dict[str, Any]) -> None:
    stored, asked = TINY.replace(**variant), TINY.replace(**variant, classes=2000)
    tensors = weights(stored)

    found, _ = fit(tensors, stored, asked, seed=5)

    heads = {name: tensor for name, tensor in found.items() if name.startswith("head")}
    fresh = seeded(asked.replace(depth=0), seed=5).state_dict()
    assert heads.keys() == {name for name in fresh if name.startswith("head")}
    assert all(torch.equal(heads[name], fresh[name]) for name in heads)
    assert heads["head.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    other, _ = fit(tensors, stored, asked, seed=6)
    assert not torch.equal(other["head.weight"], heads["head.weight"])


def test_heads_leave_the_generator_as_it_was() -> None:
    tensors = weights(TINY)
    state = torch.get_rng_state()

    fit(tensors, TINY, TINY.replace(classes=3))

    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_a_head_is_given_one() -> None:
    stored = TINY.replace(classes=0, distillation_token=True, prefix_positions=2)

    found, done = fit(weights(stored), stored, stored.replace(classes=4))

    assert found["head.weight"].shape == found["head_dist.weight"].shape == (4, TINY.width)
    assert done == ["head 0 -> 4 classes (random, seed 0)"]


@pytest.mark.parametrize("changes", [{"channels": 1}, {"patch_size": 4}], ids=str)
def test_normalised_patches_are_refused_with_the_reason(changes: dict[str, int]) -> None:
    stored = TINY.replace(patch_norms=True)

    with pytest.raises(WeightsError) as raised:
        fit(weights(stored), stored, stored.replace(**changes))

    for text in ("patch_norms", "8 x 8 x 3 numbers", *map(str, changes.values())):
        assert text in str(raised.value)


def test_normalised_patches_are_fitted_to_another_image_size_and_classes() -> None:
    stored = TINY.replace(patch_norms=True)
    asked = stored.replace(image_size=(48, 24), classes=4)

    logits = fitted(weights(stored), stored, asked)(torch.randn(1, 3, 48, 24))

    assert logits.shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "shape"), [(KERNEL, (24, 3, 8, 4)), ("pos_embed", (1, 38, 24))], ids=str
)
def test_a_tensor_that_is_not_what_was_stored_is_refused(name: str, shape: tuple[int, ...]) -> None:
    tensors = weights(TINY)
    wanted = tuple(tensors[name].shape)

    with pytest.raises(WeightsError) as raised:
        fit({**tensors, name: torch.randn(shape)}, TINY, TINY.replace(patch_size=4))

    assert name in str(raised.value)
    assert str(shape) in str(raised.value) and str(wanted) in str(raised.value)


def test_shapes_of_other_fields_are_left_to_the_caller_s_check() -> None:
    tensors = weights(TINY)
    other = TINY.replace(width=48, depth=1, registers=2, prefix_positions=2, mlp_width=60)

    found, done = fit(tensors, TINY, other)

    assert done == [] and all(found[name] is tensors[name] for name in tensors)
    _, done = fit(tensors, TINY, TINY.replace(positions="rope", image_size=(48, 24)))
    assert done == []


def test_a_table_of_other_prefix_rows_never_passes_for_one_that_fits() -> None:
    # 1 + 5 x 7 rows are as many as 0 + 4 x 9.
    asked = TINY.replace(image_size=(32, 72), prefix_positions=0)

    found, _ = fit(weights(TINY), TINY, asked)

    wanted = ViT(asked).state_dict()["pos_embed"]
    assert found["pos_embed"].shape != wanted.shape


def test_missing_tensors_are_left_to_the_caller_s_check() -> None:
    asked = TINY.replace(image_size=(36, 20), patch_size=4, channels=1, classes=2)

    found, done = fit({}, TINY, asked)

    assert found.keys() == {"head.weight", "head.bias"}
    assert done == ["head 9 -> 2 classes (random, seed 0)"]


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (3, (0.3, 0.4, 0.8), (0.1, 0.2, 0.3)),
        (1, (0.5,), (0.2,)),
        (4, (0.3, 0.4, 0.8, 0.3), (0.1, 0.2, 0.3, 0.1)),
        (2, (0.3, 0.4), (0.1, 0.2)),
    ],
)
def test_the_preprocessing_follows(
    channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    stored = Preprocess(
        size=(40, 56), resize="pad", crop=0.9, mean=(0.3, 0.4, 0.8), std=(0.1, 0.2, 0.3)
    )

    found = preprocess_for(stored, TINY.replace(image_size=(48, 24), channels=channels))

    assert found.mean == pytest.approx(mean) and found.std == pytest.approx(std)
    assert (found.size, found.resize, found.crop) == ((48, 24), "pad", 0.9)


def test_the_preprocessing_of_the_same_images_is_the_same() -> None:
    stored = Preprocess(size=TINY.image_size, mean=(0.1, 0.7, 0.3))

    assert preprocess_for(stored, TINY) == stored
