"""What a run folder holds, read as it stands: finished, stopped, or still being written."""

import base64
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vitrail.data.decode import decode
from vitrail.errors import DataError
from vitrail.weights.files import read_json, read_rows

MOST_EXAMPLES = 10
_SMALL = 64  # pixels a side; smaller images are enlarged with their pixels to be seen
_WIDEST = 320  # pixels a side of an embedded photo, about 25 kB


class Example(NamedTuple):
    """An image of `examples/`: its address as data, absent where the file shows no image."""

    name: str
    address: str | None
    small: bool = False


class RunFiles(NamedTuple):
    """A run's files. `train` and `val` are the rows of `metrics.jsonl`, in order of steps."""

    folder: Path
    summary: dict[str, Any]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    environment: dict[str, Any]
    recipe: str
    examples: list[Example]


def read_run(folder: Path) -> RunFiles:
    """Read a run; raises `DataError` where the folder is none, or a file is not what it should be.

    A run that was just begun lacks most files; what is missing is empty.
    """
    known = [folder / name for name in ("summary.json", "metrics.jsonl", "recipe.toml")]
    if not any(path.is_file() for path in known):
        raise DataError(
            f"{folder} is no run: it holds none of {', '.join(path.name for path in known)}; "
            "give a folder that `vitrail train` wrote"
        )
    rows = _rows(folder / "metrics.jsonl")
    recipe = folder / "recipe.toml"
    summary = _object(folder / "summary.json")
    _check(summary.get("evaluation"), folder / "summary.json")
    return RunFiles(
        folder=folder,
        summary=summary,
        train=[row for row in rows if row["split"] == "train"],
        val=[row for row in rows if row["split"] == "val"],
        environment=_object(folder / "environment.json"),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        examples=_examples(folder / "examples"),
    )


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Give all rows with finite figures."""
    rows = []
    for row in read_rows(path):
        try:
            finite = all(math.isfinite(row[key]) for key in ("step", "epoch", "loss", "top1"))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: {row} is no row of metrics ({error!r}); remove it") from error
        rows += [row] if finite and row.get("split") in ("train", "val") else []
    return rows


def _check(evaluation: Any, path: Path) -> None:
    """Raise `DataError` where the confusion matrix does not belong to the classes."""
    if not evaluation:
        return
    rows, classes = evaluation["confusion"], len(evaluation["per_class"])
    if len(rows) != classes or any(len(row) != classes for row in rows):
        raise DataError(
            f"{path}: the confusion matrix is not {classes} x {classes}, as the classes"
        )


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
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    small = max(image.size) <= _SMALL
    image.thumbnail((_WIDEST, _WIDEST))
    file, kind = io.BytesIO(), "png" if small else "jpeg"
    image.save(file, format=kind, quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return Example(path.name, f"data:image/{kind};base64,{data}", small)
