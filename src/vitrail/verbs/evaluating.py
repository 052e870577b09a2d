"""The verb that measures a model."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.data.address import located, parse
from vitrail.data.storage import exists
from vitrail.errors import ConfigError, DataError, check_counts
from vitrail.model.checks import check_merge
from vitrail.verbs.words import Device, Dtype, Output, Split, Text, as_json, split_as_in_run

Found = tuple[str, Any, str]  # the name of a figure in JSON, its value, and both as text


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a model on labelled images: accuracy, calibration, classes, confusion, labels."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    data: Text  # its held-out images are measured, or those of --split
    split: Split = "held-out"  # or one by its name
    against: str | None = None  # another model, to compare with on the same images
    corruptions: bool = False  # five kinds at five severities: takes 25 times as long
    predictions: str | None = None  # a .jsonl or .csv file to write, one row an image
    output: Output = None  # a folder to write: evaluation.json and predictions.jsonl
    image_column: str | None = None  # of a table, else the run's, else image, img, path or file
    label_column: str | None = None  # else the run's, else label, labels, class or fine_label
    batch_size: int = 64
    threads: int = 2  # that decode
    device: Device = "auto"
    dtype: Dtype = "float32"
    merge: int = 0  # patches that each block merges into others: faster, less exact
    aspect: bool = False  # each image at its own aspect, in about as many patches
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        for model in filter(None, (self.model, self.against)):
            parse_origin(model)
        self._check_data()
        check_counts(batch_size=self.batch_size, threads=self.threads)
        check_merge(self.merge)
        if self.aspect and self.corruptions:
            raise ConfigError(
                "--corruptions are of images in one shape: leave them or --aspect out"
            )
        from vitrail.inference.evaluation_files import check_folder, check_predictions

        if self.predictions is not None:
            check_predictions(self.predictions)
        if self.output is not None:
            check_folder(self.output)
        return self._evaluated()

    def _check_data(self) -> None:
        """Raise `DataError` for data that is not here, and say where the run had it."""
        try:
            parse(self.data)
        except DataError as error:
            from vitrail.weights.json_files import read_json

            run = Path(self.model).expanduser() / "environment.json"
            folder = read_json(run).get("started_in") if run.is_file() else None
            there = located(self.data, folder)
            if there == self.data or not exists(there):
                raise
            raise DataError(
                f'{error}\n{self.model} was trained in "{folder}", where there is: give "{there}"'
            ) from error

    def _evaluated(self) -> int:
        from vitrail.data.parts import part
        from vitrail.data.progress import Counter
        from vitrail.inference.corruptions import KINDS, SEVERITIES
        from vitrail.inference.evaluate import check_classes, score
        from vitrail.inference.evaluation_files import (
            about,
            make_folder,
            write_evaluation,
            write_predictions,
        )
        from vitrail.inference.evaluation_text import evaluation_text
        from vitrail.weights.loading import load

        bundle = load(self.model)
        how = split_as_in_run(bundle.origin, self.data, self.image_column, self.label_column)
        source, notes = part(self.data, self.split, **how)
        for note in notes:
            print(note, file=sys.stderr)
        check_classes(bundle, source, self.model)
        other = None if self.against is None else load(self.against)
        if other is not None:
            check_classes(other, source, str(self.against))
        if self.output is not None:
            make_folder(self.output)
        looks = 1 + (other is not None) + self.corruptions * len(KINDS) * len(SEVERITIES)
        with Counter("images answered for:", looks * len(source)) as counter:
            scored = score(bundle, source, seen=counter.add, **self._runs())
            added = [
                *self._corrupted(bundle, source, scored, counter.add),
                *self._compared(other, source, scored, counter.add),
            ]
        found = scored.evaluation()
        values, texts = found.to_json(), [evaluation_text(found)]
        for name, value, text in added:
            values[name] = value
            texts.append(text)
        for file in found.bad:
            print(f"not read: {file.path}: {file.reason}", file=sys.stderr)
        # Told before it is written: a full disk must not cost what was found.
        print(as_json(values) if self.json else "\n\n".join(texts), flush=True)
        if self.predictions is not None:
            write_predictions(scored, self.predictions)
        if self.output is not None:
            values |= about(self.model, self.data, how)
            values |= {"merge": self.merge} if self.merge else {}
            values |= {"aspect": True} if self.aspect else {}
            write_evaluation(values, scored, self.output)
        return 2 if found.failed else 0

    def _corrupted(self, bundle: Any, source: Any, scored: Any, seen: Any) -> Iterator[Found]:
        if not self.corruptions:
            return
        from vitrail.engines.build import engine
        from vitrail.inference.corruptions import corruption_results
        from vitrail.inference.evaluate import evaluation_loader
        from vitrail.inference.evaluation_text import corruptions_text

        loader = evaluation_loader(bundle, source, self.batch_size, self.threads)
        runs = engine(bundle, dtype=self.dtype, device=self.device, merge=self.merge)
        found = corruption_results(runs, loader, bundle.labels, seen=seen)
        clean = sum(scored.right().values()) / len(scored.labels)
        yield "corruptions", [row._asdict() for row in found], corruptions_text(found, clean)

    def _compared(self, bundle: Any, source: Any, scored: Any, seen: Any) -> Iterator[Found]:
        if bundle is None:
            return
        from vitrail.inference.comparing import compare
        from vitrail.inference.evaluate import score
        from vitrail.inference.evaluation_text import comparison_text

        other = score(bundle, source, seen=seen, **self._runs())
        found = compare(scored.right(), other.right())
        values = {"model": self.against, **found._asdict()}
        yield "against", values, comparison_text(found, str(self.against))

    def _runs(self) -> dict[str, Any]:
        how = {"batch_size": self.batch_size, "threads": self.threads}
        return how | {
            "device": self.device,
            "dtype": self.dtype,
            "merge": self.merge,
            "aspect": self.aspect,
        }
