"""How a gradient becomes a step: groups, loss, clipping and the running mean, by hand."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import TINY, randomize
from vitrail.data.loader import Batch
from vitrail.errors import ConfigError
from vitrail.model.config import ViTConfig
from vitrail.model.presets import preset, presets
from vitrail.model.vit import ViT
from vitrail.training.learner import Learner
from vitrail.training.objectives import Classify
from vitrail.training.optimizer import Optimizer
from vitrail.training.recipe import Ema, Objective, Recipe, Train
from vitrail.training.recipe import Optimizer as Settings
from vitrail.training.start import start
from vitrail.training.step import train_step

# All that a model may hold: tokens, positions, layer scale, norms of q and k, a pooling latent.
FULL = TINY.replace(registers=2, layer_scale=0.1, qk_norm=True, pooling="map")
KINDS = {
    "full": FULL,
    "distilled": TINY.replace(distillation_token=True, prefix_positions=2, final_norm="pooled"),
    "DINOv3": TINY.replace(
        width=48, positions="rope", prefix_positions=0, qkv_bias="no_key", mlp="swiglu"
    ),
    "vit-pytorch": TINY.replace(patch_norms=True, pooling="mean", pre_norm=True),
    "the first": TINY.replace(pre_logits=True),
}
NAMES = ("adamw", "muon", "sgd", "lamb")
SMALL = ViTConfig(image_size=(8, 12), patch_size=4, classes=5, width=16, depth=1, heads=2)


def roles(model: nn.Module, settings: Settings) -> dict[str, tuple[str, float, float]]:
    """Give who moves each parameter, at which rate, with which decay."""
    optimizer = Optimizer(model, settings)
    return {
        optimizer.names[parameter]: (type(part).__name__, group["lr"], group["weight_decay"])
        for part in optimizer.parts
        for group in part.param_groups
        for parameter in group["params"]
    }


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, *SMALL.image_size), torch.arange(count) % SMALL.classes


def uint8_batch(start: int, count: int = 4) -> Batch:
    images = torch.randint(0, 256, (count, 3, *SMALL.image_size), dtype=torch.uint8)
    places = torch.arange(start, start + count)
    rows = places.numpy()
    return Batch(images, places % SMALL.classes, rows, rows, rows // 8, 0)


def learner(recipe: Recipe, steps: int = 10) -> Learner:
    begun = start(recipe, tuple(map(str, range(SMALL.classes))))
    return Learner(recipe, begun, Classify(recipe.objective), torch.device("cpu"), steps)


def test_adamw_decays_matrices_and_nothing_else() -> None:
    model = ViT(FULL)

    found = roles(model, Settings(name="adamw", lr=0.5, weight_decay=0.25))

    assert found.keys() == dict(model.named_parameters()).keys()
    decayed = {name for name, role in found.items() if role == ("AdamW", 0.5, 0.25)}
    plain = {name for name, role in found.items() if role == ("AdamW", 0.5, 0.0)}
    assert decayed | plain == found.keys()
    assert "patch_embed.proj.weight" in decayed
    assert "head.weight" in decayed
    assert {name for name in found if ".attn.qkv.weight" in name} <= decayed
    tokens = {"cls_token", "reg_token", "pos_embed", "attn_pool.latent"}
    others = {n for n in found if "norm" in n or "gamma" in n or n.endswith("bias")}
    assert plain == tokens | others


def test_muon_has_the_matrices_of_the_blocks_and_no_other_parameter() -> None:
    found = roles(ViT(FULL), Settings(name="muon", lr=0.5, adamw_lr=0.125, weight_decay=0.25))

    muon = {name for name, role in found.items() if role == ("Muon", 0.5, 0.25)}
    matrices = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert muon == {f"blocks.{i}.{name}.weight" for i in range(2) for name in matrices}
    rest = {role for name, role in found.items() if name not in muon}
    assert rest == {("AdamW", 0.125, 0.25), ("AdamW", 0.125, 0.0)}


def test_three_steps_of_adamw_are_torch_s_own() -> None:
    ours = randomize(ViT(SMALL))
    theirs = copy.deepcopy(ours)
    images, labels = batch()
    optimizer = Optimizer(ours, Settings(name="adamw", lr=0.01, weight_decay=0.1))
    named = dict(theirs.named_parameters())
    decayed = [p for n, p in named.items() if p.ndim > 1 and n not in ("cls_token", "pos_embed")]
    plain = [p for p in named.values() if all(p is not d for d in decayed)]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    )

    for share in (0.5, 1.0, 0.25):
        F.cross_entropy(ours(images), labels).backward()
        optimizer.step(share)
        F.cross_entropy(theirs(images), labels).backward()
        for group in reference.param_groups:
            group["lr"] = 0.01 * share
        reference.step()
        reference.zero_grad()

    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, named[name]), name
        assert parameter.grad is None


def test_three_steps_of_sgd_are_torch_s_own_whose_decay_is_a_part_of_the_gradient() -> None:
    ours = randomize(ViT(SMALL))
    images, labels = batch()
    optimizer = Optimizer(ours, Settings(name="sgd", lr=0.5, weight_decay=0.25, momentum=0.75))
    weight = dict(ours.named_parameters())["head.weight"]
    by_hand, velocity = weight.detach().clone(), torch.zeros_like(weight)

    for share in (0.5, 1.0, 0.25):
        F.cross_entropy(ours(images), labels).backward()
        assert weight.grad is not None
        velocity = 0.75 * velocity + weight.grad + 0.25 * by_hand
        by_hand = by_hand - share * 0.5 * velocity
        optimizer.step(share)

    torch.testing.assert_close(weight.detach(), by_hand)


def test_muon_is_torch_s_own_for_matrices_and_adamw_for_the_rest() -> None:
    ours = randomize(ViT(SMALL))
    theirs = copy.deepcopy(ours)
    images, labels = batch()
    optimizer = Optimizer(ours, Settings(name="muon", lr=0.02, adamw_lr=0.002, weight_decay=0.2))
    named = dict(theirs.named_parameters())
    matrices = [p for n, p in named.items() if n.startswith("blocks") and p.ndim == 2]
    others = {n: p for n, p in named.items() if all(p is not m for m in matrices)}
    decayed = [others[n] for n in ("patch_embed.proj.weight", "head.weight")]
    plain = [p for p in others.values() if all(p is not d for d in decayed)]
    references = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.2),
        torch.optim.AdamW(decayed, lr=0.002, weight_decay=0.2),
        torch.optim.AdamW(plain, lr=0.002, weight_decay=0.0),
    ]

    for _ in range(3):
        F.cross_entropy(ours(images), labels).backward()
        optimizer.step(1.0)
        F.cross_entropy(theirs(images), labels).backward()
        for reference in references:
            reference.step()
            reference.zero_grad()

    assert all(torch.equal(p, named[n]) for n, p in ours.named_parameters())


@pytest.mark.parametrize("kind", [*KINDS, *presets()])
def test_the_matrices_of_layers_are_decayed_and_nothing_else(kind: str) -> None:
    with torch.device("meta"):
        model = ViT(KINDS.get(kind) or preset(kind))

    found = roles(model, Settings(name="muon", weight_decay=0.25))

    layers = (nn.Linear, nn.Conv2d)
    matrices = {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, layers)}
    assert found.keys() == dict(model.named_parameters()).keys()
    assert {n for n, (_, _, decay) in found.items() if decay == 0.25} == matrices
    assert {decay for _, _, decay in found.values()} == {0.0, 0.25}


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_before_keeps_its_share_of_the_rate(kind: str) -> None:
    found = roles(ViT(KINDS[kind]), Settings(lr=0.5, layer_decay=0.25))

    rates: dict[str, set[float]] = {}
    for name, (_, rate, _) in found.items():
        words = name.split(".")
        rates.setdefault(".".join(words[: 2 if words[0] == "blocks" else 1]), set()).add(rate)
    last = {name: {0.5} for name in ("norm", "fc_norm", "attn_pool", "pre_logits", "head")}
    wanted = {**last, "head_dist": {0.5}, "blocks.1": {0.5 / 4}, "blocks.0": {0.5 / 16}}
    assert rates == {name: wanted.get(name, {0.5 / 64}) for name in rates}


@pytest.mark.parametrize(
    "options",
    [
        {"init_values": 0.1, "reg_tokens": 2},
        {"class_token": False, "global_pool": "map"},
        {"global_pool": "avg", "pre_norm": True},
    ],
    ids=str,
)
def test_layer_decay_gives_each_parameter_the_rate_of_timm(
    timm: ModuleType, options: dict[str, Any]
) -> None:
    from timm.optim._param_groups import param_groups_layer_decay

    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=24, depth=3, num_heads=3, num_classes=5, **options
    )
    names = {parameter: name for name, parameter in theirs.named_parameters()}
    wanted = {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(
            theirs, 0.25, theirs.no_weight_decay(), layer_decay=0.75
        )
        for parameter in group["params"]
    }

    # Our names are timm's, so that its own model can be given to our optimizer.
    found = roles(theirs, Settings(lr=1.0, weight_decay=0.25, layer_decay=0.75))

    # BEiT and MAE count the final norm with the head, timm with the last block; and timm decays
    # the latent of attention pooling, which is a token.
    for name in {"norm.weight", "norm.bias"} & found.keys():
        assert wanted.pop(name)[0] == 0.75 and found.pop(name)[1] == 1.0
    if "attn_pool.latent" in found:
        assert wanted.pop("attn_pool.latent") == (1.0, 0.25)
        assert found.pop("attn_pool.latent") == ("AdamW", 1.0, 0.0)
    assert found.keys() == wanted.keys()
    for name, (_, rate, decay) in found.items():
        assert (rate, decay) == (pytest.approx(wanted[name][0]), wanted[name][1]), name


def test_muon_s_two_rates_both_fall_by_layer() -> None:
    found = roles(ViT(FULL), Settings(name="muon", lr=0.5, adamw_lr=0.125, layer_decay=0.5))

    assert found["blocks.1.mlp.fc1.weight"][:2] == ("Muon", 0.25)
    assert found["blocks.0.mlp.fc1.weight"][:2] == ("Muon", 0.125)
    assert found["blocks.0.mlp.fc1.bias"][:2] == ("AdamW", 0.03125)
    assert found["head.weight"][:2] == ("AdamW", 0.125)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_takes_its_share_of_each_group_s_highest_rate(name: Any) -> None:
    model = ViT(FULL)
    settings = Settings(name=name, layer_decay=0.5)
    before = roles(model, settings)
    optimizer = Optimizer(model, settings)

    for factor in (0.25, 0.75):
        optimizer.step(factor)

        rates = {
            optimizer.names[p]: group["lr"]
            for part in optimizer.parts
            for group in part.param_groups
            for p in group["params"]
        }
        assert rates == {name: factor * peak for name, (_, peak, _) in before.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_an_optimizer_reach_it(name: Any) -> None:
    settings = Settings(name=name, beta1=0.5, beta2=0.75, eps=0.125, momentum=0.25)

    groups = {
        type(part).__name__: part.param_groups[0] for part in Optimizer(ViT(SMALL), settings).parts
    }

    if name == "sgd":
        assert groups["SGD"]["momentum"] == 0.25 and not groups["SGD"]["nesterov"]
    else:
        group = groups["Lamb" if name == "lamb" else "AdamW"]
        assert (group["betas"], group["eps"]) == ((0.5, 0.75), 0.125)
    if name == "muon":  # Jordan et al. 2024; its momentum is no leaf
        assert (groups["Muon"]["momentum"], groups["Muon"]["nesterov"]) == (0.95, True)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_parameter_is_in_no_group_and_stays_as_it_is(name: Any) -> None:
    model = randomize(ViT(SMALL.replace(depth=2)))
    whole = roles(model, Settings(name=name, layer_decay=0.5))
    model.patch_embed.requires_grad_(False)
    model.blocks[1].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = Optimizer(model, Settings(name=name, layer_decay=0.5))
    images, labels = batch()

    F.cross_entropy(model(images), labels).backward()
    optimizer.step(1.0)

    left = {n: role for n, role in whole.items() if not n.startswith(("patch_embed", "blocks.1"))}
    assert roles(model, Settings(name=name, layer_decay=0.5)) == left
    assert {path.rsplit("/", 1)[0] for path in optimizer.state()} == left.keys()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == left.keys()


@pytest.mark.parametrize("left", ["head", "blocks.0.mlp.fc1.weight"])
@pytest.mark.parametrize("name", NAMES)
def test_one_trained_layer_is_enough_for_every_optimizer(name: Any, left: str) -> None:
    model = ViT(SMALL)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path.startswith(left))

    assert all(path.startswith(left) for path in roles(model, Settings(name=name)))


def test_a_model_without_anything_to_train_is_told() -> None:
    model = ViT(SMALL).requires_grad_(False)

    with pytest.raises(ConfigError, match=r"all \d+ parameters are frozen"):
        Optimizer(model, Settings())


@pytest.mark.parametrize("name", NAMES)
def test_a_measured_step_is_the_same_step_and_gives_its_length(name: Any) -> None:
    model = randomize(ViT(SMALL))
    other = copy.deepcopy(model)
    images, labels = batch()
    optimizer, plain = Optimizer(model, Settings(name=name)), Optimizer(other, Settings(name=name))
    before = nn.utils.parameters_to_vector(model.parameters()).detach()

    for trained in (model, other):
        F.cross_entropy(trained(images), labels).backward()
    length = optimizer.measured_step(0.5)
    plain.step(0.5)

    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.equal(after, nn.utils.parameters_to_vector(other.parameters()))
    torch.testing.assert_close(length, (after - before).norm())
    assert not length.requires_grad


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "settings",
    [*(Settings(name=name) for name in NAMES), Settings(name="sgd", momentum=0.0)],
    ids=lambda settings: f"{settings.name}-{settings.momentum}",
)
def test_an_optimizer_goes_on_from_its_state_as_if_it_had_never_stopped(
    settings: Settings, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model = randomize(ViT(SMALL)).to(device)
    optimizer = Optimizer(model, settings)
    images, labels = (tensor.to(device) for tensor in batch())
    F.cross_entropy(model(images), labels).backward()
    optimizer.step(1.0)
    other_model = copy.deepcopy(model)
    other = Optimizer(other_model, settings)
    # As a checkpoint gives it: copies, on the CPU.
    other.load({key: value.to("cpu", copy=True) for key, value in optimizer.state().items()})

    for trained, how in ((model, optimizer), (other_model, other)):
        F.cross_entropy(trained(images), labels).backward()
        how.step(0.5)

    assert other.state().keys() == optimizer.state().keys()
    assert all(torch.equal(v, other.state()[k]) for k, v in optimizer.state().items())
    assert all(v.device == other.state()[k].device for k, v in optimizer.state().items())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True)
    )


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
def test_sharded_weights_move_as_whole_ones(one_process: None, name: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = randomize(ViT(SMALL))
    sharded = copy.deepcopy(model)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    settings = Settings(name=name, layer_decay=0.5)
    whole, split = Optimizer(model, settings), Optimizer(sharded, settings)
    images, labels = batch()

    for _ in range(2):
        for trained in (model, sharded):
            F.cross_entropy(trained(images), labels).backward()
        whole.step(1.0)
        split.step(1.0)
        split.load(split.state())

    for (path, a), b in zip(model.named_parameters(), sharded.parameters(), strict=True):
        assert torch.equal(a, b.full_tensor()), path  # type: ignore[operator]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_classify_is_cross_entropy_with_smoothing(smoothing: float) -> None:
    model = randomize(ViT(SMALL))
    images, labels = batch()
    probabilities = model(images).log_softmax(dim=1)
    wanted = (1 - smoothing) * F.one_hot(labels, SMALL.classes) + smoothing / SMALL.classes

    loss = Classify(Objective(label_smoothing=smoothing)).loss(model, images, labels)

    torch.testing.assert_close(loss.mean, -(wanted * probabilities).sum(dim=1).mean())
    assert int(loss.right) == int((probabilities.argmax(dim=1) == labels).sum())


@pytest.mark.parametrize(("clip", "scale"), [(0.01, None), (1e6, 1.0), (0.0, 1.0)])
def test_a_step_clips_the_norm_of_the_whole_gradient(clip: float, scale: float | None) -> None:
    model = randomize(ViT(SMALL))
    images, labels = batch()
    F.cross_entropy(model(images), labels).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    model.zero_grad()
    optimizer = Optimizer(model, Settings())

    result = train_step(
        model,
        Classify(Objective()),
        optimizer,
        [(images, labels)],
        images=len(images),
        lr_factor=1.0,
        clip=clip,
    )

    torch.testing.assert_close(result.grad_norm, norm)  # as it was before clipping
    scale = clip / float(norm) if scale is None else scale
    moments = optimizer.state()
    for name, gradient in gradients.items():  # after one step: 0.1 of the gradient that was used
        torch.testing.assert_close(moments[f"{name}/exp_avg"], 0.1 * scale * gradient)


def test_the_running_mean_follows_fast_at_first_and_then_by_its_decay() -> None:
    recipe = Recipe(model=SMALL, ema=Ema(decay=0.3), optimizer=Settings(lr=0.01))
    taught = learner(recipe)
    assert taught.mean is not None
    by_hand = [p.detach().double() for p in taught.model.parameters()]

    for step in range(6):
        taught.step(uint8_batch(4 * step), step)
        decay = min(0.3, (1 + step) / (10 + step))
        pairs = zip(by_hand, taught.model.parameters(), strict=True)
        by_hand = [decay * old + (1 - decay) * new.detach().double() for old, new in pairs]

    assert taught.answering is taught.mean and not taught.mean.training
    for old, mean in zip(by_hand, taught.mean.parameters(), strict=True):
        # Six single-precision lerps of numbers about 1.
        torch.testing.assert_close(mean.double(), old, rtol=0, atol=1e-6)


def test_without_a_running_mean_the_weights_themselves_answer() -> None:
    taught = learner(Recipe(model=SMALL))

    assert taught.answering is taught.model
    assert "ema" not in taught.state()


def test_the_window_is_the_mean_over_the_steps_since_it_was_read() -> None:
    taught = learner(Recipe(model=SMALL, train=Train(batch_size=4)))
    expected = copy.deepcopy(taught.model)
    first = uint8_batch(0)
    logits = expected(taught.preprocess.normalize(first.images))

    taught.step(first, 0)
    window = taught.meters.read()
    empty = taught.meters.read()

    assert window.loss == pytest.approx(float(F.cross_entropy(logits, first.labels).detach()))
    assert window.top1 == float((logits.argmax(dim=1) == first.labels).float().mean())
    assert (window.images, empty.images, empty.loss) == (4, 0, 0.0)
