"""The rows of a run, shown elsewhere too where it is asked for: TensorBoard, Weights & Biases.

`metrics.jsonl` is the truth and is written whatever happens here. What fails is told once and left
out from then on: no curve is worth a run.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from secrets import token_hex
from typing import Any, Protocol

from vitrail.data.progress import tell
from vitrail.errors import ConfigError, OutputError
from vitrail.training.recipe import Recipe, Train, to_toml
from vitrail.training.run_folder import RunFolder
from vitrail.weights.disk import write_json
from vitrail.weights.files import read_json

Row = Mapping[str, Any]


class Tracker(Protocol):
    """What a row is given to."""

    def add(self, row: Row) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """Those that a recipe asks for; one that fails is told of, and the others go on."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.open = run, dict[str, Tracker]()

    def start(self, name: str, tracker: Callable[[], Tracker]) -> None:
        """Open a tracker; one that begins after the run has the rows of before as well."""

        def begin() -> None:
            self.open[name] = tracker()

        self._try(name, begin)

    def add(self, row: Row) -> None:
        """Give every tracker a row."""
        for name, tracker in list(self.open.items()):
            self._try(name, lambda tracker=tracker: tracker.add(row))

    def close(self) -> None:
        """Have every tracker bring what it has to its place."""
        for name, tracker in list(self.open.items()):
            self._try(name, tracker.close)
        self.open.clear()

    def _try(self, name: str, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # a network, a server, a package: anything may be wrong there
            self.open.pop(name, None)
            reason = str(error) or type(error).__name__
            text = f"{name} failed and gets no more rows; the run goes on: {reason}"
            tell(text)
            with suppress(OutputError):  # a full disk is told of by what has to be written
                self.run.log(text)


def check_installed(train: Train) -> None:
    """Raise `ConfigError` where a package is missing that shows the rows."""
    for name, asked in (("tensorboard", train.tensorboard), ("wandb", train.wandb is not None)):
        # A folder of that name is no package: wandb itself makes one where it runs.
        spec = find_spec(name) if asked else None
        if asked and (spec is None or spec.origin is None):
            raise ConfigError(
                f"train.{name} needs the package {name}, which is not installed; "
                f"pip install 'vitrail[{name}]', or leave it out"
            )


def trackers(run: RunFolder, recipe: Recipe, step: int) -> Trackers:
    """Open the trackers that `recipe` asks for; the run goes on from `step`."""
    opened, train = Trackers(run), recipe.train
    if train.tensorboard:
        opened.start("tensorboard", lambda: TensorBoard(run, recipe, step))
    project = train.wandb
    if project is not None:
        opened.start("wandb", lambda: WeightsAndBiases(run, recipe, project))
    return opened


class TensorBoard:
    """Event files in `RUN/tensorboard`: `tensorboard --logdir runs` shows all runs."""

    def __init__(self, run: RunFolder, recipe: Recipe, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = run.path / "tensorboard"
        is_new = not folder.is_dir()
        # What a session before has written of steps that are taken again is not shown.
        purged = None if is_new else step + 1
        self.writer = SummaryWriter(str(folder), purge_step=purged)
        if is_new:
            toml = "".join(f"    {line}\n" for line in to_toml(recipe).splitlines())
            self.writer.add_text("recipe", toml)
            for row in run.rows():
                self.add(row)

    def add(self, row: Row) -> None:
        for name, value in _values(row).items():
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()  # a process that is killed keeps its curves

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of a project at Weights & Biases, the same one after a resume: rows and the recipe.

    Neither what the terminal shows, nor code, nor the state of git or of the machine is sent.
    """

    def __init__(self, run: RunFolder, recipe: Recipe, project: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read as it is imported
        import wandb  # pyright: ignore[reportMissingImports]  # not among the tests' packages

        self.file = run.path / "wandb.json"
        known = read_json(self.file) if self.file.is_file() else {}
        # The last step of each split that was sent. Rows of steps that are taken again are equal,
        # and stay as they were.
        self.sent: dict[str, int] = dict(known.get("sent", {}))
        self.id = known.get("id") or token_hex(4)
        self.run = wandb.init(
            project=project,
            id=self.id,
            name=run.path.resolve().name,
            dir=run.path,
            config=asdict(recipe),
            resume="allow",
            reinit="create_new",  # a run that the caller has open is none of ours
            settings=wandb.Settings(
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.run.define_metric("*", step_metric="step")
        self._keep()
        for row in run.rows():
            self.add(row)

    def add(self, row: Row) -> None:
        if row["step"] > self.sent.get(row["split"], 0):
            self.run.log({"step": row["step"], **_values(row)})
            self.sent[row["split"]] = row["step"]
            self._keep()

    def close(self) -> None:
        self.run.finish()

    def _keep(self) -> None:
        write_json(self.file, {"id": self.id, "sent": self.sent})


def _values(row: Row) -> dict[str, float]:
    """Give the figures of a row that are known, as SPLIT/NAME."""
    named = {name: value for name, value in row.items() if name not in ("step", "split")}
    return {f"{row['split']}/{name}": value for name, value in named.items() if value is not None}
