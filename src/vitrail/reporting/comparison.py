"""Runs and evaluations side by side: curves, figures, recipes, and who is right where."""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.inference.comparing import Comparison, compare
from vitrail.reporting import intervals, story
from vitrail.reporting.album import place_of
from vitrail.reporting.curves import Line, dashes, draw
from vitrail.reporting.drawing import RUNS, Chart
from vitrail.reporting.evaluated import Evaluated, read_evaluation
from vitrail.reporting.intervals import Row
from vitrail.reporting.page import write_page
from vitrail.reporting.run_files import RunFiles, is_run, read_run

_MOST_LINES = 4 * RUNS  # that a colour and a style tell apart
_MOST_ALL_PAIRS = 5  # of more, each is compared with the most accurate alone
_SURE = 0.05  # the p-value below which luck is no explanation


class Entry(NamedTuple):
    """One run or evaluation; `data` says whose images were answered."""

    name: str
    run: RunFiles | None
    evaluated: Evaluated | None
    data: str

    @property
    def accuracy(self) -> float:
        return self.evaluated.found["top1"] if self.evaluated else -1.0


class Duel(NamedTuple):
    """Two entries on the images that both have answered, and what follows."""

    first: str
    second: str
    found: Comparison
    verdict: str


def write_comparison_page(folders: Sequence[Path], path: Path) -> Path:
    """Write a page that compares runs and evaluations; gives its path.

    Raises as `write_run_page` and `write_evaluation_page` do.
    """
    names = _names(folders)
    entries = [_entry(folder, name) for folder, name in zip(folders, names, strict=True)]
    duels, apart = _duels(entries)
    recipes, unlike = _recipes(entries)
    return write_page(
        path,
        "comparison.html",
        name=f"{len(entries)} side by side",
        sentence=_sentence(entries),
        rows=[_row(entry) for entry in entries],
        accuracies=_accuracies(entries, bool(duels)),
        curves=list(_curves(entries)),
        keys=[(entry.name, *_style(i)) for i, entry in _drawn(entries)],
        recipes=recipes,
        unlike=unlike,
        duels=duels,
        missing=[*apart, *_missing(entries)],
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Name folders by their last part, or by their path where that is not theirs alone."""
    last = [folder.resolve().name for folder in folders]
    return [
        str(folder) if last.count(name) > 1 else name
        for folder, name in zip(folders, last, strict=True)
    ]


def _entry(folder: Path, name: str) -> Entry:
    if not is_run(folder):
        evaluated = read_evaluation(folder)
        return Entry(name, None, evaluated, _address(place_of(evaluated.found).data))
    run = read_run(folder)
    return Entry(name, run, run.evaluated, _address(story.data_of(run)))


def _address(data: str) -> str:
    """Give an address of data as one that can be compared: a path in full."""
    return os.path.realpath(os.path.expanduser(data)) if os.path.exists(data) else data


def _sentence(entries: Sequence[Entry]) -> str:
    known = [entry for entry in entries if entry.evaluated]
    if not known:
        return "None of them has been measured to its end yet; their curves tell how far they came."
    top = max(entry.accuracy for entry in known)
    best = [entry.name for entry in known if entry.accuracy == top]
    who = f"{best[0]} has the highest accuracy"
    if len(best) > 1:
        who = f"{' and '.join([', '.join(best[:-1]), best[-1]])} share the highest accuracy"
    text = f"{who}, {top:.2%}."
    if len({entry.data for entry in known}) > 1:
        text += " They were measured on different data, so that their accuracies say little here."
    return text


def _row(entry: Entry) -> dict[str, Any]:
    """Give what the table of figures says of an entry; None is unknown."""
    found = entry.evaluated.found if entry.evaluated else {}
    summary = entry.run.summary if entry.run else {}
    seconds = summary.get("seconds")
    return {
        "name": entry.name,
        "status": summary.get("status", "unknown") if entry.run else "evaluation",
        "top1": found.get("top1"),
        "interval": found.get("top1_interval"),
        "wrong": story.wrong(found) if found else None,
        "images": found.get("images"),
        "nll": found.get("nll"),
        "ece": found.get("ece"),
        "parameters": summary.get("parameters"),
        "step": story.step_of(entry.run) if entry.run else None,
        "time": None if seconds is None else story.duration(seconds),
        "cpu": summary.get("cpu_seconds"),
    }


def _drawn(entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
    """Give the entries whose curves are drawn, with their places."""
    having = [(i, e) for i, e in enumerate(entries) if e.run and (e.run.train or e.run.val)]
    return having[:_MOST_LINES]


def _style(place: int) -> tuple[str, tuple[float, ...]]:
    return f"run{place % RUNS}", dashes(place // RUNS % 4)


def _curves(entries: Sequence[Entry]) -> Iterator[Chart]:
    """Draw loss and accuracy of all runs, on held-out images and in training."""
    for split, key, title, note in (
        ("val", "top1", "Held-out accuracy", "The share of held-out images named right."),
        ("val", "loss", "Held-out loss", "Lower is better: the surprise at the right answers."),
        ("train", "loss", "Training loss", "Its scale depends on how images are altered."),
    ):
        lines, ends, percent = [], [], key == "top1"
        for i, entry in _drawn(entries):
            rows = getattr(entry.run, split)
            if rows:
                values = [row[key] for row in rows]
                colour, style = _style(i)
                epochs = [row["epoch"] for row in rows]
                lines.append(Line(colour, epochs, values, style, dotted=split == "val"))
                last = f"{values[-1]:.1%}" if percent else f"{values[-1]:.3g}"
                ends.append(f"{entry.name} ends at {last}")
        if lines:
            alt = f"{title} over epochs: {'; '.join(ends)}."
            svg = draw(alt, lines, percent=percent, from_zero=not percent)
            yield Chart(title, svg, note)


def _accuracies(entries: Sequence[Entry], paired: bool) -> Chart | None:
    """Draw the accuracies with their intervals, one beneath the other."""
    rows = [
        Row(entry.name, entry.accuracy, entry.evaluated.found["top1_interval"])
        for entry in entries
        if entry.evaluated
    ]
    if not rows:
        return None
    note = (
        "Dots are accuracies, lines their 95 % intervals (Wilson's). Of two whose lines do not "
        "overlap, one is very likely better."
    )
    note += " Where they do, the pairs below tell more." * paired
    alt = "; ".join(f"{row.name} {row.share:.2%} ({_span(row)})" for row in rows)
    return Chart("Accuracy", intervals.draw(f"Accuracies: {alt}.", rows, "accuracy"), note)


def _span(row: Row) -> str:
    return "{:.1%} to {:.1%}".format(*row.interval)


def _recipes(entries: Sequence[Entry]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Give the names of the runs with a recipe, and each leaf in which they are not all alike."""
    with_recipe = [(e.name, _leaves(e.run.recipe)) for e in entries if e.run and e.run.recipe]
    leaves = [leaves for _, leaves in with_recipe]
    names = dict.fromkeys(name for each in leaves for name in each)
    rows = ((name, [each.get(name, "–") for each in leaves]) for name in names)
    return [name for name, _ in with_recipe], [row for row in rows if len(set(row[1])) > 1]


def _leaves(recipe: str) -> dict[str, str]:
    """Give a recipe as `section.leaf` and text; an edited one that is no TOML has none."""
    found: dict[str, str] = {}

    def walk(table: Mapping[str, Any], before: str) -> None:
        for name, value in table.items():
            if isinstance(value, Mapping):
                walk(value, f"{before}{name}.")
            else:
                found[before + name] = str(value)

    try:
        walk(tomllib.loads(recipe), "")
    except tomllib.TOMLDecodeError:
        return {}
    return found


def _duels(entries: Sequence[Entry]) -> tuple[list[Duel], list[str]]:
    """Compare pairs on the images that both have answered; and say which cannot be compared."""
    able = [entry for entry in entries if entry.evaluated and entry.evaluated.answers]
    pairs = list(combinations(able, 2))
    if len(able) > _MOST_ALL_PAIRS:
        best = max(able, key=lambda entry: entry.accuracy)
        pairs = [(best, other) for other in able if other is not best]
    duels, apart = [], []
    for first, second in pairs:
        found = _compared(first, second)
        if isinstance(found, str):
            apart.append(f"{first.name} and {second.name} are not compared image by image: {found}")
        else:
            duels.append(Duel(first.name, second.name, found, _verdict(first, second, found)))
    return duels, apart


def _compared(first: Entry, second: Entry) -> Comparison | str:
    """Compare two entries image by image, or say why that would mean nothing."""
    if not _same_data(first, second):
        return "they were measured on different data."
    ours, theirs = (
        {a.path: a for a in (e.evaluated.answers or () if e.evaluated else ())}
        for e in (first, second)
    )
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return "no image was answered by both."
    if any(ours[path].label != theirs[path].label for path in both):
        return "images of the same name have other labels, so that they are not the same images."
    right = [{i: side[path].right for i, path in enumerate(both)} for side in (ours, theirs)]
    return compare(*right)


def _same_data(first: Entry, second: Entry) -> bool:
    """Say whether two entries name images of one data set, by its address or its listing."""
    digests = [e.run.environment.get("data_digest") if e.run else None for e in (first, second)]
    return first.data == second.data or (digests[0] is not None and digests[0] == digests[1])


def _verdict(first: Entry, second: Entry, found: Comparison) -> str:
    if found.p_value >= _SURE:
        return "luck could explain it"
    return f"{(first if found.difference > 0 else second).name} is better"


def _missing(entries: Sequence[Entry]) -> Iterator[str]:
    """Say which entries lack what the others are compared by."""
    lacks: tuple[tuple[Callable[[Entry], bool], str], ...] = (
        (lambda e: e.evaluated is None, "has not been measured to its end"),
        (
            lambda e: bool(e.evaluated) and e.evaluated.answers is None,
            "has no predictions.jsonl, and is not compared image by image",
        ),
        (lambda e: e.run is not None and not e.run.recipe, "has no recipe.toml"),
        (lambda e: e.run is not None and not (e.run.train or e.run.val), "has no rows of metrics"),
    )
    for lacking, words in lacks:
        yield from (f"{entry.name} {words}." for entry in entries if lacking(entry))
    having = sum(1 for e in entries if e.run and (e.run.train or e.run.val))
    if having > _MOST_LINES:
        yield f"Curves are drawn of the first {_MOST_LINES} of {having:,} runs."
