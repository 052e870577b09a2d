"""The flags of a command, read into its dataclass, those of `train` over a recipe; and help."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

import tyro

from vitrail.data.address import parse
from vitrail.errors import ConfigError, nearest
from vitrail.model.config import ViTConfig
from vitrail.model.presets import preset
from vitrail.training.recipe import Data, Recipe, default_recipe, read_recipe, shipped

SHORT = {
    "--epochs": "--train.epochs",
    "--batch-size": "--train.batch-size",
    "--lr": "--optimizer.lr",
    "--seed": "--train.seed",
    "--device": "--train.device",
    "--dtype": "--train.dtype",
    "--weights": "--train.weights",
    "--minutes": "--train.minutes",
}


def read_flags(command: Any, verb: str, words: list[str], default: Any = None) -> Any:
    """Read the flags of a verb into its dataclass, over the values of `default` where given."""
    _check_flags(command, verb, words)
    more = {} if default is None else {"default": default}
    return tyro.cli(command, prog=f"vitrail {verb}", args=words, **more)


def read_train(command: Any, verb: str, words: list[str]) -> Any:
    """Read the flags of `train` over the recipe that they or the data ask for.

    `command` is its dataclass; its `tree` is a whole recipe.
    """
    if any(word in ("-h", "--help") for word in words):
        print(_train_help())
        raise SystemExit(0)
    show_all = "--help-all" in words
    words = [_long(word) for word in words if word != "--help-all"]
    if show_all and not words:
        words = ["digits"]
    flags = {word.partition("=")[0].replace("_", "-").replace(".no-", ".") for word in words}
    if "--data.source" in flags:
        raise ConfigError("--data.source: give the data as DATA, right after `train`")
    if "--model.classes" in flags:
        raise ConfigError("--model.classes: a run has the classes of its data; leave it out")
    if words and not words[0].startswith("-"):
        parse(words[0])  # sooner than tyro has read the flags
    default = command(data=tyro.MISSING, tree=_unchecked(Recipe()))
    given = read_flags(command, verb, words, default)
    recipe = _recipe(given, any(flag.startswith("--model.") for flag in flags))
    if show_all:
        default = command(data=given.data, tree=_unchecked(recipe))
        read_flags(command, verb, [*words, "--help"], default)
    return replace(given, tree=_overlay(recipe, given.tree, flags, "--"))


def _recipe(given: Any, other_model: bool) -> Recipe:
    """Give the recipe that the flags ask for, or the data, or the run that is to be resumed."""
    columns = (given.tree.data.image_column, given.tree.data.label_column)
    weights = given.tree.train.weights
    if given.recipe is not None:
        recipe = read_recipe(given.recipe, weights)
    elif given.resume:
        recipe = _recipe_to_resume(given.data, given.out, columns)
    else:
        recipe, note = default_recipe(given.data, *columns, weights)
        is_first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
        if note and is_first and not (given.model or other_model or given.print_recipe):
            print(note, file=sys.stderr)
    if given.model is not None:
        recipe = replace(recipe, model=preset(given.model))
    return replace(recipe, data=replace(recipe.data, source=given.data))


def _overlay(section: Any, given: Any, flags: set[str], before: str) -> Any:
    """Give a section of the recipe with the leaves that flags name taken from `given`."""
    changes = {}
    for f in fields(section):
        name, value = before + f.name.replace("_", "-"), getattr(given, f.name)
        if is_dataclass(value):
            changes[f.name] = _overlay(getattr(section, f.name), value, flags, name + ".")
        elif name in flags:
            changes[f.name] = value
    if isinstance(section, ViTConfig):  # a width takes the head width and the MLP width along
        return section.replace(**changes)
    return replace(section, **changes)


class _AnyModel(ViTConfig):
    """A model as flags say it, not yet held against what can be built."""

    def __post_init__(self) -> None: ...


class _AnyRecipe(Recipe):
    """A recipe as flags say it: its sections meet those of the recipe that they change later."""

    def __post_init__(self) -> None: ...


def _unchecked(recipe: Recipe) -> Recipe:
    sections = {f.name: getattr(recipe, f.name) for f in fields(Recipe)}
    model = {f.name: getattr(recipe.model, f.name) for f in fields(ViTConfig)}
    return _AnyRecipe(**{**sections, "model": _AnyModel(**model)})


def _recipe_to_resume(data: str, out: str | None, columns: tuple[str | None, str | None]) -> Recipe:
    """Give the recipe of the run that --resume means; a folder without one has the data's."""
    from vitrail.training.run_folder import choose

    run = choose(Recipe(data=Data(source=data)), out, resume=True)
    recipe = run.path / "recipe.toml"
    return read_recipe(recipe) if recipe.is_file() else default_recipe(data, *columns)[0]


