"""Tables as parquet, written a few thousand rows at a time; stands on the extra `datasets`."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vitrail.weights.disk import new_file

_ROWS = 4096  # of a row group
# The columns of the csv form, each in its own type.
PREDICTIONS = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "probability": pa.float64(),
        "labels": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float64()),
        "error": pa.string(),
    }
)


def convert(rows: Path, target: Path) -> None:
    """Write predictions that are JSON lines in `rows` as a parquet file, whole or not at all."""
    with (
        rows.open(encoding="utf-8") as lines,
        new_file(target) as file,
        pq.ParquetWriter(file, PREDICTIONS) as writer,
    ):
        while batch := [_row(json.loads(line)) for line in islice(lines, _ROWS)]:
            writer.write_table(pa.Table.from_pylist(batch, PREDICTIONS))


def _row(found: dict[str, Any]) -> dict[str, Any]:
    top = found["top"]
    labels = [in_utf8(answer["label"]) for answer in top]
    probabilities = [answer["probability"] for answer in top]
    return {
        "path": in_utf8(found["path"]),
        "label": labels[0] if top else None,
        "probability": probabilities[0] if top else None,
        "labels": labels,
        "probabilities": probabilities,
        "error": found["error"] and in_utf8(found["error"]),
    }


def in_utf8(text: str) -> str:
    """Give a name as parquet may hold it: what is no UTF-8 in it becomes an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
