"""The page of a run: one HTML file that needs nothing but a browser."""

from collections.abc import Iterator
from heapq import nsmallest
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.reporting import story
from vitrail.reporting.curves import Line, draw
from vitrail.reporting.run_files import RunFiles, read_run
from vitrail.weights.disk import write_bytes

MOST_MATRIX = 30  # classes; a larger confusion matrix is read by no one
_MOST_CLASSES = 200  # rows of the class table, the worst first where there are more
_MOST_PAIRS = 10
_MOST_PAIRS_ALONE = 30  # where no matrix is shown beside them
_MOST_BAD = 50
# What training alone knows: one line in a chart of its own.
_ALONE = (
    ("lr", "Learning rate", "How large a step may be."),
    ("update_norm", "Step length", "How far a step moves all weights together, their L2 norm."),
    (
        "peak_share",
        "Use of the device",
        "Of the matrix arithmetic it can do at most, the share that trained this model.",
    ),
)


class Pair(NamedTuple):
    """Images of one class that were taken for another; `share` is of all images of `true`."""

    true: str
    answer: str
    images: int
    share: float


class Chart(NamedTuple):
    title: str
    svg: str
    note: str


def write_run_page(run: Path, summary: dict[str, Any] | None = None) -> Path:
    """Write `report.html` into a run folder, from the files that are there, and give its path.

    `summary` stands for the `summary.json` that will be written when the page is there.
    Raises `DataError` where the folder holds no run, `OutputError` where it cannot be written.
    """
    files = read_run(run)
    if summary is not None:
        files = files._replace(summary=summary)
    path = run / "report.html"
    write_bytes(path, _render(files).encode())
    return path


def _render(run: RunFiles) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = "{:.1%}".format
    found = run.summary.get("evaluation")
    bad = run.summary.get("bad", [])
    return environment.get_template("run.html").render(
        name=run.folder.resolve().name,
        status=run.summary.get("status", "running"),
        sentence=story.sentence(run),
        baseline=story.baseline(run),
        figures=list(story.figures(run)),
        charts=[chart._replace(svg=Markup(chart.svg)) for chart in _charts(run)],
        found=found,
        matrix=bool(found) and len(found["per_class"]) <= MOST_MATRIX,
        pairs=_pairs(found) if found else [],
        classes=_classes(found) if found else [],
        examples=run.examples,
        bad=bad[:_MOST_BAD],
        bad_count=len(bad),
        commands=story.commands(run),
        recipe=run.recipe,
        surroundings=list(story.surroundings(run.environment)),
    )


def _charts(run: RunFiles) -> Iterator[Chart]:
    """Draw what the rows hold: loss, accuracy, learning rate, step length, use of the device."""
    if run.train or run.val:
        yield _chart(
            "loss", "Loss", run, "How surprised the model is by the right answers; lower is better."
        )
        yield _chart("top1", "Accuracy", run, "The share of images named right; higher is better.")
    for key, title, note in _ALONE:
        rows = [row for row in run.train if row.get(key) is not None]  # older runs lack some
        if rows:
            line, percent = _line("ink", rows, key), key == "peak_share"
            show = "{:.1%}".format if percent else "{:.3g}".format
            alt = f"{title}: highest {show(max(line.values))}, at the end {show(line.values[-1])}."
            yield Chart(title, draw(key.replace("_", "-"), alt, [line], percent=percent), note)


def _chart(key: str, title: str, run: RunFiles, note: str) -> Chart:
    lines = [_line(split, rows, key) for split, rows in _splits(run)]
    show = "{:.1%}".format if key == "top1" else "{:.3g}".format
    names = {"train": "training images", "val": "held-out images"}
    alt = f"{title} over epochs: " + "; ".join(
        f"of {names[line.colour]} from {show(line.values[0])} to {show(line.values[-1])}"
        for line in lines
    )
    accuracy = key == "top1"
    svg = draw(key, f"{alt}.", lines, percent=accuracy, from_zero=not accuracy)
    return Chart(title, svg, note)


def _splits(run: RunFiles) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(split, rows) for split, rows in (("train", run.train), ("val", run.val)) if rows]


def _line(colour: str, rows: list[dict[str, Any]], key: str) -> Line:
    return Line(colour, [row["epoch"] for row in rows], [row[key] for row in rows])


def _pairs(found: dict[str, Any]) -> list[Pair]:
    """Give the pairs of classes that were mistaken most often, the most frequent first."""
    names = [c["label"] for c in found["per_class"]]
    pairs = (
        Pair(names[true], names[answer], count, count / sum(row))
        for true, row in enumerate(found["confusion"])
        for answer, count in enumerate(row)
        if count and true != answer
    )
    most = _MOST_PAIRS if len(names) <= MOST_MATRIX else _MOST_PAIRS_ALONE
    return nsmallest(most, pairs, key=lambda pair: -pair.images)


def _classes(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the rows of the class table: all in their order, or the worst of very many."""
    classes = found["per_class"]
    if len(classes) <= MOST_MATRIX:
        return classes
    return nsmallest(_MOST_CLASSES, classes, key=lambda c: c["f1"])
