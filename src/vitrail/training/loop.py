"""The training loop: load, step, log, evaluate, save."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.data.sources import open_data
from vitrail.errors import ConfigError, NonFiniteError, OutputError
from vitrail.inference.runner import undisturbed
from vitrail.reporting.page import write_run_page
from vitrail.training.display import Display, tell
from vitrail.training.interrupt import listening
from vitrail.training.recipe import Recipe, read_recipe
from vitrail.training.run_folder import check_same, choose
from vitrail.training.session import Session
from vitrail.weights.bundle import Bundle
from vitrail.weights.loading import load


class Run(NamedTuple):
    """A run that has ended: its folder, and what its `summary.json` says."""

    folder: Path
    summary: dict[str, Any]

    def bundle(self, which: str = "last") -> Bundle:
        """Load the bundle `last` or `best` (by accuracy on the held-out images)."""
        if which not in ("last", "best"):
            raise ConfigError(f'a run has the bundles "last" and "best", not "{which}"')
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
    where = recipe.data
    data = open_data(
        where.source,
        where.held_out_share,
        where.split_seed,
        image_column=where.image_column,
        label_column=where.label_column,
    )
    for note in data.notes:
        tell(note)
    recipe = replace(recipe, model=recipe.model.replace(classes=len(data.train.classes)))
    run = choose(recipe, out, resume)
    facts = {"classes": list(data.train.classes), "data_digest": data.digest}
    if (run.path / "recipe.toml").is_file():
        check_same(run, recipe, facts, override=override)
        if run.summary().get("status") == "finished":
            return Run(run.path, run.summary())
    with undisturbed(recipe.train.cpu_threads):
        _work(Session(recipe, data, run), facts)
    write_run_page(run.path)
    return Run(run.path, run.summary())


def _work(session: Session, facts: dict[str, Any]) -> None:
    """Bring a run to its end, or say in its summary why it ended early."""
    run = session.run
    run.start(session.recipe, facts)
    try:
        session.take_up()
        session.write_summary("running")
        _steps(session)
        session.finish()
    except BaseException as error:
        if not isinstance(error, OutputError):  # a full disk takes no summary either
            reason = str(error) or type(error).__name__
            run.log(f"{_status(error)} at step {session.done}: {reason}")
            session.write_summary(_status(error), error=reason)
            write_run_page(run.path)
        raise


def _steps(session: Session) -> None:
    """Take the steps that are left: load, step, log, evaluate, save."""
    train, per_epoch = session.recipe.train, session.per_epoch
    with listening() as interrupt, Display(session.steps, session.done, per_epoch) as display:
        for batch in session.batches():
            session.learner.step(batch, session.done)
            session.done += 1
            display.step(session.done)
            done, last = session.done, session.done == session.steps

            if done % train.log_every == 0 or last:
                row = session.log()
                display.train(done, row["loss"], row["top1"], row["images_per_second"])
            if done % (train.evaluate_every * per_epoch) == 0 or last:
                display.evaluated(session.evaluate().top1)
            if done % (train.save_every * per_epoch) == 0 or last:
                session.save()
            if interrupt.received is not None and not last:
                session.save()
                display.say(f"stopped at step {done}; this goes on:\n  {session.command()}")
                interrupt.leave()


def _status(error: BaseException) -> str:
    """Give the word in `summary.json` for a run that ended with `error`."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    return "nonfinite" if isinstance(error, NonFiniteError) else "failed"