def _check_flags(command: type, verb: str, words: list[str]) -> None:
    """Raise `ConfigError` with the nearest flag for one that there is not: sooner than tyro can."""
    known = {"--help", *_flags(command, "--")} | (set(SHORT) if verb == "train" else set())
    for word in words[: words.index("--") if "--" in words else None]:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise ConfigError(
                f'`vitrail {verb}` has no flag "{flag}".{nearest(flag, known)} '
                f"`vitrail {verb} --help` lists them all"
            )


def _flags(section: Any, before: str) -> Iterator[str]:
    """Give every flag of a dataclass and of those inside it: `--train.epochs`."""
    kinds, hints = get_type_hints(section), get_type_hints(section, include_extras=True)
    for f in fields(section):
        name = f.name.replace("_", "-")
        if is_dataclass(kind := kinds[f.name]):
            how = getattr(hints[f.name], "__metadata__", ())
            has_prefix = not any(getattr(part, "name", None) == "" for part in how)
            yield from _flags(kind, f"{before}{name}." if has_prefix else before)
        else:
            yield from (before + name, f"{before}no-{name}")


def _long(word: str) -> str:
    name, equals, value = word.partition("=")
    return SHORT.get(name, name) + equals + value


def front_page(verbs: Mapping[str, type]) -> str:
    """Say what there is to type."""
    lines = [f"  {name:9} {command.__doc__}" for name, command in verbs.items()]
    return "\n".join(
        [
            "vitrail: the plain Vision Transformer, whole.",
            "",
            "usage: vitrail COMMAND ...",
            "",
            *lines,
            "",
            "Begin with: vitrail train digits",
            "",
            "`vitrail COMMAND --help` says more, `vitrail --version` the version; --debug with any",
            "command shows where an error comes from.",
        ]
    )


def _train_help() -> str:
    flags = [
        ("--recipe NAME|FILE", f"one of {', '.join(shipped())}, or a TOML file"),
        ("--model PRESET", "in place of the recipe's model; `vitrail presets` lists them"),
        ("--weights ORIGIN", "begin with pretrained weights: a file, hf:OWNER/NAME, timm:NAME ..."),
        ("--out FOLDER", "the run's folder, else the lowest unused runs/DATA-N"),
        ("--resume", "continue the newest unfinished run of this data"),
        ("--override", "continue a run although its recipe or data were others"),
        ("--processes N", "share each batch among N processes of this machine"),
        ("--max-restarts K", "with --processes: start again when one of them dies"),
        ("--print-recipe", "print the whole recipe as TOML, and train nothing"),
        ("--dry-run", "take a few steps, say what time and memory to expect, write nothing"),
        ("--json", "print the summary as JSON"),
    ]
    short = [(a, f"short for {b}") for a, b in SHORT.items() if a != "--weights"]
    sections = [(f"--{f.name}.*", _section(f.name)) for f in fields(Recipe)]
    lines = [f"  {flag:20} {text}" for flag, text in flags + short]
    lines += ["", "every leaf of the recipe is a flag; `vitrail train --help-all` lists them:", ""]
    lines += [f"  {flag:20} {text}" for flag, text in sections]
    usage = "usage: vitrail train DATA [--section.leaf VALUE ...]"
    about = "DATA: digits, or a folder of train/CLASS/* and val/CLASS/*, or of CLASS/*"
    return "\n".join(["Train a model on images in classes.", "", usage, "", about, "", *lines])


def _section(name: str) -> str:
    section: Any = getattr(Recipe(), name)
    words = " ".join(f.name for f in fields(section))
    return words if len(words) < 76 else words[:72].rsplit(" ", 1)[0] + " ..."
