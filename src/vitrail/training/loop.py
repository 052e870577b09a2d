"""The training loop: load, step, log, evaluate, save."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vitrail.data.loader import Batch, Loader
from vitrail.data.sources import Source, Splits, open_data
from vitrail.errors import DataError, NonFiniteError, OutputError
from vitrail.inference.evaluate import Evaluation, measure
from vitrail.inference.runner import logits, pick_device
from vitrail.training import checkpoint
from vitrail.training.display import Display
from vitrail.training.interrupt import listening
from vitrail.training.learner import Learner
from vitrail.training.recipe import Recipe, read_recipe
from vitrail.training.run_folder import RunFolder, check_same, choose
from vitrail.training.schedule import factor
from vitrail.weights.bundle import Bundle, default_preprocess, load, save
from vitrail.weights.files import write_bytes

EXAMPLES = 10  # held-out images that a run leaves, to try `predict` on


class Run(NamedTuple):
    """A run that has ended: its folder, and what its `summary.json` says."""

    folder: Path
    summary: dict[str, Any]

    def bundle(self, which: str = "last") -> Bundle:
        """Load the bundle `last` or `best` (by accuracy on the held-out images)."""
        return load(self.folder / which)


def train(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    override: bool = False,
) -> Run:
    """Train as the recipe says; the same call again continues a run that was stopped.

    `recipe` may be the name of a shipped one or a TOML file; `out`, `resume` and `override` are
    the command line's. Raises `ConfigError`, `DataError`, `OutputError` before the first step for
    what cannot work, `NonFiniteError` where training blows up; Ctrl-C and SIGTERM save first.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    data = open_data(recipe.data.source, recipe.data.held_out_share, recipe.data.split_seed)
    recipe = replace(recipe, model=recipe.model.replace(classes=len(data.train.classes)))
    run = choose(recipe, out, resume)
    facts = {"classes": list(data.train.classes), "data_digest": data.digest}
    if (run.path / "recipe.toml").is_file():
        if not override:
            check_same(run, recipe, facts)
        if run.summary().get("status") == "finished":
            return Run(run.path, run.summary())
    run.start(recipe, facts)
    session = Session(recipe, data, run)
    try:
        session.go()
    except BaseException as error:
        session.end_early(error)
        raise
    return Run(run.path, run.summary())


