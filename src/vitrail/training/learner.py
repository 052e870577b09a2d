"""What lives while a run trains: weights, their mean, the optimizer, and a step of them."""

import copy
from collections.abc import Mapping
from functools import cache, partial

import numpy as np
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
from vitrail.engines.torch_engine import precision
from vitrail.model.vit import ViT
from vitrail.training.meters import Meters
from vitrail.training.objectives import Objective
from vitrail.training.optimizer import Optimizer
from vitrail.training.parallel import Parallel, load_weights, local, whole
from vitrail.training.recipe import Recipe
from vitrail.training.schedule import factor, image_size
from vitrail.training.start import Start
from vitrail.training.step import train_step
from vitrail.training.work import training_macs
from vitrail.training.world import World


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
        world: World | None = None,
        head_alone: bool = False,
    ) -> None:
        self.recipe, self.objective, self.device, self.steps = recipe, objective, device, steps
        self.world = world or World()
        self.parallel = Parallel(self.world, recipe, device)
        train = recipe.train
        self.model, self.preprocess = start.model.to(device).train(), start.preprocess
        self.mean = copy.deepcopy(self.model).eval() if recipe.ema.decay else None
        self.head_alone = head_alone  # batches are features then, and the head is what is trained
        module: nn.Module = self.model.head if head_alone else objective.module(self.model)
        self.plain = copy.deepcopy(self.model).cpu() if self.parallel.is_sharded else None
        if self.parallel.is_sharded:
            self.parallel.shard(module, self.model)
            if self.mean is not None:
                self.parallel.shard(self.mean, self.mean)
        self.optimizer = Optimizer(self.model, recipe.optimizer)
        self.meters = Meters(device)
        self.scaler = GradScaler(device.type) if train.dtype == "float16" else None
        if train.recompute:
            recomputed(self.model)
        self.module = self.parallel.wrap(module, self.model)
        self.macs_of = cache(partial(training_macs, self.model, head_alone=head_alone))
        self.model_input = torch.compile(model_input) if train.compile else model_input

    @property
    def answering(self) -> ViT:
        """The weights to evaluate and save: their running mean where there is one.

        Where they lie in pieces, each process takes part and has the whole.
        """
        weights = self.model if self.mean is None else self.mean
        if self.plain is None:
            return weights
        self.plain.load_state_dict({n: whole(w) for n, w in weights.state_dict().items()})
        return self.plain.to(self.device)

    def step(self, batch: Batch, step: int) -> None:
        """Learn from one uint8 batch; all of it depends on the recipe, the batch and `step`."""
        train = self.recipe.train
        count = len(batch.labels) if self.world.size == 1 else self.world.images
        if not count:  # every file of it was bad
            self.meters.update_norm = None
            return
        torch.manual_seed(self.dropout_seed(step))  # a resume needs no generator's state
        images, targets = self.prepared(batch, step)
        with precision(self.device, train.dtype):
            result = train_step(
                self.module,
                self.objective,
                self.optimizer,
                self.micro_batches(images, targets),
                images=train.batch_size / self.world.size,  # gradients are averaged over processes
                lr_factor=factor(self.recipe.schedule, step, self.steps),
                clip=self.recipe.optimizer.clip,
                scaler=self.scaler,
                skip_nonfinite=train.skip_nonfinite,
                parallel=self.parallel,
                # Also the first one: where the copy of the weights has no room, it is told at once.
                measured=step == 0 or self.is_logged(step + 1),
            )
        if self.mean is not None and result.taken:
            _move(self.mean, self.model, self.recipe.ema.decay, step)
        self.meters.count(result, count, step)

    def is_logged(self, done: int) -> bool:
        """Say whether a row is written after so many steps."""
        return done % self.recipe.train.log_every == 0 or done == self.steps

    def macs(self, since: int, done: int) -> float:
        """Give the multiply-adds that an image took, the mean of steps `since` to `done` - 1."""
        sizes = [image_size(self.recipe, step, self.steps) for step in range(since, done)]
        counts = [self.macs_of(size or self.preprocess.size) for size in sizes]
        return sum(counts) / len(counts)

    def dropout_seed(self, step: int) -> int:
        """Give the seed of a step, another one on each process."""
        seed, rank = self.recipe.train.seed, self.world.rank
        if rank == 0:
            return (seed << 32) + step
        return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])

    def micro_batches(self, images: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split a batch; of many processes each has as many parts, empty where images lack."""
        train = self.recipe.train
        if self.world.size == 1:
            size = train.micro_batch or len(images)
            return list(zip(images.split(size), targets.split(size), strict=True))
        share = train.batch_size // self.world.size
        size = train.micro_batch or share
        starts = range(0, share, size)
        return [(images[i : i + size], targets[i : i + size]) for i in starts]

    @torch.enable_grad()
    def rehearse(self) -> None:
        """Compute one gradient and forget it: DDP orders its buckets by the first that it sees.

        Their order decides in which order processes are summed, so that without it a resumed run
        of three or more would differ in its last bits.
        """
        train = self.recipe.train
        share = train.batch_size // self.world.size
        size = min(train.micro_batch or share, share)
        blank = torch.zeros(size, *self.input_shape(0), device=self.device)
        with precision(self.device, train.dtype):
            labels = torch.zeros(size, dtype=torch.long, device=self.device)
            self.objective.loss(self.module, blank, labels).mean.backward()
        self.module.zero_grad(set_to_none=True)

    def input_shape(self, step: int) -> tuple[int, ...]:
        """Give C H W of what the model sees at a step, or D of the features that its head sees."""
        if self.head_alone:
            return (self.model.head.in_features,)  # type: ignore[return-value]
        size = image_size(self.recipe, step, self.steps) or self.preprocess.size
        return (self.preprocess.channels, *size)

    def prepared(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Give the model's input and its targets: labels, or each class's share where mixed."""
        if self.head_alone:
            return batch.images, batch.labels.to(self.device, non_blocking=True)
        if not len(batch.labels):  # another process has some
            labels = torch.zeros(0, dtype=torch.long, device=self.device)
            return torch.zeros(0, *self.input_shape(step), device=self.device), labels
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
        weights = (local(p) for model in models for p in model.parameters())
        finite = all(bool(p.isfinite().all()) for p in weights) and self.meters.bad_step() is None
        return not self.world.any(not finite)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Give the parts of a checkpoint, weights in pieces where they lie in pieces."""
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
        """Take up what `state` gave, whole."""
        load_weights(self.model, parts["model"])
        self.optimizer.load(parts["optimizer"])
        self.meters.load(parts["loop"])
        if self.mean is not None:
            load_weights(self.mean, parts["ema"])
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
        local(old).lerp_(local(new), weight)
