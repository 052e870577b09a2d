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
from vitrail.training.finite import is_step_finite
from vitrail.training.objectives import Classify
from vitrail.training.optimizer import Optimizer
from vitrail.training.recipe import Recipe
from vitrail.training.schedule import factor

_COUNTS = ("seen", "taken", "skipped", "skipped_before")


class StepResult(NamedTuple):
    """Of one step, still on the device: reading one of them waits for it."""

    loss: Tensor
    right: Tensor
    grad_norm: Tensor
    taken: bool = True


class Window(NamedTuple):
    """Means over the steps since the last time they were read."""

    loss: float
    top1: float
    grad_norm: float
    images: int
    skipped: int  # steps that were left out


def train_step(
    model: nn.Module,
    objective: Classify,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    lr_factor: float,
    clip: float,
    skip_nonfinite: bool = False,
) -> StepResult:
    """Take one step on normalised images, B C H W.

    Nothing in it waits for the device, but with `skip_nonfinite`.
    """
    loss = objective.loss(model, images, labels)
    loss.mean.backward()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
    if skip_nonfinite and not is_step_finite(loss.mean, grad_norm):
        model.zero_grad(set_to_none=True)
        return StepResult(loss.mean.detach(), loss.right, grad_norm, taken=False)
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
        self.skipped = self.skipped_before = 0  # steps left out, in all and before the sums
        self.first_bad = torch.full((), -1, device=device)  # first step that was not finite
        self.bad_figures = torch.zeros(2, device=device)  # its loss and norm of the gradient

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
                skip_nonfinite=self.recipe.train.skip_nonfinite,
            )
        if not result.taken:
            self.skipped += 1
            return
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
            skipped=self.skipped - self.skipped_before,
        )
        for value in self.sums.values():
            value.zero_()
        self.seen = self.taken = 0
        self.skipped_before = self.skipped
        return window

    def is_finite(self) -> bool:
        """Say whether every loss, gradient and weight so far was finite; this waits."""
        models = [self.model] if self.mean is None else [self.model, self.mean]
        weights = (p for model in models for p in model.parameters())
        return all(bool(p.isfinite().all()) for p in weights) and int(self.first_bad) < 0

    def bad_step(self) -> tuple[int, str] | None:
        """Give the first step whose loss or gradient was not finite, and what they were."""
        step, (loss, norm) = int(self.first_bad), self.bad_figures.tolist()
        told = f"the loss was {loss:.4g} and the norm of the gradient {norm:.4g}"
        return None if step < 0 else (step, told)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Give the parts of a checkpoint."""
        parts = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state(),
            "loop": {
                **self.sums,
                **{name: torch.tensor(getattr(self, name)) for name in _COUNTS},
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
        for name in _COUNTS:
            setattr(self, name, int(loop[name]))

    def _count(self, result: StepResult, images: int, step: int) -> None:
        self.sums["loss"] += result.loss
        self.sums["right"] += result.right
        self.sums["grad_norm"] += result.grad_norm
        self.seen, self.taken = self.seen + images, self.taken + 1
        bad = ~(result.loss + result.grad_norm).isfinite() & (self.first_bad < 0)
        self.first_bad = torch.where(bad, step, self.first_bad)
        figures = torch.stack([result.loss, result.grad_norm])
        self.bad_figures = torch.where(bad, figures, self.bad_figures)


@torch.no_grad()
def _move(mean: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the running mean towards the weights; at first it follows fast (TensorFlow's rule)."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for old, new in zip(mean.parameters(), model.parameters(), strict=True):
        old.lerp_(new, weight)