class Session:
    """One process that works on a run, from its newest checkpoint to its end."""

    def __init__(self, recipe: Recipe, data: Splits, run: RunFolder) -> None:
        self.recipe, self.data, self.run = recipe, data, run
        self.preprocess = default_preprocess(recipe.model)
        self.loader = self._loader(data.train, recipe.train.batch_size)
        self.held_out = self._loader(data.held_out, max(recipe.train.batch_size, 64))
        self.per_epoch = self.loader.steps()
        if not self.per_epoch:
            raise DataError(
                f"batch_size {recipe.train.batch_size} is more than the {len(data.train)} training "
                f"images, so that no step can be taken; give --batch-size {len(data.train)} or less"
            )
        self.steps = recipe.train.steps or recipe.train.epochs * self.per_epoch
        device = pick_device(recipe.train.device)
        self.learner = Learner(recipe, self.preprocess, device, self.steps)
        self.done = 0
        self.spent = {"seconds": 0.0, "cpu_seconds": 0.0}  # in earlier sessions
        self.began, self.cpu_began = time.monotonic(), time.process_time()
        self.best = -1.0

    def _loader(self, source: Source, batch_size: int) -> Loader:
        how = self.recipe.data
        return Loader(
            source,
            self.preprocess,
            batch_size,
            threads=how.threads,
            max_bad_share=how.max_bad_share,
        )

    def go(self) -> None:
        """Train to the end."""
        recipe, train = self.recipe, self.recipe.train
        self.take_up()
        self.write_summary("running")
        log_began, evaluation = time.monotonic(), None
        with listening() as interrupt, Display(self.steps, self.done, self.per_epoch) as display:
            for epoch, batch in self.batches():
                self.learner.step(batch, self.done, epoch)
                self.done += 1
                display.step(self.done)
                last = self.done == self.steps

                if self.done % train.log_every == 0 or last:
                    row = self.log(time.monotonic() - log_began)
                    display.train(self.done, row["loss"], row["top1"], row["images_per_second"])
                    log_began = time.monotonic()
                if self.done % (train.evaluate_every * self.per_epoch) == 0 or last:
                    evaluation = self.evaluate()
                    display.evaluated(evaluation.top1)
                if self.done % (train.save_every * self.per_epoch) == 0 or last:
                    self.save()
                if interrupt.received is not None and not last:
                    self.save()
                    display.say(f"stopped at step {self.done}; this goes on:\n  {self.command()}")
                    interrupt.leave()
        self.finish(evaluation or self.evaluate())
        self.run.log(f"finished {recipe.data.source} at step {self.done}")

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Give the epoch and the batch of every step that is left."""
        epoch, place = divmod(self.done, self.per_epoch)
        left = self.steps - self.done
        while left > 0:
            for batch in self.loader.epoch(self.recipe.train.seed, epoch, place):
                yield epoch, batch
                left -= 1
                if left == 0:
                    return
            epoch, place = epoch + 1, 0

    def take_up(self) -> None:
        """Load the newest whole checkpoint, if there is one, and forget what came after it."""
        found, broken = checkpoint.newest(self.run.path / "checkpoints")
        for problem in broken:
            self.run.log(f"passed over: {problem}")
            print(f"passed over: {problem}", file=sys.stderr)
        if found is not None:
            loop = found.parts["loop"]
            self.learner.load(found.parts)
            self.done, self.best = found.step, float(loop["best"])
            self.spent = {name: float(loop[name]) for name in self.spent}
        self.run.forget_after(self.done)
        self.run.log(f"starts at step {self.done} of {self.steps}")

    def log(self, seconds: float) -> dict[str, Any]:
        """Write a row of what was learned since the last; stop where it is not finite."""
        self.check_finite()
        window = self.learner.read_window()
        lr = self.recipe.optimizer.lr * factor(self.recipe.schedule, self.done - 1, self.steps)
        return self.add_row(
            "train", window.loss, window.top1, lr, window.grad_norm, window.images / seconds
        )

    def evaluate(self) -> Evaluation:
        """Measure the weights on the held-out images; keep them where they are the best so far."""
        self.check_finite()
        began = time.monotonic()
        model, dtype = self.learner.answering, self.recipe.train.dtype
        batches = list(logits(model, self.preprocess, self.held_out, dtype))
        evaluation = measure(
            torch.cat([scores for scores, _ in batches]).numpy(),
            torch.cat([labels for _, labels in batches]).numpy(),
            self.data.train.classes,
            failed=len(self.held_out.bad),
        )
        rate = evaluation.images / (time.monotonic() - began)
        self.add_row("val", evaluation.loss, evaluation.top1, None, None, rate)
        if evaluation.top1 > self.best:
            self.best = evaluation.top1
            save(self.bundle(evaluation), self.run.path / "best")
        return evaluation

    def save(self) -> None:
        """Write a checkpoint, if the weights are finite."""
        self.check_finite()
        parts = self.learner.state()
        parts["loop"] |= checkpoint.numbers({"best": self.best, **self.time_spent()})
        path = checkpoint.save(self.run.path / "checkpoints", self.done, parts)
        self.run.log(f"saved {path.name}")

    def finish(self, evaluation: Evaluation) -> None:
        """Leave the last weights, a few images to try, and the summary."""
        save(self.bundle(evaluation), self.run.path / "last")
        self.write_examples()
        self.write_summary("finished", evaluation)

    def end_early(self, error: BaseException) -> None:
        """Say in the summary how the run ended."""
        status = "failed"
        if isinstance(error, KeyboardInterrupt | SystemExit):
            status = "interrupted"
        elif isinstance(error, NonFiniteError):
            status = "nonfinite"
        if not isinstance(error, OutputError):  # a full disk takes no summary either
            self.run.log(f"{status} at step {self.done}: {error or type(error).__name__}")
            self.write_summary(status)

    def check_finite(self) -> None:
        """Raise `NonFiniteError` where a loss, gradient or weight is not finite."""
        if self.learner.is_finite():
            return
        step = int(self.learner.first_bad)
        step = self.done - 1 if step < 0 else step
        lr = self.recipe.optimizer.lr * factor(self.recipe.schedule, step, self.steps)
        kept = sorted(checkpoint.steps(self.run.path / "checkpoints").values())
        newest = (
            f"the last finite checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        )
        raise NonFiniteError(
            f"the loss, a gradient or a weight was not finite at step {step} (learning rate "
            f"{lr:.3g}); {newest}. A lower --lr or a longer --schedule.warmup is the usual cure"
        )

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
        self.run.add_metrics(row)
        return row

    def write_examples(self) -> None:
        """Copy a few held-out images, as far apart in the listing as can be."""
        source = self.data.held_out
        count = min(EXAMPLES, len(source))
        for i in range(count):
            place = i * len(source) // count
            name = source.name(place).replace("/", "-")
            write_bytes(self.run.path / "examples" / name, source.read(place))

    def write_summary(self, status: str, evaluation: Evaluation | None = None) -> None:
        bad = [*self.loader.bad.values(), *self.held_out.bad.values()]
        values: dict[str, Any] = {
            "status": status,
            "step": self.done,
            "steps": self.steps,
            "top1": evaluation and evaluation.top1,
            "top5": evaluation and evaluation.top5,
            "loss": evaluation and evaluation.loss,
            "best_top1": self.best if self.best >= 0 else None,
            "parameters": sum(p.numel() for p in self.learner.model.parameters()),
            "train_images": len(self.data.train),
            "held_out_images": len(self.data.held_out),
            **{name: round(value, 2) for name, value in self.time_spent().items()},
            "bad": [{"path": file.path, "reason": file.reason} for file in bad],
            "evaluation": evaluation and evaluation.to_json(),
        }
        self.run.write_summary(values)

    def bundle(self, evaluation: Evaluation) -> Bundle:
        """Give the weights so far as a bundle."""
        return Bundle(
            model=self.learner.answering,
            preprocess=self.preprocess,
            labels=self.data.train.classes,
            origin={"run": str(self.run.path), "data": self.recipe.data.source, "step": self.done},
            metrics={"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss},
        )

    def time_spent(self) -> dict[str, float]:
        """Wall and processor seconds of all sessions of this run."""
        return {
            "seconds": self.spent["seconds"] + time.monotonic() - self.began,
            "cpu_seconds": self.spent["cpu_seconds"] + time.process_time() - self.cpu_began,
        }

    def command(self) -> str:
        """Give the command that goes on with this run."""
        recipe = self.run.path / "recipe.toml"
        return f"vitrail train {self.recipe.data.source} --recipe {recipe} --out {self.run.path}"
