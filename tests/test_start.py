"""What a run begins with: pretrained weights, frozen layers, and how it may end early."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from runs import RECIPE, assert_equal_runs, rows, stop_after, stopped, with_train, write_photos
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, VitrailError
from vitrail.model.vit import ViT, seeded
from vitrail.training.loop import train
from vitrail.training.objectives import Classify
from vitrail.training.optimizer import Optimizer
from vitrail.training.recipe import Objective, Recipe, Train, default_recipe, read_recipe
from vitrail.training.recipe import Optimizer as SettingsOf
from vitrail.training.session import Session
from vitrail.training.start import freeze, start
from vitrail.training.step import train_step
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.loading import load

MODEL = RECIPE.model
NAMES = ("dark", "light")
PIXELS = Preprocess(size=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))


def pretrained(labels: tuple[str, ...] = NAMES, **changes: Any) -> str:
    config = MODEL.replace(classes=len(labels), **changes)
    save(Bundle(model=seeded(config, seed=9), preprocess=PIXELS, labels=labels), "pretrained")
    return "pretrained"


def test_a_recipe_may_fit_images_otherwise_than_its_weights_do() -> None:
    stored = replace(PIXELS, crop=0.75)
    save(Bundle(model=seeded(MODEL, seed=9), preprocess=stored, labels=NAMES), "pretrained")

    def how(weights: str | None, **changes: Any) -> Preprocess:
        recipe = with_train(weights=weights)
        return start(replace(recipe, data=replace(recipe.data, **changes)), NAMES).preprocess

    assert how("pretrained") == stored
    assert how("pretrained", crop=0.875) == replace(stored, crop=0.875)
    assert how("pretrained", resize="square") == replace(stored, resize="square")
    assert how("pretrained", resize="pad") == replace(stored, resize="pad", crop=1.0)
    assert how(None, crop=0.8, resize="square") == replace(how(None), crop=0.8, resize="square")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"crop": 0.0}, "crop is 0.0; it should be above 0, at most 1"),
        ({"crop": 1.5}, "crop is 1.5; it should be above 0, at most 1"),
        ({"resize": "longest"}, "should be absent or one of shortest, square, pad."),
        ({"resize": "pad", "crop": 0.9}, "resize is pad, which keeps the whole image, and crop is"),
    ],
)
def test_a_fit_that_cannot_be_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(RECIPE.data, **settings)


def test_a_run_begins_with_the_weights_and_their_preprocessing() -> None:
    recipe = with_train(weights=pretrained())

    model, preprocess = start(recipe, NAMES)

    stored = load("pretrained").model.state_dict()
    assert all(torch.equal(w, stored[name]) for name, w in model.state_dict().items())
    assert preprocess == PIXELS
    assert model.drop == recipe.train.drop


@pytest.mark.parametrize("labels", [("a", "b"), ("light", "dark"), ("a", "b", "c")])
def test_other_classes_get_a_head_of_their_own(labels: tuple[str, ...]) -> None:
    recipe = with_train(weights=pretrained(labels))

    model = start(recipe, NAMES).model

    stored, fresh = load("pretrained").model, seeded(MODEL, seed=recipe.train.seed)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, stored.blocks[1].mlp.fc1.weight)  # type: ignore[union-attr]
    head = model.state_dict()["head.weight"]
    assert head.shape[0] == 2 and not torch.equal(head, stored.state_dict()["head.weight"][:2])
    if len(labels) == 2:
        assert torch.equal(head, fresh.state_dict()["head.weight"])


def test_weights_are_fitted_to_another_size_of_image() -> None:
    recipe = replace(RECIPE, model=MODEL.replace(image_size=(16, 12)))

    model, preprocess = start(
        replace(recipe, train=replace(recipe.train, weights=pretrained())), NAMES
    )

    assert model.config.image_size == (16, 12) and preprocess.size == (16, 12)
    assert preprocess.mean == PIXELS.mean


def test_weights_of_another_model_are_refused_with_what_differs() -> None:
    recipe = replace(RECIPE, model=MODEL.replace(depth=3))

    with pytest.raises(VitrailError, match="depth"):
        start(replace(recipe, train=replace(recipe.train, weights=pretrained())), NAMES)


def test_a_recipe_without_a_model_takes_that_of_the_weights(tmp_path: Path) -> None:
    origin = pretrained(width=32)
    Path("own.toml").write_text("[train]\nepochs = 1\n")

    for recipe in (read_recipe("own.toml", origin), default_recipe("photos", weights=origin)[0]):
        assert recipe.model == MODEL.replace(width=32)
        assert recipe.train.weights == origin


def test_fine_tuning_from_the_command_line_ends_and_resumes_as_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"train photos --weights {pretrained()} --epochs 2 --batch-size 8 --device cpu"
    words = [*command.split(), "--dtype", "float32", "--model.image-size", "16", "16"]

    assert main([*words, "--out", "whole"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        assert main([*words, "--out", "stopped"]) == 130
    assert main([*words, "--out", "stopped"]) == 0

    assert rows("stopped") == rows("whole")
    for run in ("whole", "stopped"):
        recipe = read_recipe(Path(run) / "recipe.toml")
        assert recipe.train.weights == "pretrained" and recipe.model.image_size == (16, 16)
    same = [load(run).model.state_dict() for run in ("whole", "stopped")]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert load("whole").preprocess.mean == PIXELS.mean
    capsys.readouterr()


def test_weights_that_are_not_there_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "photos", "--weights", "vit-s17"]) == 2

    assert "vit-s17" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layers", "trained"),
    [(0, "all"), (1, "blocks.0"), (2, "blocks.1"), (3, "norm"), (-1, "head")],
)
def test_frozen_layers_are_the_first_ones(layers: int, trained: str) -> None:
    model = seeded(MODEL, seed=0)

    freeze(model, layers)

    free = [name for name, p in model.named_parameters() if p.requires_grad]
    every = [name for name, _ in model.named_parameters()]
    first = {"all": 0}.get(trained)
    if first is None:
        first = next(i for i, name in enumerate(every) if name.startswith(trained))
    assert free == every[first:]


def test_more_frozen_layers_than_there_are_is_told() -> None:
    with pytest.raises(ConfigError, match="has 3 layers that can be frozen"):
        freeze(seeded(MODEL, seed=0), 4)


def test_frozen_weights_stay_as_they_are() -> None:
    run = train(with_train(freeze=2, weights=pretrained()), "run")

    before, after = load("pretrained").model.state_dict(), run.bundle().model.state_dict()
    for name in before:
        frozen = name.startswith(("patch_embed", "cls_token", "pos_embed", "blocks.0"))
        assert torch.equal(before[name], after[name]) == frozen, name


def test_the_head_s_first_bias_is_the_recipe_s() -> None:
    model = start(with_train(head_bias=-6.9), NAMES).model

    assert model.state_dict()["head.bias"].tolist() == pytest.approx([-6.9, -6.9])


def worse_after(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every evaluation after the `first`-th answer worse."""
    measure, count = Session.measure, [0]

    def measured(self: Session) -> Any:
        count[0] += 1
        step = self.done // self.per_epoch
        return replace(measure(self), top1=0.9 if step <= first else 0.5)

    monkeypatch.setattr(Session, "measure", measured)


