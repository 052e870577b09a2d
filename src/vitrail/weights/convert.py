"""Writing another library's files: the way back through the same rules, and read again as proof."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.model.config import ViTConfig, read_fields
from vitrail.model.vit import ViT
from vitrail.weights import disk, files, rules
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.certificate import Certificate, certify
from vitrail.weights.dialect import Dialect, Export, Writing
from vitrail.weights.dialects.table import for_export
from vitrail.weights.equivalent import SLIGHTLY, within
from vitrail.weights.loading import load_with_facts
from vitrail.weights.reading import HALF, log, stored_dtype
from vitrail.weights.target import FORMS, check_target

# What a file without a config beside it does not show, and who reads it again has to say.
UNSEEN = ("heads", "image_size", "activation", "pooling")
SAME = 1e-5  # of the largest number: the last digits of float32
# The same released weights run with 1e-12, 1e-6 and 1e-5 in one library or another.
PUBLISHED_EPS = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What was converted into what, and how far the two agree."""

    source: Certificate | None  # none where a bundle in memory was converted
    target: str
    to: str
    changes: list[str]  # said in other words, with the same numbers, or nearly
    digests: Mapping[str, str]
    difference: float  # the largest, of blocks and answers for two random images
    largest: float  # the largest number there
    again: str  # how to load what was written

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    def text(self) -> str:
        """Give lines for people."""
        rows = [
            ("written", f"{self.to}"),
            *(("changed", line) for line in self.changes),
            *(
                [("not written", "preprocessing and class names, for which a file has no place")]
                if FORMS[self.to] != "folder"
                else []
            ),
            *(("sha256", f"{digest}  {name}") for name, digest in self.digests.items()),
            (
                "read again",
                f"largest difference {self.difference:.1e} of {self.largest:.3g}, "
                "on two random images",
            ),
            ("load it", self.again),
        ]
        before = [] if self.source is None else [self.source.text(), ""]
        return "\n".join([*before, self.target, *(f"  {name:22}{text}" for name, text in rows)])


def convert(
    origin: Bundle | str | Path, target: str | Path, to: str = "huggingface", **as_load: Any
) -> Path:
    """Write a model as another library's files: `to` is a dialect, or "vitrail".

    A folder with config and safetensors for timm, huggingface and vitrail; a file for the others
    (`.npz` for google; `.pth`, or `.safetensors`). `as_load` are the keywords of `load`. What was
    written is read again and compared. Raises `WeightsError` that names what has no place in that
    dialect, `OutputError` where something is in the way.
    """
    done = conversion(origin, target, to, as_load, certified=False)
    for change in done.changes:
        if SLIGHTLY in change:
            log.warning("%s: %s", target, change)
    return Path(done.target)


def conversion(
    origin: Bundle | str | Path,
    target: str | Path,
    to: str,
    as_load: Mapping[str, Any],
    *,
    certified: bool,
) -> Conversion:
    """Convert as `convert` does, and give the record of it; `certified` with the source's."""
    target = Path(target).expanduser()
    check_target(target, to)
    source = None
    if isinstance(origin, Bundle):
        if as_load:
            raise WeightsError(f"a bundle is loaded already: leave out {', '.join(as_load)}")
        bundle = replace(origin, model=_twin(origin.model))
    else:
        given = {name: value for name, value in as_load.items() if value is not None}
        dialect, preset, revision = (given.pop(n, None) for n in ("dialect", "preset", "revision"))
        loaded = load_with_facts(origin, dialect, preset, revision, read_fields(given))
        bundle = loaded.bundle
        source = certify(str(origin), loaded) if certified else None
    _check_finite(bundle.model)
    if to == "vitrail":
        save(bundle, target)
        changes, known = [], {}
        difference, largest = _difference(bundle.model, _again(target, to, known))
    else:
        written = exported(bundle, to)
        changes, known = written.changes, _unseen(written)
        with _place(target, written.dialect) as beside:
            _write(beside, written)
            again = _again(beside, to, known)
            _check_same(target, _twin(bundle.model, norm_eps=written.config.norm_eps), again)
            difference, largest = _difference(bundle.model, again)
    words = "".join(f", {name}={value!r}" for name, value in known.items())
    return Conversion(
        source=source,
        target=str(target),
        to=to,
        changes=changes,
        digests={path.name: files.sha256(path) for path in _weights(target)},
        difference=difference,
        largest=largest,
        again=f'vitrail.load("{target}"' + (f', dialect="{to}"{words})' if known else ")"),
    )


class Written(NamedTuple):
    """A model in another dialect's words: its files, what it had to become, and how."""

    dialect: Dialect
    export: Export
    config: ViTConfig
    changes: list[str]


def exported(bundle: Bundle, to: str) -> Written:
    """Say a bundle in the dialect `to`.

    Raises `WeightsError` that names each part that has no place there.
    """
    origin = dict(bundle.origin or {})
    kept = origin if origin.get("dialect") == to else {}
    config = bundle.model.config
    dialect = for_export(to, config, kept)
    tensors = {name: t.detach().cpu() for name, t in bundle.model.state_dict().items()}
    tensors, config, changes = within(tensors, config, dialect.holds(config), to)
    _check_eps(bundle.model, config.norm_eps, to)
    tensors = {name: _as_stored(name, t, origin) for name, t in tensors.items()}
    known = {f.name: getattr(config, f.name) for f in fields(config)}
    theirs, used = rules.write(dialect.rules, tensors, known)
    if homeless := [name for name in tensors if name not in used]:
        raise WeightsError(f"{to} ({dialect.variant}) has no place for {', '.join(homeless[:5])}")
    export = dialect.export(Writing(theirs, config, bundle.preprocess, bundle.labels, kept))
    if any(name.endswith("mask_token") for name in export.tensors):
        changes.append(f"mask_token of zeros: {to} wants one, which only masked training reads")
    return Written(dialect, export, config, changes)


