"""What happened in a run, in words and figures that need no training to understand."""

import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.data.address import located
from vitrail.reporting.run_files import RunFiles


class Figure(NamedTuple):
    """One number of the headline, and what stands under it."""

    name: str
    value: str
    note: str


class Command(NamedTuple):
    """A command to go on with, and what it does."""

    does: str
    line: str


def step_of(run: RunFiles) -> int:
    """Give the last step that the files know of; a running run's summary is that of its start."""
    rows = [row["step"] for row in (*run.train[-1:], *run.val[-1:])]
    return max([run.summary.get("step", 0), *rows])


def figures(run: RunFiles) -> Iterator[Figure]:
    """Give the headline: accuracy, errors, parameters, time; only what is known."""
    summary = run.summary
    if run.evaluated:
        yield from measures(run.evaluated.found)
    elif run.val:
        row = run.val[-1]
        yield Figure("Accuracy so far", f"{row['top1']:.2%}", f"at step {row['step']:,}")
    if "parameters" in summary:
        yield Figure("Parameters", f"{summary['parameters']:,}", "numbers that were learned")
    seconds = max([summary.get("seconds", 0.0), *(r["seconds"] for r in run.train[-1:])])
    cpu = summary.get("cpu_seconds", 0.0)
    if seconds:
        # While a run goes on, its summary holds the processor time of its start.
        over = summary.get("status") != "running"
        note = f"{cpu:,.1f} CPU-seconds" if over else f"to step {step_of(run):,}"
        yield Figure("Time", duration(seconds), note)


def measures(found: Mapping[str, Any]) -> Iterator[Figure]:
    """Give accuracy and errors of an evaluation."""
    low, high = found["top1_interval"]
    yield Figure("Accuracy", f"{found['top1']:.2%}", f"95 % interval {low:.1%} to {high:.1%}")
    yield Figure("Errors", f"{wrong(found):,}", f"of {plural(found['images'], 'held-out image')}")


def evaluation_sentence(found: Mapping[str, Any]) -> str:
    """Say in one sentence what was measured."""
    right = found["images"] - wrong(found)
    return (
        f"{found.get('model', 'This model')} named {right:,} of "
        f"{plural(found['images'], 'held-out image')} of {found.get('data', 'the data')} right."
    )


def sentence(run: RunFiles) -> str:
    """Say in one sentence what happened."""
    summary, found = run.summary, run.evaluated and run.evaluated.found
    status, step = summary.get("status"), step_of(run)
    rows = [*run.train[-1:], *run.val[-1:]]
    # The last row may be some steps behind.
    epochs = f" ({plural(step * rows[0]['epoch'] / rows[0]['step'], 'epoch')})" if rows else ""
    of = f"{step:,} of {summary['steps']:,} steps" if "steps" in summary else plural(step, "step")
    if found:
        right = found["images"] - wrong(found)
        images = summary.get("train_images")
        on = "" if images is None else f" on {plural(images, 'labelled image')}"
        return (
            f"After {plural(step, 'step')}{epochs}{on}, this Vision Transformer named "
            f"{right:,} of {plural(found['images'], 'image')} right that were kept out of training."
        )
    if status == "interrupted":
        return f"This run was stopped after {of}{epochs}; it can go on from where it was saved."
    if status == "nonfinite":
        return (
            f"Training blew up after {of}{epochs}: the loss, a gradient or a weight was no finite "
            "number; a lower learning rate or a longer warm-up is the usual cure."
        )
    if status == "failed":
        return f"This run failed after {of}{epochs}; the last line of log.txt says why."
    if status is None:
        return (
            f"Whether this run has ended is not known, as it has no summary.json: {of} were taken."
        )
    return (
        f"This run had not ended when this page was written: {of} were taken{epochs}. If nothing "
        "trains it any more, it was killed, and can go on from where it was saved."
    )


def guess(found: Mapping[str, Any]) -> str:
    """Say what answering without looking would reach."""
    most = max(c["count"] for c in found["per_class"]) / found["images"]
    return f"Always answering the most frequent class would be right for {most:.1%} of them."


def baseline(run: RunFiles) -> str:
    """Say what answering without looking would reach, and what the best on the way did."""
    if not run.evaluated:
        return ""
    found = run.evaluated.found
    text, best = guess(found), run.summary.get("best_top1")
    if best and best > found["top1"] + 1e-9:
        text += (
            f" The weights reported here are the last. On the way {best:.2%} was reached, by the "
            "weights kept in best/; chosen by these same images, that figure flatters a little."
        )
    return text


