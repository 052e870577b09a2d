"""Kill a piece of work at every touch of the disk, and look at what is left.

    python tests/kill_points.py checkpoint|bundle|run|answers|answers-parquet FOLDER [EVERY]

A child is forked for each point: it dies by SIGKILL right before its N-th touch (a file opened to
be written, brought down to the disk, renamed or removed; a folder made or removed). Then the same
work is done again, undisturbed. With EVERY only each so many-th point is tried. Prints how many
points there were and what went wrong, as JSON.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

import vitrail
from runs import RECIPE, assert_equal_runs, rows, write_photos
from vitrail.data.inputs import Item, file_item
from vitrail.inference.output import write_predictions
from vitrail.inference.predict import Answer, Prediction
from vitrail.model.vit import ViT
from vitrail.training import checkpoint
from vitrail.training.loop import train
from vitrail.weights.bundle import default_preprocess
from vitrail.weights.disk import mend
from vitrail.weights.loading import load

EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


class Work(NamedTuple):
    """What is done, what must hold right after it was killed, and when it has been done again."""

    do: Callable[[], Any]
    after_kill: Callable[[], Any]
    at_end: Callable[[], Any]


def die_at(number: int, root: Path) -> None:
    """Have this process die before its `number`-th touch of the disk below `root`."""
    touches, fsync = 0, os.fsync

    def touch() -> None:
        nonlocal touches
        touches += 1
        if touches == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(given[2], int) and given[2] & os.O_ACCMODE
        with suppress(TypeError, ValueError):
            if (event in EVENTS or opened) and root in Path(os.path.abspath(given[0])).parents:
                touch()

    def synced(descriptor: int) -> None:
        touch()
        fsync(descriptor)

    sys.addaudithook(hook)
    os.fsync = synced


def forked(work: Callable[[], Any]) -> int:
    """Do work in a child and give how it ended, as `os.waitpid` does."""
    if not (child := os.fork()):
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def clear(folder: Path, kept: str = "reference") -> None:
    for path in folder.iterdir():
        if path.name not in (kept, "photos"):
            shutil.rmtree(path)


def kill_everywhere(work: Work, root: Path, every: int) -> dict[str, Any]:
    """Try the points one after another, until the work is done before it would die."""
    wrong, number = [], 1
    while True:
        clear(root)

        def killed(number: int = number) -> None:
            die_at(number, root)
            work.do()

        how = forked(killed)
        if how != signal.SIGKILL:
            return {"points": number - 1, "wrong": wrong + ([] if how == 0 else ["it failed"])}
        try:
            work.after_kill()
            if forked(work.do):
                raise AssertionError("it cannot be done again")
            work.at_end()
        except BaseException as error:
            wrong.append(f"point {number}: {type(error).__name__}: {error}"[:300])
        number += every


def hidden(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*") if "reference" not in path.parts]


def a_checkpoint(root: Path) -> Work:
    """The second checkpoint of a run that keeps one."""
    parts = {name: {"weight": torch.randn(300)} for name in ("model", "optimizer", "loop")}
    folder = root / "checkpoints"

    def do() -> None:
        folder.mkdir(exist_ok=True)
        mend(folder)
        found = checkpoint.newest(folder)[0]
        if found is None:
            checkpoint.save(folder, 1, parts)
        checkpoint.save(folder, 2, parts)
        checkpoint.prune(folder, 2, keep=1)

    def after_kill() -> None:
        if folder.is_dir():
            found, broken = checkpoint.newest(folder)
            assert not broken and (found or not checkpoint.steps(folder)), broken

    def at_end() -> None:
        found = checkpoint.newest(folder)[0]
        assert found and found.step == 2
        assert torch.equal(found.parts["model"]["weight"], parts["model"]["weight"])
        assert [path.name for path in folder.iterdir()] == ["step-00000002"]

    return Work(do, after_kill, at_end)


def a_bundle(root: Path) -> Work:
    """A better bundle in the place of a good one: there is one at any moment."""
    first, second = (vitrail.create("nano", classes=2, depth=1, seed=seed) for seed in (1, 2))
    origin, folder = root / "reference", root / "best"

    def bundle(model: ViT) -> vitrail.Bundle:
        how = default_preprocess(model.config)
        return vitrail.Bundle(model=model, preprocess=how, labels=("a", "b"))

    vitrail.save(bundle(first), origin)

    def same(model: ViT) -> bool:
        found = load(folder).model.state_dict()
        return all(torch.equal(found[name], value) for name, value in model.state_dict().items())

    def do() -> None:
        if not folder.exists():
            shutil.copytree(origin, root / "copy", dirs_exist_ok=True)
            (root / "copy").rename(folder)
        vitrail.save(bundle(second), folder)

    def after_kill() -> None:
        if folder.exists():
            assert any(same(model) for model in (first, second))
        else:
            assert not hidden(root), "there is no bundle"

    def at_end() -> None:
        assert same(second)
        assert not hidden(root)

    return Work(do, after_kill, at_end)


def a_run(root: Path) -> Work:
    """The whole run of `RECIPE`."""
    os.chdir(root)
    write_photos(Path("photos"))
    train(RECIPE, "reference")

    def after_kill() -> None:
        keys = [(row["step"], row["split"]) for row in rows("run")] if _has("metrics.jsonl") else []
        assert len(keys) == len(set(keys))
        if any(split == "val" for _, split in keys):
            load("run/best")
        if keys and max(keys)[0] > 6:  # at most one interval of saving is lost
            found, broken = checkpoint.newest(Path("run/checkpoints"))
            assert found and found.step >= 5 and not broken

    def at_end() -> None:
        assert_equal_runs("run", "reference")
        assert not hidden(Path("run")), hidden(Path("run"))
        names = [sorted(p.name for p in Path(r).glob("*/*")) for r in ("run", "reference")]
        assert names[0] == names[1]
        assert json.loads(Path("run/summary.json").read_text())["status"] == "finished"
        assert "finished" in Path("run/report.html").read_text()

    return Work(lambda: train(RECIPE, "run"), after_kill, at_end)


def some_answers(root: Path, how: str) -> Work:
    """The rows of five images, three at a time, in a file."""
    folder = root / "out"
    images = [file_item(f"{i}, 제비\n.png") for i in range(5)]

    def answers(items: Iterable[Item]) -> Iterator[list[Prediction]]:
        rest = iter(items)
        while batch := list(islice(rest, 3)):
            top = (Answer(label="a", index=0, probability=0.5),)
            yield [Prediction(path=item.name, error=None, top=top) for item in batch]

    def write(file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        write_predictions(answers, images, how, str(file), {"model": "m"}, seconds=0)

    write(root / "reference" / "file")
    whole = (root / "reference" / "file").read_bytes()

    def after_kill() -> None:
        file = folder / "file"
        found = file.read_bytes() if file.is_file() else b""
        assert found in (b"", whole) if how == "parquet" else whole.startswith(found)

    def at_end() -> None:
        assert (folder / "file").read_bytes() == whole
        assert {path.name for path in folder.iterdir()} == {"file", ".file.journal"}

    return Work(lambda: write(folder / "file"), after_kill, at_end)


def _has(name: str) -> bool:
    return Path("run", name).is_file()


if __name__ == "__main__":
    torch.set_num_threads(1)
    kinds = {"checkpoint": a_checkpoint, "bundle": a_bundle, "run": a_run}
    kinds |= {"answers": partial(some_answers, how="csv")}
    kinds |= {"answers-parquet": partial(some_answers, how="parquet")}
    place = Path(sys.argv[2]).resolve()
    every = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    print(json.dumps(kill_everywhere(kinds[sys.argv[1]](place), place, every)))
