"""The command line: its verbs. A verb imports a room only when it runs.

Results go to standard output, all else to standard error. Nothing on the way to `--help`, or to a
mistake in a flag, a recipe or a path, imports torch: the answer comes at once.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vitrail import __version__
from vitrail.data.address import parse
from vitrail.data.inputs import check, inputs
from vitrail.errors import ConfigError, DataError, VitrailError, nearest
from vitrail.flags import front_page, read_flags, read_train
from vitrail.model.checks import check_image_size
from vitrail.model.config import Activation, Pooling, Positions
from vitrail.model.presets import preset
from vitrail.training import launch
from vitrail.training.recipe import Recipe, default_recipe, read_recipe, to_toml

# How data without a split of its own is split, and how a table is read.
SPLIT = ("held_out_share", "split_seed", "image_column", "label_column")
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["float32", "bfloat16", "float16"]
Text = tyro.conf.Positional[str]
Origin = Annotated[Text, tyro.conf.arg(metavar="ORIGIN")]
Target = Annotated[Text, tyro.conf.arg(metavar="TARGET")]
Model = Annotated[Text, tyro.conf.arg(metavar="MODEL")]
Repository = Annotated[Text, tyro.conf.arg(metavar="OWNER/NAME")]
To = Annotated[str, tyro.conf.arg(metavar="DIALECT")]
Found = tuple[str, Any, str]  # the name of a figure in JSON, its value, and both as text
Output = Annotated[str | None, tyro.conf.arg(aliases=["-o"])]
Dialect = Annotated[str | None, tyro.conf.arg(metavar="DIALECT")]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on images in classes."""

    data: Text  # digits, or a folder of train/CLASS/* and val/CLASS/*, or of CLASS/*
    recipe: str | None = None  # the name of a recipe that comes with vitrail, or a TOML file
    model: str | None = None  # a preset, in place of the recipe's model
    out: str | None = None  # the run's folder, else the lowest unused runs/DATA-N
    resume: bool = False  # continue the newest unfinished run of this data
    override: bool = False  # continue a run although its recipe or data were others
    processes: int = 1  # on this machine, which share each batch; on several: docs/scale.md
    max_restarts: int = 0  # of all processes, when one of them dies
    print_recipe: bool = False  # print the whole recipe as TOML, and train nothing
    dry_run: bool = False  # take a few steps, say what time and memory to expect, write nothing
    json: bool = False  # print the summary as JSON
    tree: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)

    def run(self) -> int:
        if self.print_recipe:
            print(to_toml(self.tree), end="")
            return 0
        launch.check(self.tree, self.processes, self.max_restarts)
        if self.processes > 1:
            given = {"--resume": self.resume, "--override": self.override}
            given |= {"--dry-run": self.dry_run, "--json": self.json}
            return launch.launch(self.tree, self.out, given, self.processes, self.max_restarts)
        recipe = launch.handed() or self.tree
        from vitrail.inference.formats import run_text, trial_text
        from vitrail.training.loop import dry_run, train

        if self.dry_run:
            found = dry_run(recipe).to_json()
            text = _json(found) if self.json else trial_text(found)
        else:
            run = train(recipe, self.out, resume=self.resume, override=self.override)
            text = _json(run.summary) if self.json else run_text(run.folder, run.summary)
        if os.environ.get("RANK", "0") == "0":  # the first process speaks for all
            print(text)
        return 0


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a model on labelled images: accuracy, calibration, classes, confusion, labels."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    data: Text  # its held-out images are measured
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
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        for model in filter(None, (self.model, self.against)):
            parse_origin(model)
        parse(self.data)
        from vitrail.inference.evaluation_files import check_folder, check_predictions

        if self.predictions is not None:
            check_predictions(self.predictions)
        if self.output is not None:
            check_folder(self.output)
        return self._evaluated()

    def _evaluated(self) -> int:
        from vitrail.data.sources import open_data
        from vitrail.inference.evaluate import score
        from vitrail.inference.evaluation_files import write_evaluation, write_predictions
        from vitrail.inference.evaluation_text import evaluation_text
        from vitrail.weights.loading import load

        bundle = load(self.model)
        # Data without a split of its own is split as in the run, or what the model has learned
        # from would be among what it is measured on.
        origin = bundle.origin or {}
        how = {name: origin[name] for name in SPLIT if name in origin}
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        how |= {name: column for name, column in columns.items() if column is not None}
        source = open_data(self.data, **how).held_out
        runs: dict[str, Any] = {"batch_size": self.batch_size, "threads": self.threads}
        runs |= {"device": self.device, "dtype": self.dtype}
        scored = score(bundle, source, **runs)
        found = scored.evaluation()
        values, texts = found.to_json(), [evaluation_text(found)]
        for add in (self._corrupted, self._compared):
            for name, value, text in add(bundle, source, scored, runs):
                values[name] = value
                texts.append(text)
        for file in found.bad:
            print(f"not read: {file.path}: {file.reason}", file=sys.stderr)
        if self.predictions is not None:
            write_predictions(scored, self.predictions)
        if self.output is not None:
            values |= {"model": self.model, "data": self.data}
            write_evaluation(values, scored, self.output)
        print(_json(values) if self.json else "\n\n".join(texts))
        return 2 if found.failed else 0

    def _corrupted(self, bundle: Any, source: Any, scored: Any, runs: Any) -> Iterator[Found]:
        if not self.corruptions:
            return
        from vitrail.engines.build import engine
        from vitrail.inference.corruptions import corruption_results
        from vitrail.inference.evaluate import evaluation_loader
        from vitrail.inference.evaluation_text import corruptions_text

        loader = evaluation_loader(bundle, source, self.batch_size, self.threads)
        runs = engine(bundle, dtype=self.dtype, device=self.device)
        found = corruption_results(runs, loader, bundle.labels)
        clean = sum(scored.right().values()) / len(scored.labels)
        yield "corruptions", [row._asdict() for row in found], corruptions_text(found, clean)

    def _compared(self, bundle: Any, source: Any, scored: Any, runs: Any) -> Iterator[Found]:
        if self.against is None:
            return
        from vitrail.inference.comparing import compare
        from vitrail.inference.evaluate import score
        from vitrail.inference.evaluation_text import comparison_text
        from vitrail.weights.loading import load

        other = score(load(self.against), source, **runs)
        found = compare(scored.right(), other.right())
        values = {"model": self.against, **found._asdict()}
        yield "against", values, comparison_text(found, self.against)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Show what a data set holds: classes, sizes, bad files, duplicates, leaks."""

    data: Text  # digits, a folder, or another address, as for train
    show: str | None = None  # draw the first training images instead: a .png, .svg ...
    recipe: str | None = None  # a recipe's name or a TOML file, else the one that fits the data
    seed: int | None = None  # of --show, else the recipe's
    held_out_share: float | None = None  # of data without a split, else the recipe's (0.2)
    split_seed: int | None = None  # else the recipe's (0)
    image_column: str | None = None  # of a table, else image, img, path or file
    label_column: str | None = None  # else label, labels, class or fine_label
    threads: int | None = None  # that decode, else the recipe's (2)
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.reporting.batch_picture import check_suffix

        suffix = "" if self.show is None else check_suffix(self.show)
        parse(self.data)
        recipe = self._recipe()
        from vitrail.data.sources import open_data

        splits = open_data(self.data, **{name: getattr(recipe.data, name) for name in SPLIT})
        if self.json or self.show is not None:  # the page has a place for them
            for note in splits.notes:
                print(note, file=sys.stderr)
        if self.show is None:
            return self._overview(recipe, splits)
        from vitrail.data.listing import one_line
        from vitrail.training.first_batch import picture
        from vitrail.weights.disk import write_bytes

        drawn, batch = picture(recipe, splits, self.recipe or "the default recipe", suffix)
        for file in batch.bad:
            print(f"not read: {one_line(file.path)}: {one_line(file.reason)}", file=sys.stderr)
        write_bytes(Path(self.show), drawn)
        print(_json({"show": self.show}) if self.json else self.show)
        return 0

    def _recipe(self) -> Recipe:
        """Give the recipe, with what the flags say in its section data."""
        recipe, note = Recipe(), ""
        if self.recipe is not None:
            recipe = read_recipe(self.recipe)
        elif self.show is not None:
            recipe, note = default_recipe(self.data, self.image_column, self.label_column)
        if note:
            print(note, file=sys.stderr)
        names = (*SPLIT, "threads")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        seed = recipe.train.seed if self.seed is None else self.seed
        return replace(
            recipe,
            data=replace(recipe.data, source=self.data, **given),
            train=replace(recipe.train, seed=seed),
        )

    def _overview(self, recipe: Recipe, splits: Any) -> int:
        from vitrail.data.overview import overview
        from vitrail.data.overview_page import page
        from vitrail.data.progress import Counter

        how, notes = recipe.data, [*splits.notes]
        if not splits.names:
            share = f"{how.held_out_share:.0%} are held out"
            notes.append(f"no split of its own: {share}, by class, with seed {how.split_seed}")
        with Counter("images looked at:", sum(map(len, splits.parts().values()))) as counter:
            found = overview(
                self.data, splits, threads=how.threads, timeout=how.timeout, seen=counter.add
            )
        print(_json(found.to_json()) if self.json else page(found, notes))
        return 0


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Answer for images: the likeliest classes of each."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    images: tyro.conf.Positional[tuple[str, ...]]  # files, folders, "patterns", or DATA addresses
    top: int = 5  # classes to answer with
    format: Literal["table", "csv", "jsonl", "parquet"] = "table"
    output: Output = None  # a file; where it was begun by the same command, it is continued
    image_column: str | None = None  # of a table, else image, img, path or file
    engine: Literal["auto", "torch"] = "auto"
    batch_size: int = 64
    threads: int = 2  # that decode
    device: Device = "auto"
    dtype: Dtype = "float32"
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        if parse_origin(self.model).kind == "preset":
            print(f"{self.model} has random weights: its answers mean nothing", file=sys.stderr)
        check(self.images)
        from vitrail.engines.build import engine
        from vitrail.inference.output import check_output, write_predictions
        from vitrail.inference.predict import batches, check_answers
        from vitrail.weights.loading import load

        form = "json" if self.json else self.format
        check_output(form, self.output)
        bundle = load(self.model)
        check_answers(bundle, self.top)
        runs = engine(bundle, self.engine, self.dtype, device=self.device)
        how = {"batch_size": self.batch_size, "threads": self.threads}
        made_by = {"top": self.top, "engine": runs.name, "dtype": runs.dtype}
        if self.output is not None:
            made_by["model"] = bundle.digest()
        failed = write_predictions(
            lambda items: batches(runs, bundle.labels, items, self.top, **how),
            inputs(self.images, self.image_column),
            form,
            self.output,
            made_by,
        )
        return 2 if failed else 0


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Turn images into vectors: into a file, to find those alike, to probe what they tell apart."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    data: Text  # a DATA address, all its splits; or a folder, a "pattern" or a file of images
    output: Output = None  # a .parquet file, or .npy with a .csv of its rows beside
    tokens: Literal["pooled", "class", "mean", "patches"] = "pooled"
    layer: int | None = None  # the block to take them after, 0 the first, else the whole encoder
    neighbours: int | None = None  # list the K nearest of each image, and near duplicates
    threshold: float = 0.95  # the cosine from which two images are near duplicates
    probe: bool = False  # kNN and logistic regression by the data's labels, cross-validated
    image_column: str | None = None  # of a table, else image, img, path or file
    label_column: str | None = None  # else label, labels, class or fine_label
    batch_size: int = 64
    threads: int = 2  # that decode
    device: Device = "auto"
    dtype: Dtype = "float32"
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        parse_origin(self.model)
        check([self.data])
        keep = self.neighbours is not None or self.probe
        if self.output is None and not keep:
            raise ConfigError("say what for: -o FILE, --neighbours K or --probe")
        if keep and self.tokens == "patches":
            raise ConfigError("patches are many vectors an image: compare pooled, class or mean")
        if self.neighbours is not None and self.neighbours < 1:
            raise ConfigError(f"neighbours is {self.neighbours}; it should be 1 or more")
        from vitrail.engines.build import torch_engine
        from vitrail.inference.embed import embedded
        from vitrail.inference.embedding import collect, insight
        from vitrail.inference.embedding_files import check_file
        from vitrail.weights.loading import load

        if self.output is not None:
            check_file(self.output)
        items = self._items()
        engine = torch_engine(load(self.model), self.dtype, self.device)
        how = {"batch_size": self.batch_size, "threads": self.threads}
        batches = embedded(engine, items, self.tokens, self.layer, **how)
        found = insight(
            collect(batches, self.output, keep), self.neighbours, self.threshold, self.probe
        )
        for path, reason in found.collected.bad:
            print(f"not read: {path}: {reason}", file=sys.stderr)
        print(_json(found.to_json()) if self.json else found.text())
        return 2 if found.collected.bad else 0

    def _items(self) -> Any:
        """Give the images, with labels where the data has them; only --probe has need of any."""
        from vitrail.data.sets import labelled

        try:
            items, notes = labelled(self.data, self.image_column, self.label_column)
        except DataError:
            if self.probe or self.label_column:
                raise
            return inputs([self.data], self.image_column)
        for note in notes:
            print(note, file=sys.stderr)
        return items


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Show what in an image an answer rests on: attention, rollout, relevance, occlusion."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    images: tyro.conf.Positional[tuple[str, ...]]  # files, or folders of them
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
            print(_json(rows))
        return 2 if failed else 0


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
        print(_json(walk.to_json()) if self.json else walk)
        return 0


@dataclass(frozen=True, kw_only=True)
class Presets:
    """List all presets with their sizes."""

    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.model.presets import table

        if self.json:
            print(_json({name: config.to_json() for name, config in table().items()}))
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
        print(_json(done.to_json()) if self.json else done.text())
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
        print(_json(facts) if self.json else text(facts))
        return 0


VERBS: dict[str, type] = {
    verb.__name__.lower(): verb
    for verb in (
        Train,
        Data,
        Eval,
        Predict,
        Embed,
        Explain,
        Summary,
        Presets,
        Convert,
        Push,
        Doctor,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (0 done, 2 usage or bad input, ...)."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags = words[: words.index("--") if "--" in words else None]
    debug = "--debug" in flags
    words = [flag for flag in flags if flag != "--debug"] + words[len(flags) :]
    try:
        return _dispatch(words)
    except VitrailError as error:
        if debug:
            raise
        if not error.quiet:
            print(f"vitrail: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(
            f"vitrail: {type(error).__name__}: {error}\n"
            "This is a defect of vitrail; the same command with --debug shows where it is.",
            file=sys.stderr,
        )
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(front_page(VERBS))
        return 0 if words else 2
    if words[0] == "--version":
        print(f"vitrail {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise ConfigError(
            f'there is no command "{verb}".{nearest(verb, VERBS)} `vitrail --help` lists them all'
        )
    read = read_train if verb == "train" else read_flags
    return read(VERBS[verb], verb, rest).run()


def _number(layer: str) -> int | str:
    """Read a layer of --layers: a number, or a name as it is."""
    return int(layer) if re.fullmatch(r"-?\d{1,6}", layer) else layer


def _place(query: str) -> str | tuple[int, int]:
    """Read a query of --queries: ROW,COL of a patch, or a name as it is."""
    match = re.fullmatch(r"(-?\d{1,6}),(-?\d{1,6})", query)
    return query if match is None else (int(match[1]), int(match[2]))


def _json(values: Mapping[str, Any] | Sequence[Any]) -> str:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    # A name that is not UTF-8 becomes JSON's own escape, which reads back as the same name.
    return text.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    sys.exit(main())
