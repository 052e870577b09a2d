"""An evaluation as files: the figures, and one row for each image."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitrail.errors import ConfigError, OutputError
from vitrail.inference.evaluate import Scored
from vitrail.inference.measures import softmax
from vitrail.weights.disk import check_place, new_file, write_json, written

_TOP = 5
_FILES = {"evaluation.json", "predictions.jsonl", "report.html"}
_LEFT = re.compile(r"\.(evaluation\.json|predictions\.jsonl)\.part$")  # by a kill in the middle
_COLUMNS = ("path", "label", "answer", "probability", "right", "error")


def check_predictions(file: str) -> None:
    """Raise `ConfigError` for a form that there is not, `OutputError` for a place that is none."""
    if Path(file).suffix not in (".jsonl", ".csv"):
        raise ConfigError(f'--predictions "{file}" should end in .jsonl or .csv')
    check_place(file)


def check_folder(folder: str) -> None:
    """Raise `OutputError` for a folder that holds anything but an evaluation."""
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise OutputError(f'"{folder}" is a file; an evaluation needs a folder')
    inside = [p.name for p in path.iterdir()] if path.exists() else []
    others = sorted({name for name in inside if not _LEFT.match(name)} - _FILES)
    if others:
        raise OutputError(
            f'"{folder}" holds other files and no evaluation ({", ".join(others[:3])}); give a new '
            "or empty folder"
        )


def make_folder(folder: str | Path) -> None:
    """Make the folder of an evaluation, before any work is done that could not be written."""
    path = Path(folder).expanduser()
    with written(path):
        path.mkdir(parents=True, exist_ok=True)


def about(model: str, data: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give what `evaluation.json` says of where model and data are, and how the data is split."""
    # Paths are relative to the folder in which the command was given.
    return {"model": model, "data": data, "data_options": options, "started_in": os.getcwd()}


def write_evaluation(
    found: Mapping[str, Any], scored: Scored, folder: str | Path, *, whole: bool = True
) -> None:
    """Write `evaluation.json` and `predictions.jsonl`, each whole or not at all.

    Without `whole` a row has the five likeliest classes alone: of 50,000 images the probabilities
    of 1,000 classes are 600 MB.
    """
    make_folder(folder)
    path = Path(folder).expanduser()
    _write(path / "predictions.jsonl", _jsonl(scored, whole))
    write_json(path / "evaluation.json", found)


def write_predictions(scored: Scored, file: str) -> None:
    """Write one row for each image, bad ones last: JSON lines or csv, as the suffix says."""
    rows = _csv(scored) if file.endswith(".csv") else _jsonl(scored, whole=True)
    _write(Path(file).expanduser(), rows)


def _write(path: Path, lines: Iterator[str]) -> None:
    with new_file(path) as target:
        for text in lines:
            target.write(text.encode("utf-8", "backslashreplace"))


def _jsonl(scored: Scored, whole: bool) -> Iterator[str]:
    for path, label, probabilities in _rows(scored):
        best = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:_TOP]
        top = [
            {"label": scored.names[i], "index": i, "probability": probabilities[i]} for i in best
        ]
        row: dict[str, Any] = {"path": path, "label": label, "error": None, "top": top}
        row |= {"probabilities": probabilities} if whole else {}
        yield json.dumps(row, ensure_ascii=False) + "\n"
    for file in scored.bad:
        row = {"path": file.path, "label": None, "error": file.reason, "top": []}
        row |= {"probabilities": []} if whole else {}
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _csv(scored: Scored) -> Iterator[str]:
    yield ",".join(_COLUMNS) + "\n"
    for path, label, probabilities in _rows(scored):
        best = max(range(len(probabilities)), key=lambda i: probabilities[i])
        answer = scored.names[best]
        yield _line(path, label, answer, probabilities[best], int(answer == label), "")
    for file in scored.bad:
        yield _line(file.path, "", "", "", "", file.reason)


def _rows(scored: Scored) -> Iterator[tuple[str, str, list[float]]]:
    """Give path, label and probabilities, a row at a time."""
    for i, path in enumerate(scored.paths):
        found = softmax(scored.scores[i : i + 1].astype("float64"))[0]
        yield path, scored.names[scored.labels[i]], [float(f"{p:.7g}") for p in found.tolist()]


def _line(*fields: object) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(fields)  # fields with either are quoted
    return line.getvalue().removesuffix("\r\n") + "\n"