def commands(run: RunFiles) -> list[Command]:
    """Give the commands that repeat, continue, use and measure this run."""
    folder, data = shlex.quote(str(run.folder)), shlex.quote(data_of(run))
    again = f"vitrail train {data} --recipe {shlex.quote(str(run.folder / 'recipe.toml'))}"
    found = [Command("Train the same again, into a new folder", again)]
    if run.summary.get("status") != "finished":
        found.append(Command("Go on with this run", f"{again} --out {folder}"))
    if (run.folder / "last").is_dir() or (run.folder / "best").is_dir():
        images = f"{folder}/examples/*" if run.examples else "IMAGE..."
        found.append(Command("Ask it about images", f"vitrail predict {folder} {images}"))
        found.append(Command("Measure it on labelled images", f"vitrail eval {folder} {data}"))
    return found


def data(run: RunFiles) -> Iterator[tuple[str, str]]:
    """Give what is known of the images, as names and texts."""
    if run.recipe:
        yield "data", data_of(run)
    if classes := run.environment.get("classes"):
        few = ", ".join(map(str, classes[:8])) + ", ..." * (len(classes) > 8)
        yield "classes", f"{len(classes):,}: {few}"
    counts = run.summary.get("train_per_class")
    if "train_images" in run.summary:
        yield "training images", f"{run.summary['train_images']:,}{_balance(counts)}"
    if run.evaluated:
        held = [c["count"] for c in run.evaluated.found["per_class"]]
        yield "held-out images", f"{sum(held):,}{_balance(held)}"
    elif "held_out_images" in run.summary:
        yield "held-out images", f"{run.summary['held_out_images']:,}"
    if run.evaluated and (sizes := run.evaluated.found.get("sizes")):
        low, high = sizes[0]["low"], sizes[-1]["high"]
        yield "shorter side", f"{low:,}{'' if low == high else f' to {high:,}'} pixels (held-out)"
    if "bad" in run.summary:
        yield "unreadable files", f"{len(run.summary['bad']):,}"
    if digest := run.environment.get("data_digest"):
        yield "digest of the listing", str(digest)[:16]


def _balance(counts: list[int] | None) -> str:
    """Say how many images the classes have."""
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f", {low:,} of each class" if low == high else f", {low:,} to {high:,} a class"


def missing(run: RunFiles) -> Iterator[str]:
    """Say what a page cannot show for want of a file, and how to come by it."""
    told = {
        "summary.json": "how the run ended and what it took",
        "metrics.jsonl": "how it learned",
        "recipe.toml": "the recipe, and with it the commands' data",
        "environment.json": "where it was made",
    }
    for name in run.absent:
        yield f"{name} is not in the folder: {told[name]}."
    folder, data = shlex.quote(str(run.folder)), shlex.quote(data_of(run))
    measure = f"`vitrail eval {folder} {data} -o FOLDER` and `vitrail report FOLDER` show them."
    if run.evaluated is None:
        yield (
            "The held-out images were not measured to the end: accuracy by class, confusions, "
            f"calibration and mistakes. {measure}"
        )
    elif not run.evaluated.detailed:
        yield (
            "evaluation.json is not in the folder: calibration, coverage, doubtful labels. "
            + measure
        )
    elif run.evaluated.answers is None:
        yield f"predictions.jsonl is not in the folder: mistakes and doubts. {measure}"


def surroundings(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give what is known of the machine and the versions, as names and texts."""
    for name, value in environment.items():
        if name == "command":
            value = shlex.join([Path(value[0]).name, *value[1:]]) if value else "none"
        elif name == "classes":
            value = f"{len(value):,}"
        elif value is None:
            value = "none"
        yield name.replace("_", " "), str(value)


def wrong(evaluation: Mapping[str, Any]) -> int:
    """Give the number of images that were named wrong."""
    return sum(
        count
        for true, row in enumerate(evaluation["confusion"])
        for answer, count in enumerate(row)
        if true != answer
    )


def duration(seconds: float) -> str:
    """Give a time as people say it: 6.7 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:,.0f} h {seconds % 3600 // 60:.0f} min"


def plural(count: float, noun: str) -> str:
    """Give `1 step`, `1,437 steps`, `5.5 epochs`."""
    count = round(count, 1)
    return f"{count:,.10g} {noun}{'' if count == 1 else 's'}"


def data_of(run: RunFiles) -> str:
    """Give the DATA that a run's recipe names, as it is found from here."""
    try:
        data = str(tomllib.loads(run.recipe)["data"]["source"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return "DATA"  # an edited recipe is shown as it is
    return located(data, run.environment.get("started_in"))
