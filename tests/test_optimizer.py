"""How a gradient becomes a step: groups, schedule, loss, clipping and the running mean, by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import TINY, randomize
from vitrail.data.loader import Batch
from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.training.learner import Learner, train_step
from vitrail.training.objectives import Classify
from vitrail.training.optimizer import Optimizer
from vitrail.training.recipe import Ema, Objective, Recipe, Schedule, Train
from vitrail.training.recipe import Optimizer as Settings
from vitrail.training.schedule import factor

# All that a model may hold: tokens, positions, layer scale, norms of q and k, a pooling latent.
FULL = TINY.replace(registers=2, layer_scale=0.1, qk_norm=True, pooling="map")
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
    return Learner(recipe, Preprocess(size=SMALL.image_size), torch.device("cpu"), steps)


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


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_goes_on_from_its_state_as_if_it_had_never_stopped(name: str) -> None:
    model = randomize(ViT(SMALL))
    optimizer = Optimizer(model, Settings(name=name))  # type: ignore[arg-type]
    images, labels = batch()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step(1.0)
    other_model = copy.deepcopy(model)
    other = Optimizer(other_model, Settings(name=name))  # type: ignore[arg-type]
    other.load({key: value.clone() for key, value in optimizer.state().items()})

    for trained, how in ((model, optimizer), (other_model, other)):
        F.cross_entropy(trained(images), labels).backward()
        how.step(0.5)

    assert other.state().keys() == optimizer.state().keys()
    assert all(torch.equal(v, other.state()[k]) for k, v in optimizer.state().items())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True)
    )


def test_the_rate_rises_in_a_line_to_one_and_falls_along_half_a_cosine() -> None:
    schedule = Schedule(name="cosine", warmup=0.2, final=0.1)

    rates = [factor(schedule, step, 21) for step in range(21)]

    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.55)  # half way down
    assert rates[20] == pytest.approx(0.1)
    by_hand = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 16)) for i in range(17)]
    assert rates[4:] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("name", "warmup", "steps", "rates"),
    [
        ("cosine", 0.0, 1, [1.0]),
        ("cosine", 1.0, 1, [1.0]),
        ("cosine", 0.0, 2, [1.0, 0.5]),
        ("cosine", 0.0, 3, [1.0, 0.75, 0.5]),
        ("cosine", 1.0, 4, [0.25, 0.5, 0.75, 1.0]),
        ("cosine", 0.5, 4, [0.5, 1.0, 1.0, 0.5]),
        ("constant", 0.0, 3, [1.0, 1.0, 1.0]),
        ("constant", 0.5, 4, [0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_the_schedule_holds_at_its_edges(
    name: str, warmup: float, steps: int, rates: list[float]
) -> None:
    schedule = Schedule(name=name, warmup=warmup, final=0.5)  # type: ignore[arg-type]

    assert [factor(schedule, step, steps) for step in range(steps)] == pytest.approx(rates)


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
        model, Classify(Objective()), optimizer, images, labels, lr_factor=1.0, clip=clip
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
    window = taught.read_window()
    empty = taught.read_window()

    assert window.loss == pytest.approx(float(F.cross_entropy(logits, first.labels).detach()))
    assert window.top1 == float((logits.argmax(dim=1) == first.labels).float().mean())
    assert (window.images, empty.images, empty.loss) == (4, 0, 0.0)
