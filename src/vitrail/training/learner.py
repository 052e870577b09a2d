"""What lives while a run trains: weights, their mean, the optimizer, and a step of them."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.checkpoint import checkpoint

from vitrail.data.augment import Draws, augment, draw
from vitrail.data.config import Augment
from vitrail.data.loader import Batch
from vitrail.data.mixing import mixed, mixed_labels
from vitrail.data.preprocess import Preprocess
from vitrail.inference.runner import precision
from vitrail.model.vit import ViT
from vitrail.training.meters import Meters
from vitrail.training.objectives import Objective
from vitrail.training.optimizer import Optimizer
from vitrail.training.recipe import Recipe
from vitrail.training.schedule import factor, image_size
from vitrail.training.start import Start
from vitrail.training.step import train_step


class Learner:
    """The model in training; `state` is all that a resume needs, bit for bit."""

    def __init__(
        self,
        recipe: Recipe,
        start: Start,
        objective: Objective,
        device: torch.device,
        steps: int,
        *,
        head_alone: bool = False,
    ) -> None:
        self.recipe, self.objective, self.device, self.steps = recipe, objective, device, steps
        train = recipe.train
        self.model, self.preprocess = start.model.to(device).train(), start.preprocess
        self.mean = copy.deepcopy(self.model).eval() if recipe.ema.decay else None
        self.optimizer = Optimizer(self.model, recipe.optimizer)
        self.meters = Meters(device)
        self.scaler = GradScaler(device.type) if train.dtype == "float16" else None
        if train.recompute:
            recomputed(self.model)
        self.head_alone = head_alone  # batches are features then, and the head is what is trained
        module: nn.Module = self.model.head if head_alone else objective.module(self.model)
        self.module, self.model_input = module, model_input
        if train.compile:
            self.module = cast(nn.Module, torch.compile(module))
            self.model_input = torch.compile(model_input)

    @property
    def answering(self) -> ViT:
        """The weights to evaluate and save: their running mean where there is one."""
        return self.model if self.mean is None else self.mean

    def step(self, batch: Batch, step: int) -> None:
        """Learn from one uint8 batch; all of it depends on the recipe, the batch and `step`."""
        train = self.recipe.train
        if not len(batch.labels):  # every file of it was bad
            return
        torch.manual_seed((train.seed << 32) + step)  # dropout; a resume needs no generator's state
        images, targets = self.prepared(batch, step)
        size = train.micro_batch or len(images)
        with precision(self.device, train.dtype):
            result = train_step(
                self.module,
                self.objective,
                self.optimizer,
                list(zip(images.split(size), targets.split(size), strict=True)),
                images=train.batch_size,
                lr_factor=factor(self.recipe.schedule, step, self.steps),
                clip=self.recipe.optimizer.clip,
                scaler=self.scaler,
                skip_nonfinite=train.skip_nonfinite,
            )
        if self.mean is not None and result.taken:
            _move(self.mean, self.model, self.recipe.ema.decay, step)
        self.meters.count(result, len(batch.labels), step)

    def prepared(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Give the model's input and its targets: labels, or each class's share where mixed."""
        if self.head_alone:
            return batch.images, batch.labels.to(self.device, non_blocking=True)
        how, (tall, wide) = self.recipe.augment, batch.images.shape[2:]
        seed = self.recipe.train.seed
        draws = draw(seed, batch.epoch, batch.keys, batch.blocks, how, (tall, wide))
        draws = draws.to(self.device)
        images = batch.images.to(self.device, non_blocking=True)
        targets = batch.labels.to(self.device, non_blocking=True)
        if draws.mixing is not None:
            targets = mixed_labels(targets, draws.mixing, self.recipe.model.classes)
        size = image_size(self.recipe, step, self.steps)
        return self.model_input(images, draws, how, self.preprocess, size), targets

    def is_finite(self) -> bool:
        """Say whether every loss, gradient and weight so far was finite; this waits."""
        models = [self.model] if self.mean is None else [self.model, self.mean]
        weights = (p for model in models for p in model.parameters())
        return all(bool(p.isfinite().all()) for p in weights) and self.meters.bad_step() is None

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Give the parts of a checkpoint."""
        parts = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state(),
            "loop": self.meters.state(),
        }
        if self.mean is not None:
            parts["ema"] = dict(self.mean.state_dict())
        if self.scaler is not None:
            values = self.scaler.state_dict()
            parts["scaler"] = {
                name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()
            }
        return parts

    def load(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up what `state` gave."""
        self.model.load_state_dict(parts["model"])
        self.optimizer.load(parts["optimizer"])
        self.meters.load(parts["loop"])
        if self.mean is not None:
            self.mean.load_state_dict(parts["ema"])
        if self.scaler is not None:
            values = {name: float(value) for name, value in parts["scaler"].items()}
            counts = ("growth_interval", "_growth_tracker")
            self.scaler.load_state_dict(values | {name: int(values[name]) for name in counts})


def model_input(
    images: Tensor,
    draws: Draws,
    how: Augment,
    preprocess: Preprocess,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Augment a uint8 batch, B C H W, mix, resize and normalise it: to be compiled as one."""
    images = augment(images, draws, how)
    if draws.mixing is not None:
        images = mixed(images, draws.mixing)
    if size is not None:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return preprocess.normalize(images)


def recomputed(model: ViT) -> None:
    """Have each block keep its input alone, and compute the rest again for its gradient.

    Chen et al. 2016: about a third more arithmetic, and memory that hardly grows with the depth.
    """
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@torch.no_grad()
def _move(mean: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the running mean towards the weights; at first it follows fast (TensorFlow's rule)."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for old, new in zip(mean.parameters(), model.parameters(), strict=True):
        old.lerp_(new, weight)
