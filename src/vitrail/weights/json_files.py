"""JSON files that stand beside weights and in runs, read without torch."""

import json
from pathlib import Path
from typing import Any

from vitrail.errors import DataError, WeightsError

# JSON takes up to 25 times its bytes in memory; the largest header of a ViT is below 1 MB.
MOST_JSON = 16 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """Give the object in a JSON file; a missing or broken one is a `WeightsError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_JSON + 1)
        if len(data) > MOST_JSON:
            raise ValueError(f"more than {MOST_JSON:,} bytes are no description of a model")
        values = json.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds {type(values).__name__}, not an object")
    return values


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Give the rows of a file of JSON lines; a last line that was cut short is not one.

    A file that is not there has none; a line that is no JSON object is a `DataError`.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is no row: {line.strip()[:80]}; remove the line")
        rows.append(row)
    return rows
