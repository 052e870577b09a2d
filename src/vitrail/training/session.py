"""One process at work on a run: where it stands, and what it writes on the way."""

import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vitrail.data.config import Augment
from vitrail.data.loader import Batch, Loader
from vitrail.data.sources import Source, Splits
from vitrail.errors import ConfigError
from vitrail.inference.evaluate import Evaluation, answers, measured
from vitrail.reporting.page import write_run_page
from vitrail.training import checkpoint, finite
from vitrail.training.checkpoint import Checkpoint
from vitrail.training.display import tell
from vitrail.training.learner import Learner
from vitrail.training.meters import Window
from vitrail.training.objectives import Classify, Distill, Objective, Teacher
from vitrail.training.parallel import Parts, is_sharded
from vitrail.training.probe import Features, can_keep, features
from vitrail.training.recipe import Recipe
from vitrail.training.run_folder import RunFolder
from vitrail.training.saver import Saver
from vitrail.training.schedule import factor
from vitrail.training.start import start
from vitrail.training.world import World
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.disk import check_room, write_bytes
from vitrail.weights.loading import load

EXAMPLES = 10  # held-out images that a run leaves, to try `predict` on


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
        self.done = self.saved = 0
        self.saver = Saver(recipe.train.keep)
        self.spent = {"seconds": 0.0, "cpu_seconds": 0.0}  # in earlier sessions
        self.began, self.cpu_began = time.monotonic(), time.process_time()
        self.cpu_elsewhere = 0.0  # of the other processes, when last told
        self.best, self.stale = -1.0, 0  # and the evaluations since then
        self.log_began = self.began
        self.last: Evaluation | None = None  # of the weights as they are now

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

    def start(self, facts: Mapping[str, Any]) -> None:
        """Write what is known before the first step, if there is room for all that comes."""

        def begin() -> None:
            self.check_room()
            self.run.start(self.asked, facts)

        self.world.alone(begin)

    def take_up(self) -> None:
        """Load the newest whole checkpoint, if there is one, and forget what came after it."""
        found = self._newest()
        if self.world.size > 1:
            # Also at the very beginning: other processors draw other last bits.
            own = found.parts if found else self.learner.parallel.gathered(self.learner.state())
            parts = self.world.spread(own)
            self.world.together(lambda: self.learner.load(parts))
            self.learner.rehearse()
        elif found is not None:
            self.learner.load(found.parts)
        if found is not None:
            self.done = self.saved = found.step
        self.best, self.stale = self.world.alone(self._look_back)

    def _newest(self) -> Checkpoint | None:
        """Give the newest whole checkpoint, on all processes, its tensors on the first one."""
        found: Checkpoint | None = None

        def read() -> int | None:
            nonlocal found
            found, self.saver.broken = checkpoint.newest(self.run.checkpoints)
            self._tell_broken(found)
            if found is not None:
                self.spent = {name: float(found.parts["loop"][name]) for name in self.spent}
            return found and found.step

        step = self.world.alone(read)
        return found if self.world.is_first or step is None else Checkpoint(step, {})

    def _look_back(self) -> tuple[float, int]:
        """Drop the rows of steps that are taken again; give the best accuracy, and how stale."""
        self.run.forget_after(self.done)
        self.run.log(f"starts at step {self.done} of {self.steps}")
        # A bundle is written before its row: the best of the rows is the one in best/.
        measured = [row["top1"] for row in self.run.rows() if row["split"] == "val"]
        best = max(measured, default=-1.0)
        return best, len(measured) - 1 - measured.index(best) if measured else 0

    def _tell_broken(self, found: Checkpoint | None) -> None:
        broken = self.saver.broken
        if broken:
            step, problem = next(iter(broken.items()))
            more = f" (and {len(broken) - 1} older ones)" if len(broken) > 1 else ""
            used = f"checkpoint step-{found.step:08d}" if found else "the beginning"
            text = f"passed over step-{step:08d}{more}: {problem}; the run goes on from {used}"
            self.run.log(text)
            tell(text)

    def is_due(self, every: int) -> bool:
        """Say whether what is done every so many epochs is to be done now; at the end it is."""
        return self.done % (every * self.per_epoch) == 0 or self.done == self.steps

    def owes_evaluation(self) -> bool:
        """Say whether the run was stopped before it had measured the weights that it took up."""
        if not self.done or not self.is_due(self.recipe.train.evaluate_every):
            return False
        rows = self.world.alone(self.run.rows)
        return (self.done, "val") not in [(row["step"], row["split"]) for row in rows]

    def is_over(self) -> bool:
        """Say whether so many evaluations brought nothing better that the run ends."""
        patience = self.recipe.train.patience
        return patience is not None and self.stale >= patience

    def log(self) -> dict[str, Any]:
        """Write a row of what was learned since the last; stop where it is not finite."""
        self.check_finite()
        self.share()
        window = self.learner.meters.read()
        if window.skipped:
            self.note_skipped(window)
        lr = self.recipe.optimizer.lr * factor(self.recipe.schedule, self.done - 1, self.steps)
        rate = window.images / (time.monotonic() - self.log_began)
        self.log_began = time.monotonic()
        return self.add_row("train", window.loss, window.top1, lr, window.grad_norm, rate)

    def evaluate(self) -> Evaluation:
        """Measure the weights, keep them where they are the best so far, and write a row."""
        began = time.monotonic()
        evaluation = self.measure()
        rate = evaluation.images / (time.monotonic() - began)
        self.stale += 1
        if evaluation.top1 > self.best:
            self.best, self.stale = evaluation.top1, 0
            bundle = self.bundle(evaluation)
            self.world.alone(lambda: save(bundle, self.run.path / "best"))
        # Last, so that a run that died before takes all of it again.
        self.add_row("val", evaluation.loss, evaluation.top1, None, None, rate)
        self.log_began += time.monotonic() - began  # its time is not the training's
        self.last = evaluation
        return evaluation

    def measure(self) -> Evaluation:
        """Measure the weights on the held-out images."""
        self.check_finite()
        model, dtype = self.learner.answering, self.recipe.train.dtype
        how, source = self.preprocess, self.held_out.source
        own = self.world.together(lambda: answers(model, how, self.held_out, dtype), leaves=True)
        parts = self.world.collect(own)
        for part in parts:
            self.held_out.bad |= part.bad
        self.world.alone(self.held_out.check_bad)
        names = self.data.train.classes
        return self.world.alone(lambda: measured(parts, source, names))

    def share(self) -> None:
        """Let each process know what the others could not read, and how long they have worked."""
        if self.world.size > 1:
            own = time.process_time() - self.cpu_began
            told = self.world.exchange((dict(self.loader.bad), own))
            for bad, _ in told:
                self.loader.bad |= bad
            self.world.alone(self.loader.check_bad)
            self.cpu_elsewhere = sum(seconds for _, seconds in told) - own

    def save(self) -> None:
        """Write a checkpoint, if there is none of this step and the weights are finite."""
        if self.saved == self.done:
            return
        self.check_finite()
        began = time.monotonic()
        parts = self.learner.state()
        parts["loop"] |= checkpoint.numbers(self.time_spent())
        parallel = self.learner.parallel
        if parallel.is_sharded and self.recipe.parallel.checkpoints == "sharded":
            self._save_pieces(parallel.own(parts))
        else:
            parts = parallel.gathered(parts)
            self.world.alone(lambda: self.saver.save(self.run, self.done, parts))
        self.saved = self.done
        self.log_began += time.monotonic() - began

    def _save_pieces(self, pieces: Parts) -> None:
        self.world.alone(self.run.settle_metrics)  # no checkpoint outlives the rows before it
        path = checkpoint.save_shards(self.run.checkpoints, self.done, pieces, self.world)
        self.world.alone(lambda: self.saver.saved(self.run, self.done, path))

    def settle(self) -> None:
        """Wait until the last checkpoint is on the disk; raises `OutputError` if it never is."""
        self.world.alone(self.saver.settle)

    def finish(self, evaluation: Evaluation) -> dict[str, Any]:
        """Leave the last weights, a few images to try and the page; give the summary."""
        bundle = self.bundle(evaluation)

        def leave() -> dict[str, Any]:
            self.saver.settle()
            save(bundle, self.run.path / "last")
            self.write_examples()
            self.saver.prune(self.run, self.done)  # of a run that was killed while it did
            self.run.log(f"finished at step {self.done}")
            summary = self.summary("finished", evaluation)
            write_run_page(self.run.path, summary)
            return summary

        return self.world.alone(leave)

    def check_room(self) -> None:
        """Raise `OutputError` where the disk has no room for what the run will write at least."""
        train, model = self.recipe.train, self.learner.model
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        # The weights, their running mean, and one number a weight of the optimizer (AdamW has two).
        checkpoint_bytes = weights * (3 if self.learner.mean is not None else 2)
        saves = -(-self.steps // (train.save_every * self.per_epoch))
        kept = min(saves, train.keep + 1)  # a new one is written before an old one goes
        there = sum(file.stat().st_size for file in self.run.path.rglob("*.safetensors"))
        check_room(self.run.path, kept * checkpoint_bytes + 2 * weights - there)

    def check_finite(self) -> None:
        """Raise `NonFiniteError` where a loss, gradient or weight is not finite."""
        if self.learner.is_finite():
            return
        bad = self.learner.meters.bad_step()
        step, what = bad or (self.done - 1, "a weight was not finite")
        lr = self.recipe.optimizer.lr * factor(self.recipe.schedule, step, self.steps)
        self._stop(f"{what} at step {step} (learning rate {lr:.3g})")

    def note_skipped(self, window: Window) -> None:
        """Log the steps that were left out; where none was taken, stop."""
        what = f"{window.skipped} steps up to step {self.done} were not finite and left out"
        total = self.learner.meters.skipped
        self.world.alone(lambda: self.run.log(f"{what}; {total} so far"))
        if not window.images:
            self._stop(f"{what}: all there were")

    def _stop(self, found: str) -> None:
        """Raise `NonFiniteError`, which says which checkpoint is left."""
        self.settle()
        self.world.alone(lambda: finite.stop(found, self.run.checkpoints))

    def add_row(
        self,
        split: str,
        loss: float,
        top1: float,
        lr: float | None,
        grad_norm: float | None,
        images_per_second: float,
    ) -> dict[str, Any]:
        row = {
            "step": self.done,
            "epoch": round(self.done / self.per_epoch, 3),
            "split": split,
            "loss": loss,
            "top1": top1,
            "lr": lr,
            "grad_norm": grad_norm,
            "images_per_second": round(images_per_second, 1),
            "seconds": round(self.time_spent()["seconds"], 3),
        }
        self.world.alone(lambda: self.run.add_metrics(row))
        return row

    def write_examples(self) -> None:
        """Copy a few held-out images, as far apart in the listing as can be."""
        source = self.data.held_out
        readable = [i for i in range(len(source)) if i not in self.held_out.bad]
        count = min(EXAMPLES, len(readable))
        taken: set[str] = set()
        for i in range(count):
            place = readable[i * len(readable) // count]
            name = source.name(place).replace("/", "-")[-200:]
            if name in taken:  # two classes may share names once the slash is gone
                name = f"{place}-{name}"
            taken.add(name)
            write_bytes(self.run.path / "examples" / name, source.read(place))

    def write_summary(self, status: str, error: str | None = None) -> None:
        if self.world.is_first:
            self.run.write_summary(self.summary(status, error=error))

    def summary(
        self, status: str, evaluation: Evaluation | None = None, error: str | None = None
    ) -> dict[str, Any]:
        """Give what `summary.json` says."""
        # By their places: threads find them in any order.
        bad = [loader.bad[i] for loader in (self.loader, self.held_out) for i in sorted(loader.bad)]
        return {
            "status": status,
            "error": error,
            "step": self.done,
            "steps": self.steps,
            "top1": evaluation and evaluation.top1,
            "top5": evaluation and evaluation.top5,
            "loss": evaluation and evaluation.loss,
            "best_top1": self.best if self.best >= 0 else None,
            "skipped_steps": self.learner.meters.skipped,
            "parameters": sum(p.numel() for p in self.learner.model.parameters()),
            "train_images": len(self.data.train),
            "held_out_images": len(self.data.held_out),
            **{name: round(value, 2) for name, value in self.time_spent().items()},
            "bad": [{"path": file.path, "reason": file.reason} for file in bad],
            "evaluation": evaluation and evaluation.to_json(),
        }

    def bundle(self, evaluation: Evaluation) -> Bundle:
        """Give the weights so far as a bundle."""
        where = self.recipe.data
        columns = {"image_column": where.image_column, "label_column": where.label_column}
        return Bundle(
            model=self.learner.answering,
            preprocess=self.preprocess,
            labels=self.data.train.classes,
            origin={
                "run": str(self.run.path),
                "data": self.recipe.data.source,
                "held_out_share": self.recipe.data.held_out_share,
                "split_seed": self.recipe.data.split_seed,
                **{name: value for name, value in columns.items() if value is not None},
                "step": self.done,
            },
            metrics={"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss},
        )

    def time_spent(self) -> dict[str, float]:
        """Wall and processor seconds of all sessions of this run, on all processes."""
        return {
            "seconds": self.spent["seconds"] + time.monotonic() - self.began,
            "cpu_seconds": self.spent["cpu_seconds"]
            + time.process_time()
            - self.cpu_began
            + self.cpu_elsewhere,
        }

    def command(self) -> str:
        """Give the command that goes on with this run."""
        recipe, out = str(self.run.path / "recipe.toml"), str(self.run.path)
        words = ["vitrail", "train", self.recipe.data.source, "--recipe", recipe, "--out", out]
        if self.world.size > 1:
            words += ["--processes", str(self.world.size)]
        return shlex.join(words)
