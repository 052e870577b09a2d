"""What lives while a run trains: weights, their mean, the optimizer, and one step of them."""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.data.augment import augment, draw
from vitrail.data.loader import Batch
from vitrail.data.preprocess import Preprocess
from vitrail.inference.runner import precision
from vitrail.model.vit import ViT, seeded
from vitrail.training.objectives import Classify
from vitrail.training.optimizer import Optimizer
from vitrail.training.recipe import Recipe
from vitrail.training.schedule import factor


class StepResult(NamedTuple):
    """Of one step, still on the device: reading one of them waits for it."""

    loss: Tensor
    right: Tensor
    grad_norm: Tensor


class Window(NamedTuple):
    """Means over the steps since the last time they were read."""

    loss: float
    top1: float
    grad_norm: float
    images: int


def train_step(
    model: nn.Module,
    objective: Classify,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    lr_factor: float,
    clip: float,
) -> StepResult:
    """Take one step on normalised images, B C H W; nothing in it waits for the device."""
    loss = objective.loss(model, images, labels)
    loss.mean.backward()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
    optimizer.step(lr_factor)
    return StepResult(loss.mean.detach(), loss.right, grad_norm)


class Learner:
    """The model in training; `state` is all that a resume needs, bit for bit."""

    def __init__(
        self, recipe: Recipe, preprocess: Preprocess, device: torch.device, steps: int
    ) -> None:
        self.recipe, self.preprocess, self.device, self.steps = recipe, preprocess, device, steps
        train = recipe.train
        self.model = seeded(recipe.model, seed=train.seed, drop=train.drop).to(device).train()
        if self.model.pos_embed is not None:
            self.model.pos_embed.data *= train.position_scale
        self.forward: nn.Module = self.model
        if train.compile:
            self.forward = torch.compile(self.model)  # type: ignore[assignment]
        self.mean = copy.deepcopy(self.model).eval() if recipe.ema.decay else None
        self.optimizer = Optimizer(self.model, recipe.optimizer)
        self.objective = Classify(recipe.objective)
        self.sums = {n: torch.zeros((), device=device) for n in ("loss", "right", "grad_norm")}
        self.seen, self.taken = 0, 0  # images and steps in the sums
        self.first_bad = torch.full((), -1, device=device)  # first step that was not finite

    @property
    def answering(self) -> ViT:
        """The weights to evaluate and save: their running mean where there is one."""
        return self.model if self.mean is None else self.mean

    def step(self, batch: Batch, step: int) -> None:
        """Learn from one uint8 batch; all of it depends on the recipe and `step` alone."""
        seed = self.recipe.train.seed
        if not len(batch.labels):  # every file of it was bad
            return
        torch.manual_seed((seed << 32) + step)  # dropout; a resume needs no generator's state
        images = batch.images.to(self.device, non_blocking=True)
        images = augment(images, draw(seed, batch.epoch, batch.keys), self.recipe.augment)
        with precision(self.device, self.recipe.train.dtype):
            result = train_step(
                self.forward,
                self.objective,
                self.optimizer,
                self.preprocess.normalize(images),
                batch.labels.to(self.device, non_blocking=True),
                lr_factor=factor(self.recipe.schedule, step, self.steps),
                clip=self.recipe.optimizer.clip,
            )
        if self.mean is not None:
            _move(self.mean, self.model, self.recipe.ema.decay, step)
        self._count(result, len(batch.labels), step)

    def read_window(self) -> Window:
        """Give the means since the last call, and start anew; this waits for the device."""
        sums = {name: float(value) for name, value in self.sums.items()}
        window = Window(
            loss=sums["loss"] / max(self.taken, 1),
            top1=sums["right"] / max(self.seen, 1),
            grad_norm=sums["grad_norm"] / max(self.taken, 1),
            images=self.seen,
        )
        for value in self.sums.values():
            value.zero_()
        self.seen = self.taken = 0
        return window

    def is_finite(self) -> bool:
        """Say whether every loss, gradient and weight so far was finite; this waits."""
        models = [self.model] if self.mean is None else [self.model, self.mean]
        weights = (p for model in models for p in model.parameters())
        return all(bool(p.isfinite().all()) for p in weights) and int(self.first_bad) < 0

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Give the parts of a checkpoint."""
        parts = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state(),
            "loop": {
                **self.sums,
                "seen": torch.tensor(self.seen),
                "taken": torch.tensor(self.taken),
            },
        }
        return parts if self.mean is None else {**parts, "ema": dict(self.mean.state_dict())}

    def load(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up what `state` gave."""
        self.model.load_state_dict(parts["model"])
        self.optimizer.load(parts["optimizer"])
        if self.mean is not None:
            self.mean.load_state_dict(parts["ema"])
        loop = parts["loop"]
        for name, value in self.sums.items():
            value.copy_(loop[name])
        self.seen, self.taken = int(loop["seen"]), int(loop["taken"])

    def _count(self, result: StepResult, images: int, step: int) -> None:
        self.sums["loss"] += result.loss
        self.sums["right"] += result.right
        self.sums["grad_norm"] += result.grad_norm
        self.seen, self.taken = self.seen + images, self.taken + 1
        bad = ~(result.loss + result.grad_norm).isfinite() & (self.first_bad < 0)
        self.first_bad = torch.where(bad, step, self.first_bad)


@torch.no_grad()
def _move(mean: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the running mean towards the weights; at first it follows fast (TensorFlow's rule)."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for old, new in zip(mean.parameters(), model.parameters(), strict=True):
        old.lerp_(new, weight)
