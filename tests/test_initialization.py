import pytest
import torch
from torch import Tensor

import vitrail
from conftest import TINY, randomize
from vitrail.errors import ConfigError
from vitrail.model.config import DropRates, ViTConfig
from vitrail.model.initialization import initialize
from vitrail.model.vit import ViT, seeded


def std(tensor: Tensor) -> float:
    return tensor.detach().std().item()


def within_xavier(matrix: Tensor) -> bool:
    """Tell whether a matrix, out in, fills the bounds of Xavier's uniform and stays inside."""
    bound = (6 / sum(matrix.flatten(1).shape)) ** 0.5
    return 0.9 * bound < matrix.abs().max() <= bound and abs(matrix.mean()) < 0.1 * bound


@pytest.mark.parametrize(
    ("width", "expected"), [(64, 1 / 8), (188, 188**-0.5), (192, 0.02), (256, 0.02)]
)
def test_positions_of_a_narrow_model_are_large(width: int, expected: float) -> None:
    config = ViTConfig(width=width, heads=4, depth=1, image_size=(320, 160), classes=0)

    model = ViT(config)

    assert model.pos_embed is not None
    assert std(model.pos_embed) == pytest.approx(expected, rel=0.03)  # of 201 rows


def test_matrices_are_xavier_s_with_q_k_and_v_each_by_itself() -> None:
    weights = ViT(TINY.replace(pre_logits=True, pooling="map")).state_dict()
    stacked = {"blocks.1.attn.qkv": 3, "attn_pool.kv": 2}
    single = ["patch_embed.proj", "pre_logits", "attn_pool.q", "attn_pool.proj"]
    single += [f"blocks.1.{name}" for name in ("attn.proj", "mlp.fc1", "mlp.fc2")]

    for name in single:
        assert within_xavier(weights[f"{name}.weight"]), name
    for name, parts in stacked.items():
        for matrix in weights[f"{name}.weight"].chunk(parts):
            assert within_xavier(matrix), name


def test_heads_and_learned_tokens_start_small() -> None:
    config = ViTConfig(width=192, heads=3, depth=1, image_size=(32, 32), classes=100)
    deit = ViT(config.replace(distillation_token=True, registers=20)).state_dict()
    siglip = ViT(config.replace(pooling="map")).state_dict()

    # Within five deviations of a sample as large as each tensor is.
    for name in ("head.weight", "head_dist.weight"):
        assert std(deit[name]) == pytest.approx(0.02, rel=0.03)
    assert std(deit["reg_token"]) == pytest.approx(0.02, rel=0.06)
    for token in (deit["cls_token"], deit["dist_token"], siglip["attn_pool.latent"]):
        assert std(token) == pytest.approx(0.02, rel=0.26)


def test_biases_are_0_norms_1_and_layer_scale_the_config_s() -> None:
    config = TINY.replace(
        layer_scale=1e-5, qk_norm=True, pre_norm=True, patch_norms=True, qkv_bias="no_key"
    )
    others = TINY.replace(pooling="map", final_norm="pooled")

    for model in (ViT(config), ViT(others)):
        initialize(randomize(model), model.config)
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                assert (tensor == 0).all(), name
            elif name.endswith("gamma"):
                assert (tensor == 1e-5).all(), name
            elif "norm" in name:
                assert (tensor == 1).all(), name
            else:
                assert (tensor != 1).all() and (tensor != 0).any(), name


def test_every_parameter_is_drawn_anew() -> None:
    config = TINY.replace(registers=3, distillation_token=True, layer_scale=1e-5, qk_norm=True)
    model, other = ViT(config), ViT(config)
    for tensor in model.parameters():
        torch.nn.init.constant_(tensor, torch.nan)

    torch.manual_seed(1)
    initialize(model, config)
    torch.manual_seed(1)
    initialize(other, config)

    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_create_gives_the_same_weights_for_the_same_seed_alone() -> None:
    first, again, other = (vitrail.create("nano", seed=seed) for seed in (0, 0, 1))

    weights = again.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert not torch.equal(weights["head.weight"], other.state_dict()["head.weight"])


def test_create_leaves_torch_s_generator_as_it_was() -> None:
    before = torch.get_rng_state()

    vitrail.create("nano", seed=3)

    assert torch.equal(torch.get_rng_state(), before)


def test_create_takes_the_fields_of_a_config() -> None:
    model = vitrail.create("nano", classes=7, image_size=(10, 6), width=32)

    assert (model.config.classes, model.config.grid) == (7, (5, 3))
    assert (model.config.head_width, model.config.mlp_width) == (8, 128)
    assert model(torch.zeros(1, 1, 10, 6)).shape == (1, 7)


def test_create_names_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match='Did you mean "nano"'):
        vitrail.create("nan0")
    with pytest.raises(ConfigError, match='Did you mean "classes"'):
        vitrail.create("nano", clases=7)


def test_drop_rates_change_no_weight() -> None:
    plain = seeded(TINY, seed=0).state_dict()
    drop = DropRates(attention=0.1, mlp=0.1, residual=0.1, stochastic_depth=0.1, patches=0.1)
    dropping = seeded(TINY, seed=0, drop=drop).state_dict()

    assert list(dropping) == list(plain)
    for name, tensor in plain.items():
        assert torch.equal(dropping[name], tensor), name
