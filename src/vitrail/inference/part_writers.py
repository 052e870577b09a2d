"""What fills one part of many: the predictions, or the embeddings, of some images in one file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitrail.data.inputs import Item
from vitrail.engines.build import engine, torch_engine
from vitrail.inference.embed import Embedded, Kind, embedded, none_of
from vitrail.inference.embedding_files import embeddings_writer
from vitrail.inference.parts import Fill, Written
from vitrail.inference.predict import Prediction, batches
from vitrail.inference.rows import FORMS
from vitrail.weights.bundle import Bundle
from vitrail.weights.disk import new_file


def predictor(
    bundle: Bundle,
    *,
    form: str,
    top: int,
    name: str,
    dtype: str,
    device: str,
    merge: int = 0,
    aspect: bool = False,
    **how: Any,
) -> Fill:
    """Give what writes predictions as `csv`, `jsonl` or `parquet`, by the engine called `name`."""
    runs = engine(bundle, name, dtype, device=device, merge=merge, aspect=aspect)

    def fill(items: Iterable[Item], path: Path) -> Written:
        rows = [row for batch in batches(runs, bundle.labels, items, top, **how) for row in batch]
        _write(rows, form, path)
        return Written(len(rows), sum(row.error is not None for row in rows))

    return fill


def _write(rows: list[Prediction], form: str, path: Path) -> None:
    if form == "parquet":
        from vitrail.inference.parquet import predictions

        predictions((row.to_json() for row in rows), path)
        return
    with new_file(path) as file:
        file.write(FORMS[form].head.encode())
        file.write(FORMS[form].encoded(rows, True))


def embedder(
    bundle: Bundle,
    *,
    tokens: Kind,
    layer: int | None,
    dtype: str,
    device: str,
    merge: int = 0,
    aspect: bool = False,
    **how: Any,
) -> Fill:
    """Give what writes embeddings as parquet; what cannot be read has no row."""
    runs = torch_engine(bundle, dtype, device, merge, aspect)

    def fill(items: Iterable[Item], path: Path) -> Written:
        images, shape = 0, ()
        bad: list[tuple[str, str]] = []
        with embeddings_writer(str(path)) as write:
            for batch in embedded(runs, items, tokens, layer, **how):
                images += len(batch.items) + len(batch.bad)
                bad += [(item.name, reason) for item, reason in batch.bad]
                if batch.items:
                    shape = batch.vectors.shape[1:]
                    write(batch)
            if not shape:  # a part without a row has the columns of the others
                write(Embedded([], none_of(runs, tokens, layer), []))
        return Written(images, len(bad), shape, tuple(bad))

    return fill
