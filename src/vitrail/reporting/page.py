"""Pages of a run and of an evaluation: HTML files that need nothing but a browser."""

import base64
import hashlib
import shlex
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from vitrail.data.sources import Source
from vitrail.reporting import story
from vitrail.reporting.album import Place, place_of
from vitrail.reporting.curves import Line, dashes, draw
from vitrail.reporting.drawing import Chart
from vitrail.reporting.evaluated import read_evaluation
from vitrail.reporting.measured import measured
from vitrail.reporting.run_files import RunFiles, read_run
from vitrail.weights.disk import write_bytes

PAGE = "report.html"
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


def write_run_page(
    run: Path,
    summary: dict[str, Any] | None = None,
    held_out: Source | None = None,
    path: Path | None = None,
) -> Path:
    """Write `report.html` into a run folder, or `path`, from the files that are there.

    `summary` stands for the `summary.json` that will be written when the page is there, `held_out`
    for the images that the recipe's data holds out, where they are open. Gives the page's path.
    Raises `DataError` where the folder holds no run, `OutputError` where it cannot be written.
    """
    files, shown = read_run(run, summary), None
    if files.evaluated:
        place = place_of(files.evaluated.found, run)
        if not place.data:  # a run of old: its summary alone has figures
            place = Place(story.data_of(files), {}, str(run))
        shown = measured(files.evaluated, place._replace(source=held_out))
    bad = files.summary.get("bad", [])
    return write_page(
        path or run / PAGE,
        "run.html",
        name=run.resolve().name,
        status=files.summary.get("status", "unknown"),
        sentence=story.sentence(files),
        baseline=story.baseline(files),
        figures=list(story.figures(files)),
        curves=list(_charts(files)),
        shown=shown,
        examples=files.examples,
        bad=bad[:_MOST_BAD],
        bad_count=len(bad),
        data=list(story.data(files)),
        commands=story.commands(files),
        recipe=files.recipe,
        surroundings=list(story.surroundings(files.environment)),
        missing=[*story.missing(files), *(shown.notes if shown else ())],
    )


def write_evaluation_page(folder: Path, path: Path | None = None) -> Path:
    """Write `report.html` into a folder of `vitrail eval -o`, or `path`, and give its path."""
    evaluated = read_evaluation(folder)
    found = evaluated.found
    place = place_of(found)
    shown = measured(evaluated, place)
    lacking = ["predictions.jsonl is not in the folder: mistakes and doubts, image by image."] * (
        evaluated.answers is None
    )
    model, data = place.model or "MODEL", place.data or "DATA"
    again = shlex.join(["vitrail", "eval", model, data, "-o", str(folder)])
    return write_page(
        path or folder / PAGE,
        "evaluation.html",
        name=folder.resolve().name,
        sentence=story.evaluation_sentence(found),
        baseline=story.guess(found),
        figures=list(story.measures(found)),
        shown=shown,
        commands=[story.Command("Measure the same again", again)],
        missing=[*lacking, *shown.notes],
    )


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill a template and write it; gives the path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = "{:.1%}".format
    environment.filters["commas"] = "{:,}".format
    environment.filters["svg"] = Markup  # a chart is markup; its words were escaped when drawn
    script = (here / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        **values, script=Markup(script), script_digest=digest
    )
    # A name that is not UTF-8 is shown by its escapes.
    write_bytes(path, page.encode("utf-8", "backslashreplace"))
    return path


def _charts(run: RunFiles) -> Iterator[Chart]:
    """Draw what the rows hold: loss, accuracy, learning rate, step length, use of the device."""
    if run.train or run.val:
        yield _chart(
            "loss", "Loss", run, "How surprised the model is by the right answers; lower is better."
        )
        yield _chart("top1", "Accuracy", run, "The share of images named right; higher is better.")
    for key, title, note in _ALONE:
        rows = [row for row in run.train if _is_drawn(row.get(key))]
        if rows:
            line, percent = _line("ink", rows, key), key == "peak_share"
            show = "{:.1%}".format if percent else "{:.3g}".format
            alt = f"{title}: highest {show(max(line.values))}, at the end {show(line.values[-1])}."
            yield Chart(title, draw(alt, [line], percent=percent), note)


def _chart(key: str, title: str, run: RunFiles, note: str) -> Chart:
    lines = [_line(split, rows, key) for split, rows in _splits(run)]
    show = "{:.1%}".format if key == "top1" else "{:.3g}".format
    names = {"train": "training images", "val": "held-out images"}
    alt = f"{title} over epochs: " + "; ".join(
        f"of {names[line.colour]} from {show(line.values[0])} to {show(line.values[-1])}"
        for line in lines
    )
    accuracy = key == "top1"
    svg = draw(f"{alt}.", lines, percent=accuracy, from_zero=not accuracy)
    return Chart(title, svg, note)


def _is_drawn(value: float | None) -> bool:
    """Say whether a figure is there, as in older runs some are not, and finite."""
    return value is not None and isfinite(value)


def _splits(run: RunFiles) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(split, rows) for split, rows in (("train", run.train), ("val", run.val)) if rows]


def _line(colour: str, rows: list[dict[str, Any]], key: str) -> Line:
    values = [row["epoch"] for row in rows], [row[key] for row in rows]
    return Line(colour, *values, dashes(-1) if colour == "train" else (), dotted=colour == "val")