def test_a_run_without_progress_ends_when_its_patience_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worse_after(2, monkeypatch)
    recipe = with_train(epochs=20, patience=3)

    run = train(recipe, "run")

    # The first evaluation is the best; the second is no better, and two more are not either.
    assert [r["step"] for r in rows("run") if r["split"] == "val"] == [5, 10, 15, 20]
    assert run.summary["status"] == "finished" and run.summary["step"] == 20
    with pytest.MonkeyPatch.context() as patch:
        stop_after(17, patch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, "stopped")
    train(recipe, "stopped")
    assert_equal_runs("run", "stopped")
    assert json.loads(Path("stopped/summary.json").read_text())["step"] == 20


class Kept(Optimizer):
    """Keeps the gradients in place of using them."""

    def step(self, factor: float) -> None:
        self.gradients = {name: p.grad for p, name in self.names.items()}


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (2, 2, 2), (4, 2), (1,) * 6])
def test_micro_batches_give_the_gradient_of_the_whole_batch(sizes: tuple[int, ...]) -> None:
    model, images = seeded(MODEL, seed=0), torch.randn(6, 3, 8, 8)
    targets = torch.tensor([0, 1, 1, 0, 1, 0])
    F.cross_entropy(model(images), targets).backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    optimizer = Kept(model, RECIPE.optimizer)
    parts = list(zip(images.split(sizes), targets.split(sizes), strict=True))

    result = train_step(
        model, Classify(Objective()), optimizer, parts, images=6, lr_factor=1.0, clip=0.0
    )

    for name, gradient in wanted.items():
        torch.testing.assert_close(optimizer.gradients[name], gradient, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.loss, F.cross_entropy(model(images), targets).detach())
    assert int(result.right) == int((model(images).argmax(dim=1) == targets).sum())


