"""What a run folder holds, read as it stands: finished, stopped, or still being written."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.data.decode import decode
from vitrail.errors import DataError
from vitrail.reporting.evaluated import EVALUATION, Evaluated, checked, read_evaluation
from vitrail.reporting.thumbnails import Thumbnail, reduced, thumbnail
from vitrail.weights.json_files import read_json, read_rows

MOST_EXAMPLES = 10
FILES = ("summary.json", "metrics.jsonl", "recipe.toml", "environment.json")
_MARKS = FILES[:3]  # that a folder is known by as a run
_WIDEST = 320  # pixels a side of an embedded photo, about 25 kB


class Example(NamedTuple):
    """An image of `examples/`; no picture where the file shows no image."""

    name: str
    picture: Thumbnail | None


class RunFiles(NamedTuple):
    """A run's files. `train` and `val` are the rows of `metrics.jsonl`, in order of steps."""

    folder: Path
    summary: dict[str, Any]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    environment: dict[str, Any]
    recipe: str
    examples: list[Example]
    evaluated: Evaluated | None  # of the weights at the end; None before it
    absent: tuple[str, ...]  # files of a run that are not there


def is_run(folder: Path) -> bool:
    """Say whether a folder holds a run, however far it came."""
    return any((folder / name).is_file() for name in _MARKS)


def read_run(folder: Path, summary: dict[str, Any] | None = None) -> RunFiles:
    """Read a run; raises `DataError` where the folder is none, or a file is not what it should be.

    A run that was just begun lacks most files; what is missing is empty. `summary` stands for the
    `summary.json` that is still to be written.
    """
    if not is_run(folder):
        raise DataError(
            f"{folder} is no run: it holds none of {', '.join(_MARKS)}; "
            "give a folder that `vitrail train` wrote"
        )
    rows = _rows(folder / "metrics.jsonl")
    summary = _object(folder / "summary.json") if summary is None else summary
    return RunFiles(
        folder=folder,
        summary=summary,
        train=[row for row in rows if row["split"] == "train"],
        val=[row for row in rows if row["split"] == "val"],
        environment=_object(folder / "environment.json"),
        recipe=_text(folder / "recipe.toml"),
        examples=_examples(folder / "examples"),
        evaluated=_evaluated(folder, summary),
        absent=tuple(name for name in FILES if not (folder / name).is_file()),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; restore it, or remove it") from error


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _evaluated(folder: Path, summary: dict[str, Any]) -> Evaluated | None:
    """Give the evaluation of a finished run: a run that goes on has outgrown the one it left."""
    if summary.get("status") == "finished" and (folder / EVALUATION).is_file():
        return read_evaluation(folder)
    found = summary.get("evaluation")
    return Evaluated(checked(found, folder / "summary.json")) if found else None


def _rows(path: Path) -> list[dict[str, Any]]:
    """Give all rows with finite figures."""
    try:
        found = read_rows(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; restore it, or remove it") from error
    rows = []
    for row in found:
        try:
            finite = all(math.isfinite(row[key]) for key in ("step", "epoch", "loss", "top1"))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: {row} is no row of metrics ({error!r}); remove it") from error
        rows += [row] if finite and row.get("split") in ("train", "val") else []
    return rows


def _examples(folder: Path) -> list[Example]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    return [_example(path) for path in files[:MOST_EXAMPLES]]


def _example(path: Path) -> Example:
    """Embed an image, upright, at most `_WIDEST` wide, and without its metadata."""
    try:
        pixels = decode(path.read_bytes())
    except DataError:
        return Example(path.name, None)
    return Example(path.name, thumbnail(reduced(pixels, _WIDEST)))