def _as_stored(name: str, tensor: Tensor, origin: Mapping[str, Any]) -> Tensor:
    """Give the tensor in the half precision that it came in, where that loses nothing."""
    dtype = stored_dtype(name, origin.get("dtypes") or {})
    if dtype is None:
        return tensor
    half = tensor.to(dtype)
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _check_eps(model: ViT, eps: float, to: str) -> None:
    """Raise `WeightsError` where the eps of the norms there changes more than the last digits."""
    have = model.config.norm_eps
    if eps == have or max(eps, have) <= PUBLISHED_EPS:
        return
    difference, largest = _difference(model, _twin(model, norm_eps=eps))
    if difference > SAME * largest:
        raise WeightsError(
            f"{to} has no place for norm_eps = {have:g} (there: {eps:g}): the numbers would be "
            f"{difference:.1e} of {largest:.3g} apart; load it with norm_eps={eps:g} "
            f"(--norm-eps {eps:g}) to have another model than it was, knowingly"
        )


def _check_finite(model: ViT) -> None:
    if not isfinite(_difference(model, model)[1]):
        raise WeightsError("the model's own numbers are not finite: nothing was written")


def _check_same(target: Path, expected: ViT, again: ViT) -> None:
    """Raise `WeightsError` where what was written is not the model that it was made of."""
    difference, largest = _difference(expected, again)
    if not difference <= SAME * largest:  # nor for NaN
        raise WeightsError(
            f"{target} would not give the same numbers: they differ by {difference:.1e} of "
            f"{largest:.3g}; nothing was written. This is a defect of vitrail"
        )


@contextmanager
def _place(target: Path, dialect: Dialect) -> Iterator[Path]:
    """Give a place beside `target` to write at; what is there takes its place, or goes."""
    if dialect.writes == "folder":
        with disk.new_folder(target) as beside:
            yield beside
        return
    with (
        disk.written(target),
        TemporaryDirectory(prefix=".vitrail-", dir=target.parent) as scratch,
    ):
        beside = Path(scratch) / target.name
        yield beside
        beside.replace(target)


def _write(target: Path, written: Written) -> None:
    tensors = written.export.tensors
    if written.dialect.writes == "folder":
        files.write_tensors(target / "model.safetensors", tensors, metadata={"format": "pt"})
        for name, values in written.export.files.items():
            disk.write_json(target / name, values)
    elif written.dialect.writes == ".npz":
        files.write_npz(target, {name: _array(t) for name, t in tensors.items()})
    elif target.suffix == ".safetensors":
        files.write_tensors(target, tensors, metadata={"format": "pt"})
    else:
        files.write_torch(target, tensors)


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # numpy has none; flax writes its bytes so
        return tensor.contiguous().view(torch.int16).numpy().view("V2")
    return tensor.numpy()


def _weights(target: Path) -> list[Path]:
    return [target] if target.is_file() else sorted(target.glob("*.safetensors"))


def _unseen(written: Written) -> dict[str, Any]:
    """Give what has to be said with a file, which has no config beside it."""
    config = written.config
    if written.dialect.writes == "folder":
        return {}
    known = {name: getattr(config, name) for name in UNSEEN}
    if config.positions != "learned":
        return known | {"positions": config.positions}
    return known | {"prefix_positions": config.prefix_positions}


def _twin(model: ViT, **changes: Any) -> ViT:
    """Give a model of the same weights, on the CPU and in float32 or wider, to be run alone."""
    with torch.device("meta"):
        twin = ViT(model.config.replace(**changes))
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    wide = {n: t.float() if t.dtype in HALF else t for n, t in state.items()}
    twin.load_state_dict(wide, assign=True)
    return twin.eval()


def _again(target: Path, to: str, known: Mapping[str, Any]) -> ViT:
    """Read what was written as anybody would."""
    return load_with_facts(target, None if to == "vitrail" else to, None, None, known).bundle.model


@torch.no_grad()
def _difference(model: ViT, other: ViT) -> tuple[float, float]:
    """Give the largest difference for two random images, and the largest number there.

    Held against each other are what the blocks give and the answers, which a head of zeros makes
    alike; it is told of the two for which it is the larger share.
    """
    config = model.config
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, config.channels, *config.image_size, generator=draw)
    pairs = []
    for one in (model, other):
        pixels = images.to(one.patch_embed.proj.weight.dtype)
        x, rotation, _ = one.embed(pixels)
        pairs.append((one.blocks(x, rotation=rotation), one(pixels)))
    found = [
        (float((mine - theirs).abs().max()), float(mine.abs().max()))
        for mine, theirs in zip(*pairs, strict=True)
    ]
    return max(found, key=lambda pair: (not pair[0] <= SAME * pair[1], pair[0] / (pair[1] or 1)))
