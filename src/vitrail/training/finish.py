"""What a session leaves at the end: the last weights, images to try, a summary and the page."""

from statistics import median
from typing import Any

import numpy as np

from vitrail.inference.evaluate import Evaluation
from vitrail.inference.evaluation_files import about, write_evaluation
from vitrail.reporting.page import write_run_page
from vitrail.training.session import Session
from vitrail.weights.bundle import save
from vitrail.weights.disk import write_bytes

EXAMPLES = 10  # held-out images that a run leaves, to try `predict` on
_MOST_WHOLE = 100  # classes; of more, predictions.jsonl has the likeliest alone


def finish(session: Session, evaluation: Evaluation) -> dict[str, Any]:
    """Leave the last weights, a few images to try and the page; give the summary."""
    run, bundle = session.run, session.bundle(evaluation)

    def leave() -> dict[str, Any]:
        session.saver.settle()
        save(bundle, run.path / "last")
        write_examples(session)
        session.saver.prune(run, session.done)  # of a run that was killed while it did
        run.log(f"finished at step {session.done}")
        found = summary(session, "finished", evaluation)
        write_answers(session)
        write_run_page(run.path, found, session.data.held_out)
        return found

    return session.world.alone(leave)


def write_examples(session: Session) -> None:
    """Copy a few held-out images, as far apart in the listing as can be."""
    source = session.data.held_out
    readable = [i for i in range(len(source)) if i not in session.held_out.bad]
    count = min(EXAMPLES, len(readable))
    taken: set[str] = set()
    for i in range(count):
        place = readable[i * len(readable) // count]
        name = source.name(place).replace("/", "-")[-200:]
        if name in taken:  # two classes may share names once the slash is gone
            name = f"{place}-{name}"
        taken.add(name)
        write_bytes(session.run.path / "examples" / name, source.read(place))


def write_answers(session: Session) -> None:
    """Write the answers to the held-out images and what they say, as `vitrail eval -o` does."""
    scored = session.scored
    assert scored is not None  # the weights have just been measured
    model, data = str(session.run.path), session.recipe.data.source
    values = scored.evaluation().to_json() | about(model, data, session.data_options())
    values |= {"engine": "torch", "dtype": session.recipe.train.dtype}
    whole = len(scored.names) <= _MOST_WHOLE
    write_evaluation(values, scored, session.run.path, whole=whole)


def write_summary(session: Session, status: str, error: str | None = None) -> None:
    """Write what is known of a run that has not been trained to its end."""
    if session.world.is_first:
        session.run.write_summary(summary(session, status, error=error))


def summary(
    session: Session, status: str, evaluation: Evaluation | None = None, error: str | None = None
) -> dict[str, Any]:
    """Give what `summary.json` says."""
    learner, loaders = session.learner, (session.loader, session.held_out)
    rows, classes = session.run.rows(), len(session.data.train.classes)
    # By their places: threads find them in any order.
    bad = [loader.bad[i] for loader in loaders for i in sorted(loader.bad)]
    return {
        "status": status,
        "error": error,
        "step": session.done,
        "steps": session.steps,
        "top1": evaluation and evaluation.top1,
        "top5": evaluation and evaluation.top5,
        "loss": evaluation and evaluation.loss,
        "best_top1": session.best if session.best >= 0 else None,
        "best_step": next((row["step"] for row in rows if _is_best(session, row)), None),
        "skipped_steps": learner.meters.skipped,
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "train_images": len(session.data.train),
        "train_per_class": np.bincount(session.loader.labels, minlength=classes).tolist(),
        "held_out_images": len(session.data.held_out),
        **{name: round(value, 2) for name, value in session.clock.total().items()},
        "images_per_second": _middle(rows, "images_per_second"),
        "peak_share": _middle(rows, "peak_share"),
        "bad": [{"path": file.path, "reason": file.reason} for file in bad],
        "evaluation": evaluation and evaluation.to_json(),
    }


def _is_best(session: Session, row: dict[str, Any]) -> bool:
    return row["split"] == "val" and row["top1"] == session.best


def _middle(rows: list[dict[str, Any]], name: str) -> float | None:
    """Give the median of a figure of training: the first row is of a device that is still cold."""
    known = [row[name] for row in rows if row["split"] == "train" and row.get(name) is not None]
    return median(known) if known else None
