"""The beginning of a session: the run's folder, and the checkpoint that it goes on from."""

from collections.abc import Mapping
from typing import Any

from vitrail.data.progress import tell
from vitrail.inference.peak import matrix_rate
from vitrail.training import checkpoint
from vitrail.training.checkpoint import Checkpoint
from vitrail.training.session import Session
from vitrail.weights.disk import check_room


def begin(session: Session, facts: Mapping[str, Any]) -> None:
    """Write what is known before the first step, if there is room for all that comes."""
    _measure_peak(session)
    tflops = session.peak and round(session.peak / 1e12, 4)

    def write() -> None:
        _check_room(session)
        session.run.start(session.asked, {**facts, "matrix_tflops": tflops})

    session.world.alone(write)


def _measure_peak(session: Session) -> None:
    """Find out how fast all devices together multiply matrices."""
    world, device, dtype = session.world, session.device, session.recipe.train.dtype
    rates = world.exchange(world.together(lambda: matrix_rate(device, dtype)))
    known = [rate for rate in rates if rate is not None]
    session.peak = sum(known) if len(known) == len(rates) else None


def _check_room(session: Session) -> None:
    """Raise `OutputError` where the disk has no room for what the run will write at least."""
    train, learner, run = session.recipe.train, session.learner, session.run
    weights = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    # The weights, their running mean, and one number a weight of the optimizer (AdamW has two).
    checkpoint_bytes = weights * (3 if learner.mean is not None else 2)
    saves = -(-session.steps // (train.save_every * session.per_epoch))
    kept = min(saves, train.keep + 1)  # a new one is written before an old one goes
    there = sum(file.stat().st_size for file in run.path.rglob("*.safetensors"))
    check_room(run.path, kept * checkpoint_bytes + 2 * weights - there)


def take_up(session: Session) -> None:
    """Load the newest whole checkpoint, if there is one, and forget what came after it."""
    world, learner = session.world, session.learner
    found = _newest(session)
    if world.size > 1:
        # Also at the very beginning: other processors draw other last bits.
        own = found.parts if found else learner.parallel.gathered(learner.state())
        parts = world.spread(own)
        world.together(lambda: learner.load(parts))
        learner.rehearse()
    elif found is not None:
        learner.load(found.parts)
    if found is not None:
        session.done = session.saved = session.logged = found.step
    session.best, session.stale = world.alone(lambda: _look_back(session))


def _newest(session: Session) -> Checkpoint | None:
    """Give the newest whole checkpoint, on all processes, its tensors on the first one."""
    found: Checkpoint | None = None

    def read() -> int | None:
        nonlocal found
        found, session.saver.broken = checkpoint.newest(session.run.checkpoints)
        _tell_broken(session, found)
        if found is not None:
            session.clock.go_on_from(found.parts["loop"])
        return found and found.step

    step = session.world.alone(read)
    return found if session.world.is_first or step is None else Checkpoint(step, {})


def _tell_broken(session: Session, found: Checkpoint | None) -> None:
    broken = session.saver.broken
    if broken:
        step, problem = next(iter(broken.items()))
        more = f" (and {len(broken) - 1} older ones)" if len(broken) > 1 else ""
        used = f"checkpoint step-{found.step:08d}" if found else "the beginning"
        text = f"passed over step-{step:08d}{more}: {problem}; the run goes on from {used}"
        session.run.log(text)
        tell(text)


def _look_back(session: Session) -> tuple[float, int]:
    """Drop the rows of steps that are taken again; give the best accuracy, and how stale."""
    run = session.run
    run.forget_after(session.done)
    run.log(f"starts at step {session.done} of {session.steps}")
    # A bundle is written before its row: the best of the rows is the one in best/.
    measured = [row["top1"] for row in run.rows() if row["split"] == "val"]
    best = max(measured, default=-1.0)
    return best, len(measured) - 1 - measured.index(best) if measured else 0
