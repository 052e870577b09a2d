"""The folder of a run: which one, what is in it, and what is written when."""

import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail import __version__
from vitrail.data.address import parse
from vitrail.errors import ConfigError, OutputError
from vitrail.training import lock
from vitrail.training.recipe import Recipe, differences, read_recipe, same_source, to_toml
from vitrail.weights.disk import mend, write_bytes, write_json, written
from vitrail.weights.files import read_json, read_rows

# What a run that was killed while it was begun may have left.
_BEGUN = (
    lock.NAME,
    "checkpoints",
    "examples",
    "settled.json",
    ".settled.json.part",
    "environment.json",
    ".environment.json.part",
    ".recipe.toml.part",
)


class RunFolder:
    """The files of one run. A metric is a line by itself; all else is written whole or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics, self.log_file = path / "metrics.jsonl", path / "log.txt"
        self.checkpoints = path / "checkpoints"

    def start(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        """Write what is known before the first step; raises `OutputError` where it cannot."""
        with written(self.path):
            for name in ("checkpoints", "examples"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
                mend(self.path / name)
            mend(self.path)
        # The recipe comes last: a folder that has one is a whole run.
        write_json(self.path / "environment.json", {**environment(), **facts})
        write_bytes(self.path / "recipe.toml", to_toml(recipe).encode())

    def is_begun(self) -> bool:
        """Say whether this folder holds a run."""
        return (self.path / "recipe.toml").is_file()

    def is_of(self, source: str) -> bool:
        """Say whether this folder holds a run of the data at `source`."""
        recipe = self.path / "recipe.toml"
        return self.is_begun() and same_source(read_recipe(recipe).data.source, source)

    def summary(self) -> dict[str, Any]:
        """Give `summary.json`, empty where there is none yet."""
        path = self.path / "summary.json"
        return read_json(path) if path.is_file() else {}

    def write_summary(self, values: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", values)

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to `metrics.jsonl`."""
        line = json.dumps(row) + "\n"
        with (
            written(self.metrics, len(line)),
            self.metrics.open("a", encoding="utf-8") as file,
        ):
            file.write(line)

    def settle_metrics(self) -> None:
        """Bring the rows down to the disk."""
        if self.metrics.is_file():
            with written(self.metrics), self.metrics.open("rb+") as file:
                os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """Give all rows of `metrics.jsonl`; a last line that was cut short is not one."""
        return read_rows(self.metrics)

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run takes again."""
        kept = "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step)
        write_bytes(self.metrics, kept.encode())

    def log(self, text: str) -> None:
        """Append a line with the time to `log.txt`."""
        with written(self.log_file), self.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def choose(recipe: Recipe, out: str | Path | None, resume: bool) -> RunFolder:
    """Give the folder that these arguments mean; nothing is written yet.

    `out` names it; else `resume` means the newest unfinished run of this data, and neither means
    the lowest unused `runs/DATA-N`.
    """
    if out is not None:
        return RunFolder(_usable(Path(out).expanduser()))
    name = parse(recipe.data.source).name
    runs = _numbered(Path("runs"), name)
    _check_slurm()
    if resume:
        for path in sorted(runs.values(), key=lambda path: path.stat().st_mtime, reverse=True):
            run = RunFolder(path)
            if run.summary().get("status") != "finished" and run.is_of(recipe.data.source):
                return run
        raise ConfigError(
            f'there is no unfinished run of "{recipe.data.source}" in runs/; '
            "leave out --resume to start one"
        )
    number = 1
    while number in runs or Path("runs", f"{name}-{number}").exists():
        number += 1
    return RunFolder(Path("runs", f"{name}-{number}"))


def claim(recipe: Recipe) -> RunFolder:
    """Make the lowest unused `runs/DATA-N`: of two runs that begin at once, each has its own."""
    while True:
        run = choose(recipe, None, resume=False)
        with written(run.path):
            try:
                run.path.mkdir(parents=True)
            except FileExistsError:
                continue
            return run


def is_finished(
    run: RunFolder, recipe: Recipe, facts: Mapping[str, Any], *, override: bool = False
) -> bool:
    """Say whether this run has been trained to its end; `ConfigError` where it is another one."""
    if not run.is_begun():
        return False
    check_same(run, recipe, facts, override=override)
    return run.summary().get("status") == "finished"


def check_same(
    run: RunFolder, recipe: Recipe, facts: Mapping[str, Any], *, override: bool = False
) -> None:
    """Raise `ConfigError` with the differences where `run` is one of another recipe or data.

    With `override` only what no checkpoint of the run can be loaded into is refused.
    """
    old = read_recipe(run.path / "recipe.toml")
    lines = differences(old, recipe)
    if override:
        fixed = ("model.", "optimizer.name:")
        lines = [line for line in lines if line.startswith(fixed)]
        if bool(old.ema.decay) != bool(recipe.ema.decay):
            lines.append(f"ema.decay: {old.ema.decay} in the run, {recipe.ema.decay} now")
        if lines:
            raise ConfigError(
                f"{run.path} cannot go on with other weights than its own:\n  "
                + "\n  ".join(lines)
                + "\ngive another --out to start anew"
            )
        return
    before = read_json(run.path / "environment.json")
    lines += [
        f"{key}: {before.get(key)} in the run, {value} now"
        for key, value in facts.items()
        if before.get(key) != value
    ]
    if lines:
        raise ConfigError(
            f"{run.path} holds another run:\n  " + "\n  ".join(lines) + "\n"
            "give the same arguments to continue it, another --out to start anew, or --override "
            "to go on with what is new"
        )


def environment() -> dict[str, Any]:
    """Give versions, hardware and command: where the run was made."""
    import numpy
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "vitrail": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        # The user's, where --processes has started this process by another.
        "command": json.loads(os.environ.get("VITRAIL_COMMAND", "null")) or sys.argv,
        "started_in": os.getcwd(),  # the folder that its paths are relative to
    }


def _usable(path: Path) -> Path:
    """Refuse a path where no run can be written, or a folder of something else than a run."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; a run needs a folder: give another --out")
    # A parent that is not there is a slip, or a disk that is not mounted; runs/ is our own.
    parent = path.parent
    if not parent.is_dir() and parent != Path("runs"):
        raise OutputError(
            f"{path} cannot be written: its parent {parent} is "
            f"{'no folder' if parent.exists() else 'not there'}; make it, or give another --out"
        )
    strange = [p for p in path.iterdir() if p.name not in _BEGUN] if path.is_dir() else []
    if strange and not (path / "recipe.toml").is_file():
        raise ConfigError(
            f"{path} holds other files and no run; give an empty or a new folder as --out"
        )
    place = next(p for p in (path, parent, Path()) if p.is_dir())
    if not os.access(place, os.W_OK) and RunFolder(path).summary().get("status") != "finished":
        raise OutputError(
            f"{path} cannot be written: {place} may not be written to, by its permissions or as a "
            "read-only disk; give another --out"
        )
    return path


def _check_slurm() -> None:
    """Refuse a command that SLURM runs many times: each would choose a run, and train alone."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"SLURM runs this command {tasks} times (SLURM_STEP_NUM_TASKS), and each would train "
            "by itself; `srun torchrun` makes them one run (docs/scale.md), and many runs need "
            "an --out of their own"
        )


def _numbered(runs: Path, name: str) -> dict[int, Path]:
    """Give the folders runs/NAME-N by their N."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    folders = runs.iterdir() if runs.is_dir() else []
    found = {path: pattern.fullmatch(path.name) for path in folders}
    return {int(match[1]): path for path, match in found.items() if match}
