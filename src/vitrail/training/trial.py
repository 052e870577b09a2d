"""What a few steps tell before a run begins: their time, their memory, and what fits into both."""

import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vitrail.data.progress import tell
from vitrail.data.sources import Splits
from vitrail.errors import ConfigError
from vitrail.inference.peak import wait
from vitrail.training.parallel import is_sharded
from vitrail.training.process import told_of_memory
from vitrail.training.recipe import Recipe
from vitrail.training.run_folder import RunFolder
from vitrail.training.session import Session
from vitrail.training.world import World
from vitrail.weights.disk import write_json
from vitrail.weights.files import read_json

STEPS = 20  # that are timed, and then taken again by the run itself
_WARM = 3  # of them are slower: memory is new, and kernels are chosen
FILE = "settled.json"


class Trial(NamedTuple):
    """A few steps of a recipe: the seconds of one, of an evaluation, and the most memory."""

    step_seconds: float
    evaluation_seconds: float
    peak_bytes: int
    micro_batch: int
    steps: int  # of the whole run
    evaluations: int

    @property
    def seconds(self) -> float:
        """The time that the whole run is going to take."""
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {**self._asdict(), "seconds": self.seconds}


def settled(session: Session) -> Session:
    """Give the session with its steps and micro-batch settled, once for a run and its resumes.

    `train.minutes` becomes a number of steps, and a batch that does not fit a GPU's memory is
    taken in parts. What was decided stands in the run folder, and is not decided again.
    """
    recipe, data, run, world = session.recipe, session.data, session.run, session.world
    file = run.path / FILE
    values = world.alone(lambda: read_json(file) if file.is_file() else None)
    if values is None:
        if recipe.train.minutes is None and not _is_to_fit(session):
            return session
        found = trial(recipe, data, world=world)
        values = world.alone(lambda: _settle(session, found))
    whole = _with(recipe, values["steps"], values["micro_batch"])
    return world.together(lambda: Session(whole, data, run, recipe, world))


def _is_to_fit(session: Session) -> bool:
    """Say whether it is to be found out how many images fit the memory at once."""
    in_pieces = is_sharded(session.world, session.recipe)
    open_size = session.recipe.train.micro_batch is None and not in_pieces
    return open_size and session.device.type == "cuda"


def _settle(session: Session, found: Trial) -> dict[str, Any]:
    """Decide, and write down, what a trial has left open."""
    train = session.recipe.train
    steps = train.steps
    if train.minutes is not None:
        steps = _steps_within(60 * train.minutes, found, session)
        tell(f"{train.minutes:g} minutes are {steps:,} steps of {found.step_seconds:.3g} s")
    values = {"steps": steps, "micro_batch": found.micro_batch, "trial": found.to_json()}
    write_json(session.run.path / FILE, values)
    return values


def trial(recipe: Recipe, data: Splits, steps: int = STEPS, world: World | None = None) -> Trial:
    """Take a few steps of a run that is thrown away; half as many images at once until they fit."""
    if world is None or world.size == 1:
        return _halved(recipe, data, steps)
    size = recipe.train.micro_batch or _fitting(recipe, data, world)
    with told_of_memory(size, world.device(recipe.train.device)):
        return _tried(_with(recipe, recipe.train.steps, size), data, steps, world)


def _fitting(recipe: Recipe, data: Splits, world: World) -> int:
    """Give how many images of its share every process can take at once.

    Each tries by itself, for none may run out of memory while others wait for its gradient. The
    whole model may not fit where weights lie in pieces: the share is not split there.
    """
    share = recipe.train.batch_size // world.size
    if is_sharded(world, recipe) or world.device(recipe.train.device).type != "cuda":
        return share
    own = replace(recipe, train=replace(recipe.train, batch_size=share))
    found = world.together(lambda: _halved(own, data, _WARM), leaves=True)
    return min(world.exchange(found.micro_batch))


def _halved(recipe: Recipe, data: Splits, steps: int) -> Trial:
    """Try half as many images at once until they fit."""
    size = recipe.train.micro_batch or recipe.train.batch_size
    while True:
        try:
            return _tried(_with(recipe, recipe.train.steps, size), data, steps)
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise ConfigError(
                    "one image at a time does not fit the memory of this device; "
                    "give a smaller --model, --model.image-size or --train.recompute"
                ) from error
        torch.cuda.empty_cache()
        size = (size + 1) // 2


def _tried(recipe: Recipe, data: Splits, steps: int, world: World | None = None) -> Trial:
    world, nowhere = world or World(), RunFolder(Path("trial"))  # nothing is written there
    session = world.together(lambda: Session(recipe, data, nowhere, world=world))
    marks = [time.monotonic()]
    # Spread over the whole run, in which images may grow: the last ones need the most memory.
    numbers = (i * (session.steps - 1) // max(steps - 1, 1) for i in range(steps))
    for number, batch in zip(numbers, session.batches(), strict=False):
        session.learner.step(batch, number)
        wait(session.device)
        marks.append(time.monotonic())
    began = time.monotonic()
    session.measure()
    taken = len(marks) - 1
    warm = min(_WARM, taken - 1)  # of a run of very few steps the last one counts
    timed = (marks[-1] - marks[warm]) / (taken - warm)
    every = recipe.train.evaluate_every * session.per_epoch
    return Trial(
        step_seconds=timed,
        evaluation_seconds=time.monotonic() - began,
        peak_bytes=_peak(session.device),
        micro_batch=recipe.train.micro_batch or recipe.train.batch_size,
        steps=session.steps,
        evaluations=-(-session.steps // every),
    )


def _steps_within(seconds: float, found: Trial, session: Session) -> int:
    """Give the steps that take so long, with the evaluations between them."""
    every = session.recipe.train.evaluate_every * session.per_epoch
    each = found.step_seconds + found.evaluation_seconds / every
    return max(int((seconds - found.evaluation_seconds) / each), 1)


def _with(recipe: Recipe, steps: int | None, micro_batch: int) -> Recipe:
    train = replace(recipe.train, steps=steps, micro_batch=micro_batch)
    return replace(recipe, train=train)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Of the whole process, in kilobytes on Linux and in bytes on macOS.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
