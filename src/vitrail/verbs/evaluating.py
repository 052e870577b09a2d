"""The verb that measures a model."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.data.address import located, parse
from vitrail.data.storage import exists
from vitrail.engines.names import check_engine
from vitrail.errors import ConfigError, DataError
from vitrail.verbs.words import (
    EngineName,
    Output,
    Running,
    Runs,
    Split,
    Text,
    as_json,
    open_model,
    say_choice,
    split_as_in_run,
)

Found = tuple[str, Any, str]  # the name of a figure in JSON, its value, and both as text


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a model on labelled images: accuracy, calibration, classes, confusion, labels."""

    model: Text  # a run, bundle, weight file, exported file, hf:OWNER/NAME, timm:NAME or a preset
    data: Text  # its held-out images are measured, or those of --split
    split: Split = "held-out"  # or one by its name
    against: str | None = None  # another model, to compare with on the same images
    corruptions: bool = False  # five kinds at five severities: takes 25 times as long
    predictions: str | None = None  # a .jsonl or .csv file to write, one row an image
    output: Output = None  # a folder to write: evaluation.json and predictions.jsonl
    image_column: str | None = None  # of a table, else the run's, else image, img, path or file
    label_column: str | None = None  # else the run's, else label, labels, class or fine_label
    engine: EngineName = "auto"  # auto: the fastest here that answers alike, if worth the start
    trust: bool = False  # open a .pt2 file, which can run code: yours, or of whom you trust
    json: bool = False  # print one JSON document
    runs: Runs = field(default_factory=Running)

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        check_engine(self.engine, self.runs.device, self.runs.merge, self.runs.aspect)
        for model in filter(None, (self.model, self.against)):
            parse_origin(model)
        self._check_data()
        self.runs.check()
        if self.runs.aspect and self.corruptions:
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
        from vitrail.inference.choosing import engine_for_source
        from vitrail.inference.corruptions import KINDS, SEVERITIES
        from vitrail.inference.evaluate import check_classes, scored
        from vitrail.inference.evaluation_files import (
            about,
            make_folder,
            write_evaluation,
            write_predictions,
        )
        from vitrail.inference.evaluation_text import evaluation_text

        bundle = open_model(self.model, self.trust)
        how = split_as_in_run(bundle.origin, self.data, self.image_column, self.label_column)
        source, notes = part(self.data, self.split, **how)
        for note in notes:
            print(note, file=sys.stderr)
        check_classes(bundle, source, self.model)
        other = None if self.against is None else open_model(self.against, self.trust)
        if other is not None:
            check_classes(other, source, str(self.against))
        if self.output is not None:
            make_folder(self.output)
        looks = 1 + (other is not None) + self.corruptions * len(KINDS) * len(SEVERITIES)
        on = self.runs.on() | {"name": self.engine, "keeps": False}
        runs = engine_for_source(bundle, source, looks, **on)
        say_choice(runs)
        with Counter("images", looks * len(source)) as counter:
            answers = scored(runs, bundle, source, seen=counter.add, **self.runs.reading())
            added = [
                *self._corrupted(runs, bundle, source, answers, counter.add),
                *self._compared(runs, other, source, answers, counter.add),
            ]
        found = answers.evaluation()
        values, texts = found.to_json(), [evaluation_text(found)]
        for name, value, text in added:
            values[name] = value
            texts.append(text)
        for file in found.bad:
            print(f"not read: {file.path}: {file.reason}", file=sys.stderr)
        # Told before it is written: a full disk must not cost what was found.
        print(as_json(values) if self.json else "\n\n".join(texts), flush=True)
        if self.predictions is not None:
            write_predictions(answers, self.predictions)
        if self.output is not None:
            values |= about(self.model, self.data, how)
            values |= {"engine": runs.name, "dtype": runs.dtype}
            values |= {"merge": self.runs.merge} if self.runs.merge else {}
            values |= {"aspect": True} if self.runs.aspect else {}
            write_evaluation(values, answers, self.output)
        return 2 if found.failed else 0

    def _corrupted(
        self, runs: Any, bundle: Any, source: Any, answers: Any, seen: Any
    ) -> Iterator[Found]:
        if not self.corruptions:
            return
        from vitrail.inference.corruptions import corruption_results
        from vitrail.inference.evaluate import evaluation_loader
        from vitrail.inference.evaluation_text import corruptions_text

        loader = evaluation_loader(bundle, source, **self.runs.reading())
        found = corruption_results(runs, loader, bundle.labels, seen=seen)
        clean = sum(answers.right().values()) / len(answers.labels)
        yield "corruptions", [row._asdict() for row in found], corruptions_text(found, clean)

    def _compared(
        self, runs: Any, bundle: Any, source: Any, answers: Any, seen: Any
    ) -> Iterator[Found]:
        if bundle is None:
            return
        from vitrail.engines.build import engine
        from vitrail.engines.exported_files import is_exported
        from vitrail.inference.comparing import compare
        from vitrail.inference.evaluate import scored
        from vitrail.inference.evaluation_text import comparison_text

        how: dict[str, Any] = {"name": runs.name, "dtype": runs.dtype, "keeps": False}
        if is_exported(self.model) or is_exported(str(self.against)):  # each by its own engine
            how |= {"name": "auto", "dtype": "auto"}
        alike = engine(bundle, **self.runs.on() | how)
        other = scored(alike, bundle, source, seen=seen, **self.runs.reading())
        found = compare(answers.right(), other.right())
        values = {"model": self.against, **found._asdict()}
        yield "against", values, comparison_text(found, str(self.against))
