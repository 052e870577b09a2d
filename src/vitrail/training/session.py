"""One process at work on a run: what it works with, and where it stands."""

import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np

from vitrail.data.config import Augment
from vitrail.data.loader import Batch, Loader
from vitrail.data.sources import Source, Splits
from vitrail.engines.torch_engine import TorchEngine
from vitrail.errors import ConfigError
from vitrail.inference.answering import Answers, answers
from vitrail.inference.evaluate import Evaluation, Scored, joined
from vitrail.training import finite
from vitrail.training.clock import Clock
from vitrail.training.learner import Learner
from vitrail.training.objectives import Classify, Distill, Objective, Teacher
from vitrail.training.parallel import is_sharded
from vitrail.training.probe import Features, can_keep, features
from vitrail.training.recipe import Recipe
from vitrail.training.run_folder import RunFolder
from vitrail.training.saver import Saver
from vitrail.training.schedule import factor
from vitrail.training.start import start
from vitrail.training.trackers import Trackers
from vitrail.training.world import World
from vitrail.weights.bundle import Bundle
from vitrail.weights.loading import load


class Session:
    """One process that works on a run, from its newest checkpoint to its end."""

    def __init__(
        self,
        recipe: Recipe,
        data: Splits,
        run: RunFolder,
        asked: Recipe | None = None,
        world: World | None = None,
    ) -> None:
        self.recipe, self.data, self.run = recipe, data, run
        self.asked = asked or recipe  # what the run stores, where `recipe` has more settled
        self.world = world or World()
        if recipe.model.channels not in (1, 3):
            raise ConfigError(
                f"the model reads {recipe.model.channels} channels, but images are read as grey "
                "or RGB: set --model.channels to 1 or 3"
            )
        self.device = self.world.device(recipe.train.device)
        beginning = start(recipe, data.train.classes)
        self.preprocess = beginning.preprocess
        size = recipe.train.batch_size
        self.loader = self._loader(data.train, size, recipe.augment)
        at_once = max(size, 64)
        if self.world.size > 1:  # what splits over the processes
            at_once = -(-at_once // size) * size
        self.held_out = self._loader(data.held_out, at_once, Augment())
        self.loader.check_steps()
        self.per_epoch = self.loader.steps()
        self.steps = recipe.train.steps or recipe.train.epochs * self.per_epoch
        self.features: Features | None = None  # of a frozen model's images, once they are needed
        # Where weights lie in pieces, only the whole model can gather them.
        in_pieces = is_sharded(self.world, recipe)
        self.keeps_features = can_keep(recipe, beginning.model) and not in_pieces
        self.learner = Learner(
            recipe,
            beginning,
            self._objective(),
            self.device,
            self.steps,
            world=self.world,
            head_alone=self.keeps_features,
        )
        self.done = self.saved = self.logged = 0
        self.peak: float | None = None  # FLOP/s of all devices together, once it is measured
        self.saver = Saver(recipe.train.keep)
        self.clock = Clock()
        self.best, self.stale = -1.0, 0  # and the evaluations since then
        self.trackers = Trackers(run)
        self.last: Evaluation | None = None  # of the weights as they are now
        self.scored: Scored | None = None  # the answers behind the last one, in the first process

    @property
    def at_once(self) -> int:
        """Images that this process computes with at a time."""
        train = self.recipe.train
        return train.micro_batch or -(-train.batch_size // self.world.size)

    def _objective(self) -> Objective:
        settings, classes = self.recipe.objective, self.data.train.classes
        counts = np.bincount(self.loader.labels, minlength=len(classes))
        labels = Classify(settings, counts)
        if settings.teacher is None:
            return labels
        how = self.preprocess
        return Distill(
            settings, labels, Teacher(load(settings.teacher), classes, how.mean, how.std)
        )

    def _loader(self, source: Source, batch_size: int, augment: Augment) -> Loader:
        how = self.recipe.data
        return Loader(
            source,
            self.preprocess,
            batch_size,
            threads=how.threads,
            timeout=how.timeout,
            shuffle=how.shuffle,
            pinned=self.device.type == "cuda",
            max_bad_share=how.max_bad_share,
            decode=how.decode,
            augment=augment,
            rank=self.world.rank,
            ranks=self.world.size,
        )

    def batches(self) -> Iterator[Batch]:
        """Give the batch of every step that is left, or this process' share of it."""
        seed = self.recipe.train.seed
        if not self.keeps_features:
            return self.world.agreed(self.loader.batches(seed, self.done, self.steps))
        if self.features is None:
            self.features = self._features()
        kept = self.features.batches(self.loader, seed, self.done, self.steps)
        return self.world.agreed(kept)

    def _features(self) -> Features:
        """Compute the features of all images, each process those of its share."""
        model, dtype = self.learner.model, self.recipe.train.dtype

        def compute() -> Features:
            return features(model, self.preprocess, self.loader, dtype)

        return self.world.together(compute, leaves=True).joined(self.learner.parallel)

    def is_due(self, every: int) -> bool:
        """Say whether what is done every so many epochs is to be done now; at the end it is."""
        return self.done % (every * self.per_epoch) == 0 or self.done == self.steps

    def is_over(self) -> bool:
        """Say whether so many evaluations brought nothing better that the run ends."""
        patience = self.recipe.train.patience
        return patience is not None and self.stale >= patience

    def measure(self) -> Evaluation:
        """Measure the weights on the held-out images."""
        self.check_finite()
        self.scored = None  # its memory is needed
        model, dtype = self.learner.answering, self.recipe.train.dtype
        was_training = model.training
        engine = TorchEngine(model, self.preprocess, dtype)
        own = self.world.together(lambda: answers(engine, self.held_out), leaves=True)
        model.train(was_training)
        parts = self.world.collect(own)
        for part in parts:
            self.held_out.bad |= part.bad
        self.world.alone(self.held_out.check_bad)
        return self.world.alone(lambda: self._measured(parts))

    def _measured(self, parts: list[Answers]) -> Evaluation:
        self.scored = joined(parts, self.held_out.source, self.data.train.classes)
        return self.scored.figures()

    def share(self) -> None:
        """Let each process know what the others could not read, and how long they have worked."""
        if self.world.size > 1:
            own = self.clock.cpu()
            told = self.world.exchange((dict(self.loader.bad), own))
            for bad, _ in told:
                self.loader.bad |= bad
            self.world.alone(self.loader.check_bad)
            self.clock.cpu_elsewhere = sum(seconds for _, seconds in told) - own

    def settle(self) -> None:
        """Wait until the last checkpoint is on the disk; raises `OutputError` if it never is."""
        self.world.alone(self.saver.settle)

    def check_finite(self) -> None:
        """Raise `NonFiniteError` where a loss, gradient or weight is not finite."""
        if self.learner.is_finite():
            return
        bad = self.learner.meters.bad_step()
        step, what = bad or (self.done - 1, "a weight was not finite")
        self.stop(f"{what} at step {step} (learning rate {self.lr(step):.3g})")

    def lr(self, step: int) -> float:
        """Give the highest learning rate of a step."""
        return self.recipe.optimizer.lr * factor(self.recipe.schedule, step, self.steps)

    def stop(self, found: str) -> None:
        """Raise `NonFiniteError`, which says which checkpoint is left."""
        self.settle()
        self.world.alone(lambda: finite.stop(found, self.run.checkpoints))

    def bundle(self, evaluation: Evaluation) -> Bundle:
        """Give the weights so far as a bundle."""
        return Bundle(
            model=self.learner.answering,
            preprocess=self.preprocess,
            labels=self.data.train.classes,
            origin={
                "run": str(self.run.path),
                "data": self.recipe.data.source,
                **self.data_options(),
                "step": self.done,
            },
            metrics={"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss},
        )

    def data_options(self) -> dict[str, Any]:
        """Give what says, beside its address, which images were held out."""
        where = self.recipe.data
        columns = {"image_column": where.image_column, "label_column": where.label_column}
        return {
            "held_out_share": where.held_out_share,
            "split_seed": where.split_seed,
            **{name: value for name, value in columns.items() if value is not None},
        }

    def command(self) -> str:
        """Give the command that goes on with this run."""
        recipe, out = str(self.run.path / "recipe.toml"), str(self.run.path)
        words = ["vitrail", "train", self.recipe.data.source, "--recipe", recipe, "--out", out]
        if self.world.size > 1:
            words += ["--processes", str(self.world.size)]
        return shlex.join(words)
