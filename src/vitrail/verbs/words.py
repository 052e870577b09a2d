"""What several verbs share: the words of their flags, and JSON as they print it."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro

# How data without a split of its own is split, and how a table is read.
SPLIT = ("held_out_share", "split_seed", "image_column", "label_column")
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["float32", "bfloat16", "float16"]
Text = tyro.conf.Positional[str]
Images = tyro.conf.Positional[tuple[str, ...]]
Output = Annotated[str | None, tyro.conf.arg(aliases=["-o"])]


def as_json(values: Mapping[str, Any] | Sequence[Any]) -> str:
    """Write what a verb found as one JSON document."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    # A name that is not UTF-8 becomes JSON's own escape, which reads back as the same name.
    return text.encode("utf-8", "backslashreplace").decode()
