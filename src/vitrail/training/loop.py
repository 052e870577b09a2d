"""The training loop: load, step, log, save, evaluate."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.data.progress import tell
from vitrail.errors import ConfigError, NonFiniteError, OutputError
from vitrail.reporting.page import write_run_page
from vitrail.training import record
from vitrail.training.display import Display
from vitrail.training.finish import finish, write_summary
from vitrail.training.interrupt import Interrupt, listening
from vitrail.training.joining import connected, joined
from vitrail.training.lock import held, sweep
from vitrail.training.opening import opened
from vitrail.training.process import memory_kept, repeatable, told_of_memory, undisturbed
from vitrail.training.recipe import Recipe, read_recipe
from vitrail.training.resume import begin, take_up
from vitrail.training.run_folder import choose, claim, is_finished
from vitrail.training.session import Session
from vitrail.training.trackers import check_installed, trackers
from vitrail.training.trial import Trial, settled, trial
from vitrail.training.world import World
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
    with memory_kept(), joined(recipe.train.device) as world, connected(world):
        return _train(recipe, out, resume, override, world)


def _train(
    recipe: Recipe, out: str | Path | None, resume: bool, override: bool, world: World
) -> Run:
    run = world.alone(lambda: choose(recipe, out, resume))
    recipe, data = opened(recipe, world)
    facts = {"classes": list(data.train.classes), "data_digest": data.digest}
    if world.alone(lambda: is_finished(run, recipe, facts, override=override)):
        world.alone(lambda: sweep(run.path))
        return Run(run.path, world.alone(run.summary))
    world.alone(lambda: check_installed(recipe.train))
    with _settings(recipe, world):
        session = world.together(lambda: Session(recipe, data, run, world=world))
        # Also where the flags of other processes are others: it is the first one's that count.
        is_new = out is None and not resume
        run = session.run = world.alone(lambda: claim(recipe) if is_new else run)
        several = world.size > 1
        with listening(world.interrupt, shared=several) as interrupt, ExitStack() as stack:
            world.alone(lambda: stack.enter_context(held(run.path)))
            # Once more: another process may have had the folder until now.
            if not world.alone(lambda: is_finished(run, recipe, facts, override=override)):
                _work(session, facts, interrupt)
    return Run(run.path, world.alone(run.summary))


def dry_run(recipe: Recipe | str | Path) -> Trial:
    """Take a few steps of a recipe and write nothing: the time and memory to expect."""
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    with joined(recipe.train.device) as world, connected(world):
        recipe, data = opened(recipe, world)
        with _settings(recipe, world):
            return trial(recipe, data, world=world)


@contextmanager
def _settings(recipe: Recipe, world: World) -> Iterator[None]:
    """Have torch work as the recipe says, and afterwards as before."""
    how = recipe.train
    with undisturbed(how.cpu_threads), repeatable(world.device(how.device), how.deterministic):
        yield


def _work(session: Session, facts: dict[str, Any], interrupt: Interrupt) -> None:
    """Bring a run to its end, or say in its summary why it ended early."""
    try:
        try:
            with connected(session.world):
                session = settled(session)
                with interrupt.later():
                    begin(session, facts)
                take_up(session)
                session.world.alone(lambda: write_summary(session, "running"))
                if session.world.is_first:
                    session.trackers = trackers(session.run, session.asked, session.done)
                _steps(session, interrupt)
                # A run that was stopped right here has its rows: it is measured again, no more.
                evaluation = session.last or session.measure()
                with interrupt.later():
                    summary = finish(session, evaluation)
                session.world.alone(lambda: session.run.write_summary(summary))
        except BaseException as error:
            if interrupt.urgent or not interrupt.caused(error):
                raise
            record.save(session)
            session.settle()
            if session.world.is_first:
                tell(f"stopped at step {session.done}; this goes on:\n  {session.command()}")
            interrupt.leave()
    except BaseException as error:
        reason = str(error) or type(error).__name__
        with suppress(OutputError):
            session.saver.settle()
        with suppress(OutputError):  # a full disk may have no room for them either
            if session.world.is_first and session.run.is_begun():
                session.run.log(f"{_status(error)} at step {session.done}: {reason}")
                write_summary(session, _status(error), error=reason)
                if not interrupt.urgent:
                    write_run_page(session.run.path)
        raise
    finally:
        if not interrupt.urgent:  # last: a server that does not answer keeps no file waiting
            session.trackers.close()


def _steps(session: Session, interrupt: Interrupt) -> None:
    """Take the steps that are left: load, step, log, save, evaluate."""
    train = session.recipe.train
    with Display(
        session.steps, session.done, session.per_epoch, is_shown=session.world.is_first
    ) as display:
        if record.owes_evaluation(session):
            display.evaluated(record.evaluate(session).top1)
        for batch in session.batches():
            if session.is_over():
                with interrupt.later():
                    record.save(session)
                return
            with interrupt.later():
                with told_of_memory(session.at_once, session.device):
                    session.learner.step(batch, session.done)
                session.done += 1
                display.step(session.done)
                if session.learner.is_logged(session.done):
                    display.train(record.log(session))
                if session.is_due(train.save_every):
                    record.save(session)
            # Last: an evaluation may take minutes, and a run that is stopped in it takes it again.
            if session.is_due(train.evaluate_every):
                display.evaluated(record.evaluate(session).top1)


def _status(error: BaseException) -> str:
    """Give the word in `summary.json` for a run that ended with `error`."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    return "nonfinite" if isinstance(error, NonFiniteError) else "failed"
