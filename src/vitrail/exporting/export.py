"""`export`: a bundle as a file for another runtime, checked before it is there."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vitrail.data.inputs import Item, opened
from vitrail.data.sources import Source, path_of
from vitrail.data.stream import decoded
from vitrail.engines.build import engine
from vitrail.engines.compiled import fitted
from vitrail.engines.exported import Dtype, Exported
from vitrail.engines.exported_files import parts, read_export
from vitrail.errors import ConfigError
from vitrail.exporting.card import card_of, markdown
from vitrail.exporting.checking import (
    check_agreement,
    check_differences,
    differences,
    on_images,
    plain_engine,
    sizes,
)
from vitrail.exporting.graph import graph_of
from vitrail.exporting.target import AGREEMENT, check_export, names
from vitrail.exporting.writers import write
from vitrail.inference.evaluate import check_classes
from vitrail.weights import disk, files
from vitrail.weights.bundle import Bundle

CALIBRATE = 256  # images: more change the extremes of the activations little
_TOGETHER = 16


class Written(NamedTuple):
    """An exported file and its card, as `FILE.card.json` has it."""

    path: Path
    card: dict[str, Any]

    def text(self) -> str:
        """Give the card for people, in Markdown."""
        return markdown(self.card)


def export(
    bundle: Bundle,
    path: str | Path,
    format: str = "onnx",
    *,
    dtype: Dtype = "float32",
    takes: Literal["images", "pixels"] = "images",
    any_size: bool = False,
    check: Source | None = None,
    calibrate: Source | None = None,
    agreement: float = AGREEMENT,
    data: str = "",
    batch_size: int = 64,
    threads: int = 2,
) -> Written:
    """Write a model as `onnx` (.onnx), `openvino` (.xml and .bin) or `torch` (.pt2).

    The file takes any number of `images`, normalised float32 B C H W, or `pixels`, uint8 B H W C,
    and gives logits, for pixels probabilities too; its axis 0 is called `batch`. Without `any_size`
    they have the size of the bundle's preprocessing. `int8` has its scales from images of
    `calibrate`, `bfloat16` is for torch alone.

    What was written is opened again and held against torch in float32 before it takes its place, on
    noise and on the labelled images of `check`, which came from `data`. Raises `OutputError`, and
    leaves nothing, where float32 differs by more than 1e-4, another dtype gives less than
    `agreement` of the same answers, a file is there already or cannot be written; `ConfigError`
    for what cannot be exported so.
    """
    path = Path(path).expanduser()
    check_export(path, format, dtype)
    _check_dtype(dtype, check, calibrate, agreement)
    if check is not None:
        check_classes(bundle, check)
    facts = _facts(bundle, dtype, takes, any_size)
    model = bundle.model.to("cpu").eval()
    graph = graph_of(model if any_size else fitted(model, bundle.preprocess.size), facts)
    batches = None
    if calibrate is not None and dtype == "int8":
        batches = partial(_batches, calibrate, facts, threads)
    weights = sum(t.nbytes for t in model.state_dict().values())
    disk.check_room(path, weights * (2 if format == "openvino" else 1))  # made of an ONNX file
    folder = disk.begin_folder(path)
    try:
        with disk.written(path):
            write(graph, folder / path.name, batches)
        card = _checked(
            bundle, facts, folder / path.name, format, check, agreement, data, batch_size, threads
        )
        if batches is not None:
            assert calibrate is not None
            card["calibrated_on"] = {"images": min(CALIBRATE, len(calibrate))}
        disk.write_json(folder / f"{path.name}.card.json", card)
        disk.write_bytes(folder / f"{path.name}.card.md", markdown(card).encode("utf-8", "replace"))
        _place(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Written(path, card)


def _check_dtype(
    dtype: str, check: Source | None, calibrate: Source | None, agreement: float
) -> None:
    if not 0 <= agreement <= 1:
        raise ConfigError(f"agreement is {agreement}; it should be a share, from 0 to 1")
    if dtype != "float32" and check is None:
        raise ConfigError(
            f"{dtype} is held to how many images it answers as float32 does: give labelled images "
            "to check it on"
        )
    if dtype == "int8" and calibrate is None:
        raise ConfigError("int8 has its scales from images: give some to calibrate on")


def _facts(
    bundle: Bundle, dtype: Dtype, takes: Literal["images", "pixels"], any_size: bool
) -> Exported:
    config = bundle.model.config
    if not any_size:
        config = config.replace(image_size=bundle.preprocess.size)
    return Exported(
        config=config,
        preprocess=bundle.preprocess,
        labels=bundle.labels,
        origin=bundle.origin,
        dtype=dtype,
        takes=takes,
        any_size=any_size,
    )


def _batches(source: Source, facts: Exported, threads: int) -> Iterator[np.ndarray]:
    """Give images all over a source as the graph's input, some at a time."""
    count = min(CALIBRATE, len(source))
    places = [len(source) * i // count for i in range(count)]
    items = (Item(path_of(source, i), partial(opened, source.read, i)) for i in places)
    for batch in decoded(items, facts.preprocess, _TOGETHER, threads=threads):
        for stack in batch.stacks:
            yield facts.input_of(stack.images).numpy()


def _checked(
    bundle: Bundle,
    facts: Exported,
    path: Path,
    format: str,
    check: Source | None,
    agreement: float,
    data: str,
    batch_size: int,
    threads: int,
) -> dict[str, Any]:
    """Open the file as its users will, hold it against torch, and give its card."""
    exact, found = plain_engine(bundle), engine(read_export(path, trust=True))
    rows = list(differences(exact, found, sizes(bundle, facts.any_size)))
    if facts.dtype == "float32":
        check_differences(rows, path.name)
    images = None
    if check is not None:
        images = on_images(
            exact, found, bundle, check, data, batch_size=batch_size, threads=threads
        )
        check_agreement(images, agreement, path.name)
    about = {
        part.name: {"bytes": part.stat().st_size, "sha256": files.sha256(part)}
        for part in parts(path)
    }
    floor = agreement if check is not None else None
    return card_of(facts, path.name, format, about, rows, images, floor)


def _place(folder: Path, path: Path) -> None:
    """Move what was written to its place, the file that all are called by last; all or none."""
    placed = []
    with disk.written(path):
        try:
            for name in names(path):
                if (folder / name).exists():
                    disk.sync(folder / name)
                    (folder / name).rename(path.with_name(name))
                    placed.append(path.with_name(name))
            disk.sync(path.parent)
        except BaseException:
            for done in placed:
                done.unlink(missing_ok=True)
            raise
