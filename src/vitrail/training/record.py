"""What a session writes on the way: rows of metrics, the best weights, checkpoints."""

import time
from typing import Any

from vitrail.inference.evaluate import Evaluation
from vitrail.training import checkpoint
from vitrail.training.meters import Window
from vitrail.training.parallel import Parts
from vitrail.training.session import Session
from vitrail.weights.bundle import save as save_bundle


def log(session: Session) -> dict[str, Any]:
    """Write a row of what was learned since the last; stop where it is not finite."""
    session.check_finite()
    session.share()
    window = session.learner.meters.read()
    if window.skipped:
        _note_skipped(session, window)
    rate = window.timed / session.clock.lap()
    row = _row(session, "train", window.loss, window.top1, rate) | {
        "lr": session.lr(session.done - 1),
        "grad_norm": window.grad_norm,
        "update_norm": window.update_norm,
        "peak_share": _peak_share(session, rate),
    }
    session.logged = session.done
    _add_row(session, row)
    return row


def evaluate(session: Session) -> Evaluation:
    """Measure the weights, keep them where they are the best so far, and write a row."""
    with session.clock.aside():
        began = time.monotonic()
        evaluation = session.measure()
        rate = evaluation.images / (time.monotonic() - began)
        session.stale += 1
        if evaluation.top1 > session.best:
            session.best, session.stale = evaluation.top1, 0
            bundle = session.bundle(evaluation)
            session.world.alone(lambda: save_bundle(bundle, session.run.path / "best"))
        # Last, so that a run that died before takes all of it again.
        _add_row(session, _row(session, "val", evaluation.loss, evaluation.top1, rate))
    session.last = evaluation
    return evaluation


def owes_evaluation(session: Session) -> bool:
    """Say whether the run was stopped before it had measured the weights that it took up."""
    if not session.done or not session.is_due(session.recipe.train.evaluate_every):
        return False
    rows = session.world.alone(session.run.rows)
    return (session.done, "val") not in [(row["step"], row["split"]) for row in rows]


def save(session: Session) -> None:
    """Write a checkpoint, if there is none of this step and the weights are finite."""
    if session.saved == session.done:
        return
    session.check_finite()
    with session.clock.aside():
        parts = session.learner.state()
        parts["loop"] |= checkpoint.numbers(session.clock.total())
        parallel = session.learner.parallel
        if parallel.is_sharded and session.recipe.parallel.checkpoints == "sharded":
            _save_pieces(session, parallel.own(parts))
        else:
            parts = parallel.gathered(parts)
            session.world.alone(lambda: session.saver.save(session.run, session.done, parts))
        session.saved = session.done


def _save_pieces(session: Session, pieces: Parts) -> None:
    run, world, done = session.run, session.world, session.done
    world.alone(run.settle_metrics)  # no checkpoint outlives the rows before it
    path = checkpoint.save_shards(run.checkpoints, done, pieces, world)
    world.alone(lambda: session.saver.saved(run, done, path))


def _note_skipped(session: Session, window: Window) -> None:
    """Log the steps that were left out; where none was taken, stop."""
    what = f"{window.skipped} steps up to step {session.done} were not finite and left out"
    total = session.learner.meters.skipped
    session.world.alone(lambda: session.run.log(f"{what}; {total} so far"))
    if not window.images:
        session.stop(f"{what}: all there were")


def _peak_share(session: Session, images_per_second: float) -> float | None:
    """Give the share of the devices' matrix rate that was spent on what `training_macs` counts."""
    if session.peak is None:
        return None
    macs = session.learner.macs(session.logged, session.done)
    return round(2 * macs * images_per_second / session.peak, 4)


def _row(
    session: Session, split: str, loss: float, top1: float, images_per_second: float
) -> dict[str, Any]:
    """Give a row of `metrics.jsonl`, in which what only training knows is absent."""
    return {
        "step": session.done,
        "epoch": round(session.done / session.per_epoch, 3),
        "split": split,
        "loss": loss,
        "top1": top1,
        "lr": None,
        "grad_norm": None,
        "images_per_second": round(images_per_second, 1),
        "seconds": round(session.clock.total()["seconds"], 3),
        "update_norm": None,
        "peak_share": None,
    }


def _add_row(session: Session, row: dict[str, Any]) -> None:
    def add() -> None:
        session.run.add_metrics(row)
        session.trackers.add(row)

    session.world.alone(add)
