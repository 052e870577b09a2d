"""Tables as parquet, written a few thousand rows at a time; stands on the extra `datasets`."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitrail.inference.embed import Embedded
from vitrail.weights.disk import new_file

_ROWS, _BYTES = 4096, 64 * 2**20  # of a row group, whichever comes first
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
    with rows.open(encoding="utf-8") as lines:
        predictions(map(json.loads, lines), target)


def predictions(rows: Iterable[dict[str, Any]], target: Path) -> None:
    """Write predictions, in the form of their JSON, as a parquet file, whole or not at all."""
    left = map(_row, rows)
    with new_file(target) as file, pq.ParquetWriter(file, PREDICTIONS) as writer:
        while batch := list(islice(left, _ROWS)):
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


@contextmanager
def embeddings(path: Path) -> Iterator[Callable[[Embedded], None]]:
    """Write path, label, split and embedding (of patches: a list of them) as a parquet file."""
    names = ("path", "label", "split", "embedding")
    waiting: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None
    with new_file(path) as file, ExitStack() as open:

        def write_group() -> None:
            nonlocal writer
            group = pa.concat_tables(waiting)
            waiting.clear()
            if writer is None:
                writer = open.enter_context(pq.ParquetWriter(file, group.schema))
            writer.write_table(group)

        def write(found: Embedded) -> None:
            texts = [
                [value if value is None else in_utf8(value) for value in values]
                for values in (
                    [item.name for item in found.items],
                    [item.label for item in found.items],
                    [item.split for item in found.items],
                )
            ]
            columns = [pa.array(values, pa.string()) for values in texts]
            waiting.append(pa.table([*columns, _nested(found.vectors)], names))
            images, size = (sum(getattr(t, n) for t in waiting) for n in ("num_rows", "nbytes"))
            if images >= _ROWS or size >= _BYTES:
                write_group()

        yield write
        if waiting:
            write_group()


def _nested(vectors: np.ndarray) -> Any:
    """Give rows of D numbers, or of N D, as lists of a fixed length, without a copy of each."""
    column = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
    for size in vectors.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
