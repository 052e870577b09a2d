"""The verbs that look at models, carry them over and give them away."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from vitrail.errors import ConfigError
from vitrail.model.checks import check_image_size
from vitrail.model.config import Activation, Pooling, Positions
from vitrail.model.presets import preset
from vitrail.verbs.words import Text, as_json

Origin = Annotated[Text, tyro.conf.arg(metavar="ORIGIN")]
Target = Annotated[Text, tyro.conf.arg(metavar="TARGET")]
Model = Annotated[Text, tyro.conf.arg(metavar="MODEL")]
Repository = Annotated[Text, tyro.conf.arg(metavar="OWNER/NAME")]
To = Annotated[str, tyro.conf.arg(metavar="DIALECT")]
Dialect = Annotated[str | None, tyro.conf.arg(metavar="DIALECT")]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Walk through a model, step by step from image to logits: shapes, parameters, operations."""

    model: Text  # a preset, a run, a bundle, a weight file, hf:OWNER/NAME or timm:NAME
    image_size: tuple[int, int] | None = None  # H W, else the model's own
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        origin = parse_origin(self.model)
        if self.image_size is not None and origin.kind == "preset":
            check_image_size(self.image_size, preset(origin.name).patch_size)
        from vitrail.model.shapes import summary
        from vitrail.weights.loading import architecture

        config = architecture(origin)
        size = (config.channels, *(self.image_size or config.image_size))
        walk = summary(config, size, name=origin.name)
        print(as_json(walk.to_json()) if self.json else walk)
        return 0


@dataclass(frozen=True, kw_only=True)
class Presets:
    """List all presets with their sizes."""

    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.model.presets import table

        if self.json:
            print(as_json({name: config.to_json() for name, config in table().items()}))
            return 0
        from vitrail.model.shapes import presets_page

        print(presets_page(table()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model as another library's files, and prove that the numbers stay the same."""

    origin: Origin  # a weight file, a library's folder, hf:OWNER/NAME, timm:NAME, a run, a bundle
    target: Target  # a folder for timm, huggingface and vitrail, a file for the others
    to: To  # timm, huggingface, torchvision, google, clip, vit-pytorch ... (README), or vitrail
    dialect: Dialect = None  # whose names the origin has, where they do not tell
    preset: str | None = None  # says what the origin's tensors do not show
    revision: str | None = None  # of a hub repository
    heads: int | None = None  # of attention, which no tensor shows
    activation: Activation | None = None  # in place of the origin's
    norm_eps: float | None = None  # in place of the origin's
    pooling: Pooling | None = None  # where the origin's tensors do not show it
    positions: Positions | None = None  # where there is no table of them
    image_size: tuple[int, int] | None = None  # H W: the positions are resized
    patch_size: int | None = None  # the patch kernel is resized
    classes: int | None = None  # another number than the origin's: a fresh head
    channels: int | None = None  # the patch kernel is adapted
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin
        from vitrail.weights.target import check_dialect, check_target

        parse_origin(self.origin)
        check_target(Path(self.target).expanduser(), self.to)
        if self.dialect is not None:
            check_dialect(self.dialect)
        if self.preset is not None:
            preset(self.preset)
        from vitrail.weights.convert import conversion

        own = ("origin", "target", "to", "json")
        as_load = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        done = conversion(self.origin, self.target, self.to, as_load, certified=True)
        print(as_json(done.to_json()) if self.json else done.text())
        return 0


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload a model with a model card to the Hugging Face hub."""

    model: Model  # a run or a bundle, or any other origin
    repository: Repository  # made where it is missing
    private: bool = False
    revision: str | None = None  # a branch
    message: str | None = None  # of the commit

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        if parse_origin(self.model).kind == "preset":
            raise ConfigError(f"{self.model} has random weights: push what has learned something")
        from vitrail.weights.hub import push
        from vitrail.weights.loading import load

        how = {"private": self.private, "message": self.message, "revision": self.revision}
        print(push(load(self.model), self.repository, **how))
        return 0


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine can do, and what is missing."""

    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.doctor import examine, text

        facts = examine()
        print(as_json(facts) if self.json else text(facts))
        return 0
