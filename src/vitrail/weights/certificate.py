"""The certificate: what was found in a file, who said what, and how far the numbers agree."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

from vitrail.model.config import PositionResize
from vitrail.weights import files, peers
from vitrail.weights.bundle import Bundle
from vitrail.weights.peers import Comparison
from vitrail.weights.reading import Reading

WIDE = 84  # letters beside the names of the rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What was read, by which rules, and what another library makes of the same file."""

    origin: str
    found: str  # dialect and variant, and the wrapper around the tensors
    files: Mapping[str, str]  # name -> sha256
    architecture: Mapping[str, Any]
    whence: Mapping[str, Sequence[str]]  # who said it -> fields of the architecture
    read: int
    unused: Mapping[str, Sequence[str]]  # why -> names
    missing: Sequence[str]
    parameters: int
    preprocess: Mapping[str, Any]
    labels: int
    changes: Sequence[str]  # what was fitted to other sizes, channels or classes
    comparison: Comparison | None
    without: str  # why there is no comparison

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    def text(self) -> str:
        """Give the certificate as lines for people."""
        config = self.architecture
        rows = [
            ("found", self.found),
            *(("sha256", f"{digest}  {name}") for name, digest in self.files.items()),
            (
                "architecture",
                f"width {config['width']}, depth {config['depth']}, heads {config['heads']}, "
                f"patches of {config['patch_size']}, images {_times(config['image_size'])}, "
                f"channels {config['channels']}, classes {config['classes']}, "
                f"pooling {config['pooling']}",
            ),
            *((f"  {who}", self._said(names)) for who, names in self.whence.items()),
            ("keys", f"{self.read} read, {self._unused()} unused, {len(self.missing)} missing"),
            *(
                (
                    "  unused",
                    f"{len(names)} ({why}): {', '.join(names[:3])}" + " ..." * (len(names) > 3),
                )
                for why, names in self.unused.items()
            ),
            ("parameters", f"{self.parameters:,}"),
            ("preprocess", self._preprocess()),
            *(("fitted", line) for line in self.changes),
        ]
        if self.comparison is None:
            rows.append(("not compared", self.without))
        else:
            rows += self.comparison.text_rows()
        return "\n".join([self.origin, *(_row(name, value) for name, value in rows)])

    def _said(self, names: Sequence[str]) -> str:
        shown = [f"{name} {_short(self.architecture[name])}" for name in names]
        return ", ".join(shown)

    def _unused(self) -> int:
        return sum(map(len, self.unused.values()))

    def _preprocess(self) -> str:
        p = self.preprocess
        numbers = [" ".join(f"{value:.4g}" for value in p[name]) for name in ("mean", "std")]
        return (
            f"{_times(p['size'])}, {p['resize']}, crop {p['crop']:.4g}, {p['interpolation']}, "
            f"mean {numbers[0]}, std {numbers[1]}"
        )


class Loaded(NamedTuple):
    """A bundle, what was read for it, and what was done to fit it; a preset reads nothing."""

    bundle: Bundle
    reading: Reading | None
    done: list[str]
    path: Path | None = None


def certify(origin: str, loaded: Loaded) -> Certificate:
    """Give the certificate of what was loaded: files are read again for their sha256."""
    bundle, reading, done, path = loaded
    config = bundle.model.config
    preprocess = bundle.preprocess.to_json()
    common: dict[str, Any] = {
        "origin": origin,
        "architecture": config.to_json(),
        "missing": [],
        "parameters": sum(p.numel() for p in bundle.model.parameters()),
        "preprocess": preprocess,
        "labels": len(bundle.labels),
        "changes": done,
    }
    if reading is None:
        preset = (bundle.origin or {}).get("preset")
        found = f"the preset {preset}, random weights" if preset else "a vitrail bundle"
        paths = [] if path is None else [path]
        return Certificate(
            **common,
            found=found,
            files=_digests(paths),
            whence={},
            read=0 if preset else len(bundle.model.state_dict()),
            unused={},
            comparison=None,
            without="these are our own names and our own arithmetic",
        )
    comparison = peers.compare(reading)
    wrapper = f", inside {reading.wrapper}" if reading.wrapper else ""
    whence: dict[str, list[str]] = {}
    for name, who in reading.whence.items():
        if who != "tensors":
            whence.setdefault(who, []).append(name)
    return Certificate(
        **common,
        found=f"{reading.dialect.name} ({reading.dialect.variant}){wrapper}",
        files=_digests(_parts(reading.path)),
        whence=whence,
        read=reading.read,
        unused={why: list(names) for why, names in reading.unused.items()},
        comparison=comparison if isinstance(comparison, Comparison) else None,
        without=comparison if isinstance(comparison, str) else "",
    )


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in paths}


def _parts(path: Path) -> list[Path]:
    """Give the file, and where it is the index of one in parts, these too."""
    if path.suffix != ".json":
        return [path]
    parts = sorted(set(files.read_json(path)["weight_map"].values()))
    return [path, *(path.parent / part for part in parts)]


def _row(name: str, value: str) -> str:
    """Give a row, folded where it is too long for a terminal."""
    if len(value) <= WIDE:
        return f"  {name:22}{value}".rstrip()
    lines = wrap(value, WIDE, break_long_words=False, break_on_hyphens=False)
    return f"  {name:22}" + f"\n{'':24}".join(lines)


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({PositionResize(**value)})"
    if isinstance(value, list | tuple):
        return _times(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
