"""The verbs that answer for images: predict, embed, explain."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vitrail.data.inputs import Item, check, inputs
from vitrail.engines.names import check_engine
from vitrail.errors import ConfigError, check_counts
from vitrail.training.recipe import same_source
from vitrail.verbs.over_ray import check_flags, embed_over_ray, images_of, predict_over_ray
from vitrail.verbs.words import (
    Device,
    EngineName,
    Images,
    OnRay,
    Output,
    Ray,
    Running,
    Runs,
    Split,
    Text,
    as_json,
    open_model,
    say_choice,
)


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Answer for images: the likeliest classes of each."""

    model: Text  # a run, bundle, weight file, exported file, hf:OWNER/NAME, timm:NAME or a preset
    images: Images  # files, folders, "patterns", or DATA addresses
    top: int = 5  # classes to answer with
    format: Literal["table", "csv", "jsonl", "parquet"] | None = None  # else as -o ends, or a table
    output: Output = None  # a file; where it was begun by the same command, it is continued
    image_column: str | None = None  # of a table, else image, img, path or file
    engine: EngineName = "auto"  # auto: the fastest here that answers alike, if worth the start
    trust: bool = False  # open a .pt2 file, which can run code: yours, or of whom you trust
    json: bool = False  # print one JSON document
    runs: Runs = field(default_factory=Running)
    cluster: Ray = field(default_factory=OnRay)

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        check_flags(self)
        self.runs.check()
        check_engine(self.engine, self.runs.device, self.runs.merge, self.runs.aspect)
        if parse_origin(self.model).kind == "preset":
            print(f"{self.model} has random weights: its answers mean nothing", file=sys.stderr)
        check(self.images)
        if self.cluster.ray is not None:
            return predict_over_ray(self)
        from vitrail.data.progress import counted
        from vitrail.inference.output import check_output, form_of, write_predictions
        from vitrail.inference.predict import batches, check_answers

        form = "json" if self.json else self.format or form_of(self.output)
        check_output(form, self.output)
        bundle = open_model(self.model, self.trust)
        check_answers(bundle, self.top)
        digest = None if self.output is None else bundle.digest()
        runs, items = self._engine(bundle)
        made_by = {"top": self.top, "engine": runs.name, "dtype": runs.dtype}
        made_by |= {"merge": self.runs.merge, "aspect": self.runs.aspect}
        if self.output is not None:
            made_by |= {"model": digest, "image_column": self.image_column}
            items = counted(items, "images")
        failed = write_predictions(
            lambda items: batches(runs, bundle.labels, items, self.top, **self.runs.reading()),
            items,
            form,
            self.output,
            made_by,
        )
        return 2 if failed else 0

    def _engine(self, bundle: Any) -> tuple[Any, Iterator[Item]]:
        """Give the engine, chosen where that is left to it, and the images."""
        from vitrail.inference.choosing import engine_for_stream
        from vitrail.inference.output import made_before

        before, items = made_before(self.output), inputs(self.images, self.image_column)
        # What was chosen when the file was begun stays so: its rows are of one engine.
        asked = {"name": self.engine, "dtype": self.runs.dtype}
        begun = {"name": before.get("engine", "auto"), "dtype": before.get("dtype", "auto")}
        chosen = {key: begun[key] if asked[key] == "auto" else asked[key] for key in asked}
        runs, items = engine_for_stream(bundle, items, **self.runs.on() | chosen, keeps=False)
        if chosen != asked:
            runs.reason = f"as {self.output} was begun"
        say_choice(runs)
        return runs, items


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Turn images into vectors: into a file, to find those alike, to probe what they tell apart."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    data: Text  # a DATA address, or a folder, a "pattern" or a file of images
    output: Output = None  # a .parquet file, or .npy with a .csv of its rows beside
    split: Split = "all"  # which images of DATA; held-out are those that training kept out
    tokens: Literal["pooled", "class", "mean", "patches"] = "pooled"
    layer: int | None = None  # the block to take them after, 0 the first, else the whole encoder
    neighbours: int | None = None  # list the K nearest of each image, and near duplicates
    threshold: float = 0.95  # the cosine from which two images are near duplicates
    probe: bool = False  # kNN and logistic regression by the data's labels, cross-validated
    image_column: str | None = None  # of a table, else image, img, path or file
    label_column: str | None = None  # else label, labels, class or fine_label
    json: bool = False  # print one JSON document
    runs: Runs = field(default_factory=Running)
    cluster: Ray = field(default_factory=OnRay)

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        check_flags(self)
        self.runs.check()
        parse_origin(self.model)
        check([self.data])
        keep = self.neighbours is not None or self.probe
        if self.output is None and not keep:
            raise ConfigError("say what for: -o FILE, --neighbours K or --probe")
        if keep and self.tokens == "patches":
            raise ConfigError("patches are many vectors an image: compare pooled, class or mean")
        if self.runs.aspect and self.tokens == "patches":
            raise ConfigError(
                "patches of images at their own aspect are as many as each has: "
                "take pooled, class or mean, or leave --aspect out"
            )
        if self.neighbours is not None:
            check_counts(neighbours=self.neighbours)
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; a cosine is from -1 to 1")
        if self.cluster.ray is not None:
            return embed_over_ray(self)
        from vitrail.engines.build import torch_engine
        from vitrail.inference.embed import embedded
        from vitrail.inference.embedding import collect, insight
        from vitrail.inference.embedding_files import check_file
        from vitrail.weights.loading import load

        if self.output is not None:
            check_file(self.output)
        bundle = load(self.model)
        items = self._items(bundle.origin)
        engine = torch_engine(bundle, **self.runs.on(), keeps=False)
        batches = embedded(engine, items, self.tokens, self.layer, **self.runs.reading())
        found = insight(
            collect(batches, self.output, keep),
            self.neighbours,
            self.threshold,
            self.probe,
            self.split,
        )
        for path, reason in found.collected.bad:
            print(f"not read: {path}: {reason}", file=sys.stderr)
        print(as_json(found.to_json()) if self.json else found.text())
        return 2 if found.collected.bad else 0

    def _items(self, origin: Mapping[str, Any] | None) -> Iterator[Item]:
        """Give the images, with labels where the data has them; only --probe has need of any."""
        from vitrail.data.sets import labelled, labelled_or_not

        opened = labelled if self.probe else labelled_or_not
        items, notes = opened(self.data, self.split, **images_of(self, origin))
        for note in notes:
            print(note, file=sys.stderr)
        learned = {"all": "some of these", "train": "these"}.get(self.split)
        if self.probe and learned and same_source(str((origin or {}).get("data")), self.data):
            print(
                f"the model has learned from {learned} images, which flatters its probes: --split "
                "held-out has none of them",
                file=sys.stderr,
            )
        return items


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Show what in an image an answer rests on: attention, rollout, relevance, occlusion."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    images: Images  # files, or folders of them
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]  # a folder for the pictures
    method: Literal["rollout", "attention", "relevance", "occlusion"] = "rollout"
    target: str | None = None  # a class by name or index, else the likeliest
    layers: tuple[str, ...] | None = None  # 0 is the first, -1 the last; pool: the pooling's own
    heads: tuple[int, ...] | None = None  # else all
    queries: tuple[str, ...] | None = None  # class, patches, register-0 ..., or a patch as ROW,COL
    measure: bool = False  # how faithful each map is, in 170 forward passes at most
    fill: Literal["grey", "blur"] = "grey"  # what occlusion hides patches with
    inside: bool = False  # the model too: filters, positions, token norms, attention distance
    format: Literal["png", "svg"] = "png"
    batch_size: int = 32
    device: Device = "auto"
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        if parse_origin(self.model).kind == "preset":
            print(f"{self.model} has random weights: its maps mean nothing", file=sys.stderr)
        check(self.images)
        layers = None if self.layers is None else [_number(layer) for layer in self.layers]
        queries = None if self.queries is None else [_place(query) for query in self.queries]
        from vitrail.explaining.folder import explain_into
        from vitrail.weights.loading import load

        names = ("method", "target", "heads", "measure", "fill", "batch_size", "device")
        how = {name: getattr(self, name) for name in (*names, "format", "inside")}
        bundle, folder = load(self.model), Path(self.output).expanduser()
        rows, failed = [], 0
        for row in explain_into(
            folder, bundle, inputs(self.images), layers=layers, queries=queries, **how
        ):
            failed += row.error is not None
            if self.json:
                rows.append(row.to_json())
            else:
                print(row.text().encode("utf-8", "backslashreplace").decode(), flush=True)
        if self.json:
            print(as_json(rows))
        return 2 if failed else 0


def _number(layer: str) -> int | str:
    """Read a layer of --layers: a number, or a name as it is."""
    return int(layer) if re.fullmatch(r"-?\d{1,6}", layer) else layer


def _place(query: str) -> str | tuple[int, int]:
    """Read a query of --queries: ROW,COL of a patch, or a name as it is."""
    match = re.fullmatch(r"(-?\d{1,6}),(-?\d{1,6})", query)
    return query if match is None else (int(match[1]), int(match[2]))
