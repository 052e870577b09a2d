"""What several verbs share: the words of their flags, and JSON as they print it."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vitrail.data.address import parse
from vitrail.errors import check_counts
from vitrail.model.checks import check_merge

if TYPE_CHECKING:
    from vitrail.engines.engine import Engine
    from vitrail.engines.exported_files import Answering

# How data without a split of its own is split, and how a table is read.
SPLIT = ("held_out_share", "split_seed", "image_column", "label_column")
Split = Literal["held-out", "train", "val", "test", "all"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
EngineName = Literal["auto", "torch", "onnx", "openvino"]
Text = tyro.conf.Positional[str]
Images = tyro.conf.Positional[tuple[str, ...]]
Output = Annotated[str | None, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class Running:
    """How the model runs."""

    batch_size: int = 64
    threads: int = 2  # that decode
    device: Device = "auto"
    dtype: Dtype = "float32"
    merge: int = 0  # patches that each block merges into others: faster, less exact
    aspect: bool = False  # each image at its own aspect, in about as many patches

    def check(self) -> None:
        """Raise `ConfigError` for a count that is none, before anything is loaded."""
        check_counts(**self.reading())
        check_merge(self.merge)

    def reading(self) -> dict[str, int]:
        """Give how images are read, whatever answers for them."""
        return {"batch_size": self.batch_size, "threads": self.threads}

    def on(self) -> dict[str, Any]:
        """Give what an engine is built with."""
        return {name: value for name, value in asdict(self).items() if name not in self.reading()}


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """On a cluster of machines."""

    ray: str | None = None  # a cluster: auto, HOST:PORT, or local; -o is a folder of parts then
    part_images: int | None = None  # with --ray: of a part, else 1024 and so many batches
    cores_per_model: int | None = None  # with --ray on CPUs, else all of the smallest machine


# Flags that several verbs have: without a prefix.
Runs = Annotated[Running, tyro.conf.arg(name="")]
Ray = Annotated[OnRay, tyro.conf.arg(name="")]


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


def open_model(word: str, trust: bool) -> "Answering":
    """Load a MODEL that answers for images: an exported file too, which runs as it is."""
    from vitrail.engines.exported_files import is_exported, read_export
    from vitrail.weights.loading import load

    return read_export(word, trust=trust) if is_exported(word) else load(word)


def as_json(values: Mapping[str, Any] | Sequence[Any]) -> str:
    """Write what a verb found as one JSON document."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    # A name that is not UTF-8 becomes JSON's own escape, which reads back as the same name.
    return text.encode("utf-8", "backslashreplace").decode()


def say_choice(runs: "Engine") -> None:
    """Say on standard error which engine `auto` has chosen, and why."""
    if runs.reason:
        print(f"engine {runs.name}, {runs.dtype}: {runs.reason}", file=sys.stderr)