def test_a_run_in_micro_batches_resumes_as_itself() -> None:
    recipe = with_train(micro_batch=2)

    train(recipe, "whole")
    stopped(4, "stopped", recipe)
    train(recipe, "stopped")

    assert_equal_runs("whole", "stopped")


def test_recomputed_blocks_drop_the_same_numbers_again() -> None:
    plain = train(with_train(steps=4), "plain").bundle().model.state_dict()

    weights = train(with_train(steps=4, recompute=True), "saving").bundle().model.state_dict()

    assert all(torch.equal(weights[name], weight) for name, weight in plain.items())


def test_images_grow_to_the_model_s_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrail.training.learner import Learner

    seen: list[tuple[int, ...]] = []
    prepared = Learner.prepared

    def watched(self: Learner, *args: Any) -> Any:
        images, targets = prepared(self, *args)
        seen.append(tuple(images.shape[2:]))
        return images, targets

    monkeypatch.setattr(Learner, "prepared", watched)
    model = MODEL.replace(image_size=(16, 8))
    recipe = replace(RECIPE, model=model, train=replace(RECIPE.train, first_size=(4, 8)))

    train(recipe, "run")

    assert seen[0] == (4, 8) and seen[-2:] == [(16, 8)] * 2
    assert seen == sorted(seen) and len(set(seen)) == 4
    for size in ((5, 8), (20, 8), (0, 8)):
        with pytest.raises(ConfigError, match="first_size"):
            Recipe(model=model, train=Train(first_size=size))


def test_half_precision_goes_on_as_if_never_stopped() -> None:
    recipe = with_train(dtype="float16")

    train(recipe, "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(4, patch)
        train(recipe, "stopped")
    train(recipe, "stopped")

    weights = [(Path(run) / "last/model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert weights[0] == weights[1]
    assert rows("whole") == rows("stopped")


def test_a_head_alone_learns_from_features_that_are_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen = Train(epochs=6, batch_size=4, freeze=-1, weights=pretrained(("a", "b")), device="cpu")
    recipe = Recipe(model=MODEL, data=RECIPE.data, train=frozen, optimizer=SettingsOf(lr=0.05))
    with monkeypatch.context() as patch:
        patch.setattr("vitrail.training.session.can_keep", lambda *_: False)
        slow = train(recipe, "slow").bundle().model.state_dict()
    blocks: list[int] = []
    embed = ViT.embed

    def counted(self: ViT, images: torch.Tensor) -> Any:
        blocks.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(ViT, "embed", counted)
    run = train(recipe, "kept")

    weights = run.bundle().model.state_dict()
    for name, weight in slow.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)
    assert [r["loss"] for r in rows("kept")] == pytest.approx(
        [r["loss"] for r in rows("slow")], abs=1e-5
    )
    evaluations = sum(r["split"] == "val" for r in rows("kept"))
    # Each training image once; the page looks at the held-out ones once more.
    assert sum(blocks) == 16 + 4 * (evaluations + 1)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, "stopped")
    train(recipe, "stopped")
    assert rows("stopped") == rows("kept")


def test_the_linear_probe_trains_the_head_alone() -> None:
    recipe = read_recipe("linear-probe", pretrained(("a", "b")))
    recipe = replace(recipe, data=RECIPE.data, train=replace(recipe.train, batch_size=8, epochs=3))
    (Path("photos") / "light" / "bad.png").write_bytes(b"no image")

    run = train(replace(recipe, data=replace(recipe.data, max_bad_share=0.5)), "run")

    before, after = load("pretrained").model.state_dict(), run.bundle().model.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        "head.weight",
        "head.bias",
    }
    assert len(run.summary["bad"]) == 1
