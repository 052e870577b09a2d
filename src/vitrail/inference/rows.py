"""Predictions as text, a batch at a time: tables for people, CSV and JSON for programs."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from textwrap import indent
from typing import NamedTuple

from vitrail.data.listing import one_line
from vitrail.inference.predict import Prediction


class Form(NamedTuple):
    """A form of text: what stands before all rows, what a batch of them is, what stands after.

    `rows` takes a batch and whether it is the first that has any.
    """

    head: str
    rows: Callable[[Sequence[Prediction], bool], str]
    tail: str

    def encoded(self, rows: Sequence[Prediction], first: bool) -> bytes:
        """Give a batch of rows as bytes."""
        # A name that is not UTF-8 is shown by its escapes, which in JSON read back as the same.
        return self.rows(rows, first).encode("utf-8", "backslashreplace")


def _table(rows: Sequence[Prediction], first: bool) -> str:
    width = max((len(one_line(row.path)) for row in rows), default=0)
    lines = []
    for row in rows:
        best = "  ".join(f"{a.label} {a.probability:.1%}" for a in row.top)
        found = best if row.error is None else f"error: {row.error}"
        lines.append(f"{one_line(row.path):<{width}}  {one_line(found)}\n")
    return "".join(lines)


def _csv(rows: Sequence[Prediction], first: bool) -> str:
    return "".join(map(_csv_line, rows))


def _csv_line(row: Prediction) -> str:
    best = row.top[0] if row.top else None
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(  # fields with either are quoted
        [
            row.path,
            best.label if best else "",
            best.probability if best else "",
            ";".join(answer.label for answer in row.top),
            ";".join(str(answer.probability) for answer in row.top),
            row.error or "",
        ]
    )
    return line.getvalue().removesuffix("\r\n") + "\n"


def _jsonl(rows: Sequence[Prediction], first: bool) -> str:
    return "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)


def _json(rows: Sequence[Prediction], first: bool) -> str:
    texts = (json.dumps(row.to_json(), indent=2, ensure_ascii=False) for row in rows)
    return ("\n" if first else ",\n") + ",\n".join(indent(text, "  ") for text in texts)


FORMS = {
    "table": Form("", _table, ""),
    "csv": Form("path,label,probability,labels,probabilities,error\n", _csv, ""),
    "jsonl": Form("", _jsonl, ""),
    "json": Form("[", _json, "\n]\n"),
}
