"""What a MODEL or ORIGIN argument names, found out without reading a weight or importing torch."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from vitrail.errors import WeightsError, nearest
from vitrail.model.presets import presets

# How libraries name the weights of a model; the first that is there is taken: safetensors before
# pickles, whole files before shards. Beside such a file, a config file is that model's.
STANDARD_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# The ecosystems' own files beside weights; each dialect reads the ones that it knows.
SIDECARS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "open_clip_config.json",
)
OTHER_ENDINGS = (".npz", ".pth", ".pt", ".safetensors")  # taken where there is exactly one


class Origin(NamedTuple):
    """Where a model comes from."""

    # bundle: a folder of ours; file: a library's weights; hf, timm: a repository of the hub
    kind: Literal["bundle", "file", "hf", "timm", "preset"]
    name: str
    path: Path
    revision: str | None = None


def parse(origin: str) -> Origin:
    """Read a MODEL or ORIGIN argument.

    A run folder (its last weights), a bundle folder, a weight file, a library's folder, a preset,
    `timm:NAME` or `hf:OWNER/NAME[@REVISION]`. Raises `WeightsError` for anything else, with the
    nearest preset. No request is made.
    """
    hub = re.fullmatch(r"(hf|timm):([^@]*)(?:@(.*))?", origin, re.DOTALL)
    if hub:
        return _hub(origin, hub[1], hub[2], hub[3])
    try:
        path = Path(origin).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise WeightsError(f'there is no model "{origin}": {error}') from error
    # A run may have a preset's name; an empty folder of that name is none.
    holds = ("config.json", "last", "recipe.toml", *STANDARD_NAMES)
    if origin in presets() and not any((path / name).exists() for name in holds):
        return Origin("preset", origin, path)
    if path.is_dir():
        return _folder(origin, path)
    if path.exists():
        return Origin("file", path.name, path)
    raise WeightsError(
        f'there is no model "{origin}": no preset of that name, and no such file or folder.'
        f"{nearest(origin, presets())} `vitrail presets` lists all of them; timm:NAME and "
        "hf:OWNER/NAME name models of the hub"
    )


def choose(names: Collection[str]) -> list[str]:
    """Give the weight file that a folder with these files means: one; none, or several, if none."""
    standard = [name for name in STANDARD_NAMES if name in names]
    return standard[:1] or sorted(n for n in names if "/" not in n and n.endswith(OTHER_ENDINGS))


def _hub(origin: str, kind: str, name: str, revision: str | None) -> Origin:
    if not name or revision == "" or (kind == "hf" and name.count("/") != 1):
        raise WeightsError(
            f'"{origin}" names no model of the hub: write hf:OWNER/NAME, hf:OWNER/NAME@REVISION '
            "or timm:NAME"
        )
    return Origin("hf" if kind == "hf" else "timm", name, Path(), revision)


def _folder(origin: str, path: Path) -> Origin:
    if _is_bundle(path / "config.json"):
        return Origin("bundle", path.resolve().name, path)
    if (path / "last" / "config.json").is_file():
        return Origin("bundle", path.resolve().name, path / "last")
    if (path / "recipe.toml").is_file():
        raise WeightsError(
            f'the run "{origin}" has no weights yet: {_status(path)}; '
            f"`vitrail train` with `--out {origin}` continues it"
        )
    files = choose([entry.name for entry in path.iterdir()])
    if len(files) == 1:
        return Origin("file", path.resolve().name, path / files[0])
    if files:
        raise WeightsError(
            f'"{origin}" holds several weight files: {", ".join(files[:5])}; name the one you mean'
        )
    if (path / "config.json").is_file():
        return Origin("bundle", path.resolve().name, path)  # whose reader says what it lacks
    raise WeightsError(
        f'"{origin}" is no run, no bundle and no library\'s folder: it holds no weights '
        f"({', '.join(STANDARD_NAMES)}, or one *{', *'.join(OTHER_ENDINGS)})"
    )


def _is_bundle(config: Path) -> bool:
    try:
        stored = json.loads(config.read_text(encoding="utf-8"))
        return stored.get("format") == "vitrail" or isinstance(stored.get("architecture"), dict)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _status(run: Path) -> str:
    try:
        return f"it is {json.loads((run / 'summary.json').read_text())['status']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not finished a step"
