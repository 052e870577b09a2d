"""The verb that writes a model as a file for another runtime."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vitrail.data.address import parse
from vitrail.errors import ConfigError, check_counts
from vitrail.exporting.target import AGREEMENT, check_export, format_of
from vitrail.model.checks import check_image_size
from vitrail.model.presets import preset
from vitrail.verbs.words import Text, as_json, split_as_in_run

Model = Annotated[Text, tyro.conf.arg(metavar="MODEL")]
File = Annotated[Text, tyro.conf.arg(metavar="FILE")]
Data = Annotated[str | None, tyro.conf.arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model as ONNX, OpenVINO or a torch package, held against torch before it is there."""

    model: Model  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    file: File  # ends in .onnx, .xml (OpenVINO, with a .bin beside) or .pt2 (torch.export)
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"  # bfloat16: .pt2; int8: the others
    image_size: tuple[int, int] | None = None  # H W, else the model's own
    any_size: bool = False  # any height and width that the patch divides
    pixels: bool = False  # uint8 pixels in, B H W C of that size, and probabilities out
    check: Data = None  # labelled images: its held-out ones are answered before and after
    calibrate: Data = None  # images for int8, else those of --check that are not held out
    agreement: float = AGREEMENT  # the least share of the same answers, with --check
    image_column: str | None = None  # of a table, else image, img, path or file
    label_column: str | None = None  # else label, labels, class or fine_label
    batch_size: int = 64
    threads: int = 2  # that decode
    json: bool = False  # print the card as one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        origin = parse_origin(self.model)
        path = Path(self.file).expanduser()
        form = format_of(path)
        check_export(path, form, self.dtype)
        self._check()
        if self.image_size is not None and origin.kind == "preset":
            check_image_size(self.image_size, preset(origin.name).patch_size)
        if origin.kind == "preset":
            print(f"{self.model} has random weights: its answers mean nothing", file=sys.stderr)
        from vitrail.exporting.export import export
        from vitrail.weights.loading import load

        size: dict[str, Any] = {} if self.image_size is None else {"image_size": self.image_size}
        bundle = load(self.model, **size)
        done = export(
            bundle,
            path,
            form,
            dtype=self.dtype,
            takes="pixels" if self.pixels else "images",
            any_size=self.any_size,
            agreement=self.agreement,
            data=self.check or "",
            batch_size=self.batch_size,
            threads=self.threads,
            **self._sources(bundle),
        )
        print(as_json(done.card) if self.json else done.text())
        return 0

    def _check(self) -> None:
        """Raise for flags that do not go together, before anything is loaded."""
        check_counts(batch_size=self.batch_size, threads=self.threads)
        for data in filter(None, (self.check, self.calibrate)):
            parse(data)
        if not 0 <= self.agreement <= 1:
            raise ConfigError(f"--agreement is {self.agreement}; it should be a share, from 0 to 1")
        if self.dtype != "float32" and self.check is None:
            raise ConfigError(
                f"{self.dtype} is held to how many images it answers as float32 does: give "
                "labelled images by --check DATA"
            )
        if self.calibrate is not None and self.dtype != "int8":
            raise ConfigError(f"--calibrate is for int8, and not for {self.dtype}: leave it out")

    def _sources(self, bundle: Any) -> dict[str, Any]:
        """Open the images to check and to calibrate on, split as in the model's own run."""
        if self.check is None:
            return {}
        from vitrail.data.parts import part
        from vitrail.inference.evaluate import check_classes

        columns = (self.image_column, self.label_column)
        how = split_as_in_run(bundle.origin, self.check, *columns)
        check, notes = part(self.check, "held-out", **how)
        for note in notes:
            print(note, file=sys.stderr)
        check_classes(bundle, check, self.model)
        if self.dtype != "int8":
            return {"check": check}
        if self.calibrate is None:
            return {"check": check, "calibrate": part(self.check, "train", **how)[0]}
        other = split_as_in_run(bundle.origin, self.calibrate, *columns)
        return {"check": check, "calibrate": part(self.calibrate, "all", **other)[0]}
