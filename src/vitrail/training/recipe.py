"""The recipe: all of a training run, as a tree of frozen dataclasses and as TOML."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitrail.data.address import parse
from vitrail.data.config import Augment
from vitrail.errors import ConfigError, check_names, check_range, check_types, nearest
from vitrail.model.config import DropRates, ViTConfig
from vitrail.model.presets import preset

SHIPPED = Path(__file__).parent.parent / "recipes"


def _check_below_one(config: object, names: str) -> None:
    for name in names.split():
        if not 0 <= (value := getattr(config, name)) < 1:
            raise ConfigError(f"{name} is {value}; it should be from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where the images come from and how they are read."""

    source: str = "digits"  # a DATA address
    threads: int = 2  # that decode
    decode: Literal["exact", "fast"] = "exact"  # fast: large JPEGs at 1/2, 1/4 or 1/8 of their size
    timeout: float = 60.0  # seconds that storage may be silent, before the run stops
    # Images that lie together in shards or row groups are shuffled near each other ("grouped"), or
    # everything as a whole; auto: grouped where that storage is slow and too large to keep.
    shuffle: Literal["auto", "whole", "grouped"] = "auto"
    max_bad_share: float = 0.01  # of files that cannot be read, before the run stops
    held_out_share: float = 0.2  # of data without a split of its own
    split_seed: int = 0
    image_column: str | None = None  # of a table; absent: image, img, path or file
    label_column: str | None = None  # absent: label, labels, class or fine_label
    # How an image is fitted to the model, where no random crop does it; absent: as the weights
    # say, else shortest and 1. The crop is the share of the resized image's side that is kept.
    resize: Literal["shortest", "square", "pad"] | None = None
    crop: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "threads", 1)
        check_range(self, "crop", 0, 1, open_low=True)
        if self.resize == "pad" and self.crop is not None:
            raise ConfigError(
                f"resize is pad, which keeps the whole image, and crop is {self.crop}; give one "
                "of them alone"
            )
        check_range(self, "timeout", 0, 1e6, open_low=True)  # twelve days: no clock overflows
        check_range(self, "max_bad_share", 0, 1)
        check_range(self, "split_seed", 0, 2**32 - 1)
        if not 0 < self.held_out_share < 1:
            raise ConfigError(
                f"held_out_share is {self.held_out_share}; it should be above 0 and below 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """How a gradient becomes a step."""

    name: Literal["adamw", "muon", "sgd", "lamb"] = "adamw"
    lr: float = 1e-3  # with muon, of the blocks' matrices
    adamw_lr: float = 1e-3  # with muon, of all else
    weight_decay: float = 0.05  # of matrices; norms, biases, tokens and positions have none
    layer_decay: float = 1.0  # share of its rate that each layer before keeps; MAE: .65 and .75
    clip: float = 1.0  # largest norm of the gradient; 0: as it is
    beta1: float = 0.9  # of adamw and lamb, and with muon of all but the blocks' matrices
    beta2: float = 0.999  # MAE's pretraining: .95
    eps: float = 1e-8
    momentum: float = 0.9  # of sgd

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "lr adamw_lr eps", 0, open_low=True)
        check_range(self, "layer_decay", 0, 1, open_low=True)
        check_range(self, "weight_decay clip", 0)
        _check_below_one(self, "beta1 beta2 momentum")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How the learning rate rises and falls."""

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup: float = 0.1  # share of all steps in which it rises
    # Share of the highest rate at the first step (torchvision .033, DeiT 1e-6 / lr); 0: 1 / the
    # number of steps of the warm-up.
    warmup_start: float = 0.0
    final: float = 0.01  # share of the highest rate that is left at the end; constant: 1
    cooldown: float = 0.1  # with wsd, share of all steps in which it falls

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "warmup warmup_start final cooldown", 0, 1)
        if self.name == "wsd" and self.warmup + self.cooldown > 1:
            raise ConfigError(
                f"warmup {self.warmup} and cooldown {self.cooldown} are more than all steps; "
                f"together they should be at most 1: give a cooldown of {1 - self.warmup:g} or less"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is minimised."""

    name: Literal["classify", "distill"] = "classify"
    # bce: yes or no for each class, their mean (DeiT III, timm); bce_sum: their sum (big_vision).
    loss: Literal["cross_entropy", "bce", "bce_sum"] = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"  # balanced: rare classes count as much
    teacher: str | None = None  # of distill: a run, a bundle or another ORIGIN
    distillation: Literal["hard", "soft"] = "hard"  # its likeliest class, or its probabilities
    teacher_share: float = 0.5  # of the loss; the labels have the rest
    temperature: float = 3.0  # of soft probabilities

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "label_smoothing teacher_share", 0, 1)
        check_range(self, "temperature", 0, open_low=True)
        if (self.name == "distill") != (self.teacher is not None):
            raise ConfigError(
                f'objective is "{self.name}" and the teacher is {self.teacher}; distill needs a '
                "teacher, and a teacher needs distill: give --objective.name distill and "
                "--objective.teacher ORIGIN"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """How long, how much at a time, on what."""

    epochs: int = 100
    steps: int | None = None  # instead of epochs
    minutes: float | None = None  # instead of both: the steps that take so long on this machine
    batch_size: int = 128
    seed: int = 0  # of weights, order and augmentation
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    micro_batch: int | None = None  # images of a batch at a time; absent: as many as fit
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the arithmetic, not weights
    cpu_threads: int | None = None  # that one operation is shared by; absent: one for each core
    compile: bool = False  # with torch.compile: a minute first, faster after it
    deterministic: bool = True  # on a GPU: the same command ends in the same bits; else faster
    recompute: bool = False  # blocks keep their input alone: less memory, a third more arithmetic
    weights: str | None = None  # to begin with: an ORIGIN; absent: random ones
    freeze: int = 0  # the first layers stay as they are: 1 the embedding, 2 a block too; -1 all
    head_bias: float = 0.0  # of the head at first; AugReg: -6.9
    first_size: tuple[int, int] | None = None  # H W from which images grow to the model's size
    patience: int | None = None  # evaluations without a better one, after which the run ends
    log_every: int = 20  # steps
    evaluate_every: int = 5  # epochs
    save_every: int = 10  # epochs
    keep: int = 2  # newest checkpoints that stay; the older are for when the newest breaks
    tensorboard: bool = False  # rows go to event files in the run's folder too
    wandb: str | None = None  # the project at Weights & Biases that gets the rows too
    # Leave out a step whose loss or gradient is not finite, in place of stopping: each step then
    # waits for the device.
    skip_nonfinite: bool = False
    position_scale: float = 1.0  # times the initial learned positions; digits: 8, so N(0, 1)
    drop: DropRates = DropRates()

    def __post_init__(self) -> None:
        check_types(self)
        check_range(
            self,
            "epochs steps batch_size micro_batch cpu_threads log_every evaluate_every save_every "
            "keep patience",
            1,
        )
        check_range(self, "freeze", -1)
        if self.wandb == "":
            raise ConfigError('wandb is ""; it should be the name of a project')
        check_range(self, "minutes", 0, open_low=True)
        check_range(self, "seed", 0, 2**31 - 1)  # the step is added below it, in 64 bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Ema:
    """A running mean of the weights, evaluated and saved in their place."""

    decay: float = 0.0  # share of the old mean that a step keeps; 0: no mean

    def __post_init__(self) -> None:
        check_types(self)
        _check_below_one(self, "decay")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallel:
    """How more than one process shares the work: see docs/scale.md."""

    # ddp: each process has all weights; fsdp: a piece of them, gathered a block at a time.
    kind: Literal["ddp", "fsdp"] = "ddp"
    reshard: bool = True  # fsdp lets a block go after its forward pass: less memory, more traffic
    checkpoints: Literal["gathered", "sharded"] = "gathered"  # sharded: each writes its own pieces

    def __post_init__(self) -> None:
        check_types(self)
        if self.checkpoints == "sharded" and self.kind == "ddp":
            raise ConfigError(
                "checkpoints is sharded, but with ddp each process has all weights and nothing is "
                'in pieces; give --parallel.kind fsdp, or leave checkpoints "gathered"'
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All of a training run: repeat it with the same recipe and the same images."""

    model: ViTConfig = field(default_factory=lambda: preset("nano"))
    data: Data = Data()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    objective: Objective = Objective()
    train: Train = Train()
    ema: Ema = Ema()
    parallel: Parallel = Parallel()

    def __post_init__(self) -> None:
        first, full, patch = self.train.first_size, self.model.image_size, self.model.patch_size
        if first is not None and any(
            side % patch or not 0 < side <= most for side, most in zip(first, full, strict=True)
        ):
            raise ConfigError(
                f"train.first_size is {first}; it should be whole patches of {patch}, and no more "
                f"than the model's {full}"
            )
        if self.parallel.kind == "fsdp" and self.train.dtype == "float16":
            raise ConfigError(
                "parallel.kind is fsdp and train.dtype float16, whose scale would be another on "
                "each process; give --dtype bfloat16, or --parallel.kind ddp"
            )


def shipped() -> tuple[str, ...]:
    """Give the names of the recipes that come with vitrail."""
    return tuple(sorted(file.stem for file in SHIPPED.glob("*.toml")))


def read_recipe(name_or_file: str | Path, weights: str | None = None) -> Recipe:
    """Read a recipe: one that comes with vitrail by its name, or a TOML file.

    `[model]` may name a `preset` and change fields of it; a recipe without it, which begins with
    `weights`, has their architecture. Raises `ConfigError` that names the file
    and the key for anything that is unknown or does not fit.
    """
    file = Path(name_or_file)
    if str(name_or_file) in shipped():
        file = SHIPPED / f"{name_or_file}.toml"
    elif not file.is_file():
        raise ConfigError(
            f'there is no recipe "{name_or_file}": no file of that name, and the shipped ones are '
            f"{', '.join(shipped())}.{nearest(str(name_or_file), shipped())}"
        )
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        if weights is not None:
            table["train"] = {**table.get("train", {}), "weights": weights}
        return from_table(table)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def default_recipe(
    data: str,
    image_column: str | None = None,
    label_column: str | None = None,
    weights: str | None = None,
) -> tuple[Recipe, str]:
    """Give the recipe that fits a DATA address, and a line to tell the user, empty for most.

    With `weights` it is `fine-tune`. The digits have their own; images of at most 40 pixels, and
    photos at 64, are `small-images`.
    """
    if weights is not None:
        return read_recipe("fine-tune", weights), ""
    kind = parse(data).kind
    if kind == "digits":
        return read_recipe("digits"), ""
    from vitrail.data.sources import largest_side  # it reads images: numpy and Pillow

    recipe = read_recipe("small-images")
    if kind == "idx":  # MNIST's form: letters and digits in a mirror are others, or none
        recipe = replace(recipe, augment=replace(recipe.augment, flip=False))
    if largest_side(data, image_column, label_column) <= 40:
        return recipe, ""
    photos = recipe.model.replace(image_size=(64, 64), patch_size=8)
    return replace(recipe, model=photos), (
        "photos, from scratch: recipe small-images at 64 x 64 pixels "
        "(--model.image-size and --model.patch-size change that; --recipe small-photos learns few "
        "photos for longer). Pretrained weights learn more from few photos: --weights "
        "timm:vit_small_patch16_224.augreg_in21k"
    )


def from_table(table: Mapping[str, Any]) -> Recipe:
    """Build a recipe from the tables of a TOML file."""
    sections = dict(table)
    train = sections.get("train", {})
    weights = train.get("weights") if isinstance(train, Mapping) else None
    if "model" not in sections and isinstance(weights, str):
        return _build(Recipe, sections, "a recipe", model=_architecture(weights))
    given = sections.pop("model", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"model is {given!r}; it should be a table, [model]")
    model = dict(given)
    name = model.pop("preset", "nano")
    if not isinstance(name, str):
        raise ConfigError(f"[model] preset is {name!r}; it should be a text")
    base = preset(name)
    try:
        config = base.replace(**model)
    except ConfigError as error:
        raise ConfigError(f"[model] {error}") from error
    return _build(Recipe, sections, "a recipe", model=config)


def _architecture(weights: str) -> ViTConfig:
    from vitrail.weights.origin import parse as parse_origin

    origin = parse_origin(weights)  # sooner than torch is there
    from vitrail.weights.loading import architecture

    return architecture(origin)


def from_toml(text: str) -> Recipe:
    """Give the recipe that `to_toml` gave."""
    return from_table(tomllib.loads(text))


def to_toml(recipe: Recipe) -> str:
    """Give the whole recipe as TOML that `read_recipe` reads back to an equal one."""
    return "\n".join(_lines(asdict(recipe), ())).lstrip("\n") + "\n"


def same_source(a: str, b: str) -> bool:
    """Say whether two DATA addresses are the same place, however they are spelt."""
    return a == b or Path(a).expanduser().resolve() == Path(b).expanduser().resolve()


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Give a line for each leaf in which two recipes would train differently."""
    a, b = _flat(asdict(old)), _flat(asdict(new))
    # Order, pixels and weights do not depend on them, or on another number of processes alone.
    same_run = ["data.threads", "data.timeout", "train.keep", "train.tensorboard", "train.wandb"]
    same_run += [key for key in b if key.startswith("parallel.")]
    if same_source(old.data.source, new.data.source):
        same_run.append("data.source")
    return [
        f"{key}: {a.get(key)} in the run, {b.get(key)} now"
        for key in b
        if a.get(key) != b.get(key) and key not in same_run
    ]


def _build(cls: type, table: Mapping[str, Any], where: str, **ready: Any) -> Any:
    """Build a dataclass from a table, its dataclass fields from the tables inside."""
    check_names(table, [f.name for f in fields(cls) if f.name not in ready], where)
    hints = get_type_hints(cls)
    values = dict(ready)
    for name, value in table.items():
        inner = f"{where.removeprefix('a recipe').strip('[]')}.{name}".lstrip(".")
        if is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{inner} is {value!r}; it should be a table, [{inner}]")
            values[name] = _build(hints[name], value, f"[{inner}]")  # type: ignore[arg-type]
        else:
            holds_tuple = tuple in [get_origin(h) for h in (hints[name], *get_args(hints[name]))]
            values[name] = tuple(value) if holds_tuple and isinstance(value, list) else value
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where} {error}" if where.startswith("[") else str(error)) from error


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = [f"{k} = {_toml(v)}" for k, v in table.items() if not isinstance(v, dict | None)]
    lines = ["", f"[{'.'.join(path)}]", *plain] if path and plain else plain
    for name, inner in table.items():
        if isinstance(inner, dict):
            lines += _lines(inner, (*path, name))
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + escaped.translate({c: f"\\u{c:04X}" for c in (*range(32), 127)}) + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)


def _flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= (
            _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
        )
    return flat
