"""What a MODEL or ORIGIN argument names, found out without reading a weight or importing torch."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

from vitrail.errors import WeightsError, nearest
from vitrail.model.presets import presets


class Origin(NamedTuple):
    """Where a model comes from: a bundle folder, or a preset whose weights are random."""

    kind: Literal["bundle", "preset"]
    name: str
    path: Path


def parse(origin: str) -> Origin:
    """Read a MODEL argument: a run folder (its last weights), a bundle folder or a preset.

    Raises `WeightsError` for anything else, with the nearest preset.
    """
    try:
        path = Path(origin).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise WeightsError(f'there is no model "{origin}": {error}') from error
    if origin in presets() and not (path / "config.json").is_file():
        return Origin("preset", origin, path)
    if (path / "config.json").is_file():
        return Origin("bundle", path.resolve().name, path)
    if (path / "last" / "config.json").is_file():
        return Origin("bundle", path.resolve().name, path / "last")
    if (path / "recipe.toml").is_file():
        raise WeightsError(
            f'the run "{origin}" has no weights yet: {_status(path)}; '
            f"`vitrail train` with `--out {origin}` continues it"
        )
    if path.exists():
        raise WeightsError(f'"{origin}" is no run or bundle: it holds no config.json and no last/')
    raise WeightsError(
        f'there is no model "{origin}": no preset of that name, and no such folder.'
        f"{nearest(origin, presets())} `vitrail presets` lists all of them"
    )


def _status(run: Path) -> str:
    try:
        return f"it is {json.loads((run / 'summary.json').read_text())['status']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not finished a step"
