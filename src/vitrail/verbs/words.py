"""What several verbs share: the words of their flags, and JSON as they print it."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro

from vitrail.data.address import parse

# How data without a split of its own is split, and how a table is read.
SPLIT = ("held_out_share", "split_seed", "image_column", "label_column")
Split = Literal["held-out", "train", "val", "test", "all"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["float32", "bfloat16", "float16"]
Text = tyro.conf.Positional[str]
Images = tyro.conf.Positional[tuple[str, ...]]
Output = Annotated[str | None, tyro.conf.arg(aliases=["-o"])]


def split_as_in_run(
    origin: Mapping[str, Any] | None, data: str, image_column: str | None, label_column: str | None
) -> dict[str, Any]:
    """Give how data is opened: as by the run that a model comes from, but for what flags say.

    Data without a split of its own is split as there, or what the model has learned from would be
    among what it is asked about.
    """
    from vitrail.data.sources import WITH_COLUMNS

    has_columns = parse(data).kind in WITH_COLUMNS
    of_run = [name for name in SPLIT if has_columns or not name.endswith("_column")]
    how = {name: (origin or {})[name] for name in of_run if name in (origin or {})}
    columns = {"image_column": image_column, "label_column": label_column}
    return how | {name: column for name, column in columns.items() if column is not None}


def as_json(values: Mapping[str, Any] | Sequence[Any]) -> str:
    """Write what a verb found as one JSON document."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    # A name that is not UTF-8 becomes JSON's own escape, which reads back as the same name.
    return text.encode("utf-8", "backslashreplace").decode()
