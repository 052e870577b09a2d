"""Writing another library's files: the way back through the same rules, and read again as proof."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import OutputError, WeightsError, nearest
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights import disk, files, rules
from vitrail.weights.bundle import Bundle, save
from vitrail.weights.certificate import Certificate, certify
from vitrail.weights.dialect import Dialect, Export
from vitrail.weights.dialects.table import DIALECTS, for_export
from vitrail.weights.equivalent import SLIGHTLY, within
from vitrail.weights.loading import load_with_facts
from vitrail.weights.reading import log, stored_dtype

TORCH_ENDINGS = (".pth", ".pt", ".bin")
# What a file without a config beside it does not show, and who reads it again has to say.
UNSEEN = ("heads", "image_size", "activation", "pooling")
SAME = 1e-5  # of the largest logit: the last digits of float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What was converted into what, and how far the two agree."""

    source: Certificate | None  # none where a bundle in memory was converted
    target: str
    to: str
    changes: list[str]  # said in other words, with the same numbers, or nearly
    digests: Mapping[str, str]
    difference: float  # the largest, of the answers for two random images
    largest: float  # the largest of these answers
    again: str  # how to load what was written

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    def text(self) -> str:
        """Give lines for people."""
        rows = [
            ("written", f"{self.to}"),
            *(("changed", line) for line in self.changes),
            *(("sha256", f"{digest}  {name}") for name, digest in self.digests.items()),
            (
                "read again",
                f"largest difference {self.difference:.1e} of {self.largest:.3g} "
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
    _check_target(target, to)
    source = None
    if isinstance(origin, Bundle):
        if as_load:
            raise WeightsError(f"a bundle is loaded already: leave out {', '.join(as_load)}")
        bundle = origin
    else:
        given = {name: value for name, value in as_load.items() if value is not None}
        dialect, preset, revision = (given.pop(n, None) for n in ("dialect", "preset", "revision"))
        loaded = load_with_facts(origin, dialect, preset, revision, given)
        bundle = loaded.bundle
        source = certify(str(origin), *loaded) if certified else None
    if to == "vitrail":
        save(bundle, target)
        config, changes, known = bundle.model.config, [], {}
    else:
        said_in, export, config, changes = exported(bundle, to)
        _write(target, said_in, export)
        known = {} if said_in.writes == "folder" else _unseen(config)
    difference, largest = _compare(bundle, target, to, known)
    slight = [line for line in changes if SLIGHTLY in line]
    if difference > SAME * largest and not slight:
        raise WeightsError(
            f"{target} was written and does not give the same numbers: they differ by "
            f"{difference:.1e} of {largest:.3g}; this is a defect of vitrail"
        )
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


def exported(bundle: Bundle, to: str) -> tuple[Dialect, Export, ViTConfig, list[str]]:
    """Give the files of a bundle in the dialect `to`, what it had to become, and how.

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
    export = dialect.export(theirs, config, bundle.preprocess, bundle.labels, kept)
    return dialect, export, config, changes


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
    if eps == have:
        return
    with torch.device("meta"):
        other = ViT(model.config.replace(norm_eps=eps))
    other.load_state_dict(model.state_dict(), assign=True)
    difference, largest = _difference(model, other.eval())
    if difference > SAME * largest:
        raise WeightsError(
            f"{to} has no place for norm_eps = {have:g} (there: {eps:g}): the answers would be "
            f"{difference:.1e} of {largest:.3g} apart; load it with norm_eps={eps:g} to have "
            "another model than it was, knowingly"
        )


def _check_target(target: Path, to: str) -> None:
    names = list(dict.fromkeys(["vitrail", *(dialect.name for dialect in DIALECTS)]))
    if to not in names:
        raise WeightsError(
            f'there is no dialect "{to}".{nearest(to, names)} There are {", ".join(names)}'
        )
    forms = {dialect.writes for dialect in DIALECTS if dialect.name == to}
    if to == "vitrail" or "folder" in forms:
        if target.is_file() or target.suffix in (*TORCH_ENDINGS, ".npz", ".safetensors"):
            raise OutputError(f"{to} is a folder of files, and {target} names a file")
        if to != "vitrail" and target.is_dir() and any(target.iterdir()):
            raise OutputError(f"{target} holds files already; give a new or empty folder")
        return
    endings = (".npz",) if ".npz" in forms else (*TORCH_ENDINGS, ".safetensors")
    if target.suffix not in endings:
        raise OutputError(f"{target} should end in {' or '.join(endings)}, as {to} is one file")
    if target.exists():
        raise OutputError(f"{target} is there already; remove it, or give another name")


def _write(target: Path, dialect: Dialect, export: Export) -> None:
    if dialect.writes == "folder":
        with disk.new_folder(target) as beside:
            files.write_tensors(
                beside / "model.safetensors", export.tensors, metadata={"format": "pt"}
            )
            for name, values in export.files.items():
                disk.write_json(beside / name, values)
    elif dialect.writes == ".npz":
        files.write_npz(target, {name: _array(t) for name, t in export.tensors.items()})
    elif target.suffix == ".safetensors":
        files.write_tensors(target, export.tensors, metadata={"format": "pt"})
    else:
        files.write_torch(target, export.tensors)


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # numpy has none; flax writes its bytes so
        return tensor.contiguous().view(torch.int16).numpy().view("V2")
    return tensor.numpy()


def _weights(target: Path) -> list[Path]:
    return [target] if target.is_file() else sorted(target.glob("*.safetensors"))


def _unseen(config: ViTConfig) -> dict[str, Any]:
    known = {name: getattr(config, name) for name in UNSEEN}
    return known if config.positions == "learned" else known | {"positions": config.positions}


def _compare(
    bundle: Bundle, target: Path, to: str, known: Mapping[str, Any]
) -> tuple[float, float]:
    """Read what was written as anybody would, and give the largest difference of its answers."""
    wanted = None if to == "vitrail" else to
    return _difference(
        bundle.model, load_with_facts(target, wanted, None, None, known).bundle.model
    )


@torch.no_grad()
def _difference(model: ViT, other: ViT) -> tuple[float, float]:
    """Give the largest difference of two models' answers for two images, and the largest answer."""
    config, weight = model.config, model.patch_embed.proj.weight
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, config.channels, *config.image_size, generator=draw)
    images = images.to(weight.device, weight.dtype)
    training = model.training
    expected = model.eval()(images)
    model.train(training)
    found = other.to(weight.device)(images.to(other.patch_embed.proj.weight.dtype))
    return float((expected - found).abs().max()), float(expected.abs().max())
