"""A checkpoint of ViT-B/16 with AdamW's state, down to the disk, against a plain `torch.save`.

    python benchmarks/checkpoint.py [--preset vit-b16] [--rounds 7] [--folder .] [--write FILE]

Makes the state in memory (1.0 GB) and writes it in turns into `--folder`, each time into a place
that is free again, after all that is still on its way to the disk has arrived:

- vitrail: `Saver.save`, for which the training stands still: the files are in the system's memory
- vitrail, on the disk: all of it, most of which happens while the training goes on; it ends when
  all files, with a sha256 of each, are on the disk
- torch.save of the same state into one file, after which the file is in the system's memory as well
- torch.save and then fsync, so that a power cut loses nothing, as with vitrail's

Numbers are medians of wall and process CPU seconds. Then one bit after another, at random places
of all files of a checkpoint, is flipped, and the checkpoint read by vitrail, and torch.save's file
by torch.load: how many of them are noticed.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import vitrail
from vitrail.errors import VitrailError
from vitrail.model.presets import preset
from vitrail.training import checkpoint
from vitrail.training.run_folder import RunFolder
from vitrail.training.saver import Saver

State = dict[str, dict[str, torch.Tensor]]
FLIPS = 200
SAVER = Saver(keep=2)


def state_of(name: str) -> State:
    """Give what a run of `name` with AdamW saves."""
    model = vitrail.create(name, classes=preset(name).classes or 1000, seed=0)
    weights = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    moments = {
        f"{key}/{moment}": torch.rand_like(tensor)
        for key, tensor in weights.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    return {"model": weights, "optimizer": moments, "loop": {"loss": torch.zeros(())}}


def by_vitrail(state: State, folder: Path) -> None:
    run = RunFolder(folder)
    run.checkpoints.mkdir()
    SAVER.save(run, 1, state)


def by_vitrail_to_disk(state: State, folder: Path) -> None:
    checkpoint.save(folder, 1, state)


def by_torch(state: State, folder: Path) -> None:
    torch.save(state, folder / "state.pt")


def by_torch_to_disk(state: State, folder: Path) -> None:
    with (folder / "state.pt").open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def seconds(save: Callable[[State, Path], None], state: State, folder: Path) -> tuple[float, float]:
    """Give wall and process CPU seconds of one save."""
    folder.mkdir()
    os.sync()
    wall, cpu = time.perf_counter(), time.process_time()
    save(state, folder)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    SAVER.settle()
    shutil.rmtree(folder)
    return spent


def flip(file: Path, draws: random.Random) -> tuple[int, bytes]:
    """Flip a bit of a file, and give where and what stood there."""
    place = draws.randrange(file.stat().st_size)
    with file.open("rb+") as opened:
        opened.seek(place)
        before = opened.read(1)
        opened.seek(place)
        opened.write(bytes([before[0] ^ (1 << draws.randrange(8))]))
    return place, before


def put_back(file: Path, place: int, before: bytes) -> None:
    with file.open("rb+") as opened:
        opened.seek(place)
        opened.write(before)


def noticed(files: list[Path], read: Callable[[], object]) -> int:
    """Count the flipped bits after which `read` does not give an answer."""
    draws, found = random.Random(0), 0
    for _ in range(FLIPS):
        file = draws.choice(files)
        place, before = flip(file, draws)
        try:
            read()
        except (VitrailError, RuntimeError, ValueError, OSError, EOFError):
            found += 1
        put_back(file, place, before)
    return found


def flips(folder: Path) -> tuple[int, int]:
    """Give how many flipped bits vitrail and torch notice, on a small state."""
    state = state_of("nano")
    folder.mkdir()
    by_torch(state, folder)
    path = checkpoint.save(folder, 1, state)
    file = folder / "state.pt"
    ours = noticed(sorted(path.iterdir()), lambda: checkpoint.read(path))
    return ours, noticed([file], lambda: torch.load(file, weights_only=True))


def table(state: State, rounds: int, folder: Path) -> str:
    ways = {
        "vitrail": by_vitrail,
        "vitrail, on the disk": by_vitrail_to_disk,
        "torch.save": by_torch,
        "torch.save, on the disk": by_torch_to_disk,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, save in ways.items():
            times[name].append(seconds(save, state, folder / "save"))
    wall, cpu = (
        {name: median(t[i] for t in found[1:]) for name, found in times.items()} for i in (0, 1)
    )
    size = sum(t.nbytes for part in state.values() for t in part.values())
    lines = ["| | wall, s | CPU, s | wall, times torch.save | CPU, times torch.save |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {name} | {wall[name]:.2f} | {cpu[name]:.2f} | "
        f"{wall[name] / wall['torch.save']:.2f} | {cpu[name] / cpu['torch.save']:.2f} |"
        for name in ways
    ]
    ours, torchs = flips(folder / "flips")
    lines += ["", f"{size / 1e9:.2f} GB, medians of {rounds} rounds, {os.cpu_count()} cores."]
    lines += [f"Of {FLIPS} flipped bits vitrail notices {ours}, torch.load {torchs}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="vit-b16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        text = table(state_of(given.preset), given.rounds, Path(folder))
    print(text)
    if given.write:
        assert __doc__
        about = __doc__.split("\n\n", 2)
        head = f"# Checkpoints\n\n{about[0]}\n\n{about[2].strip()}\n\n"
        again = "`python benchmarks/checkpoint.py` repeats it.\n\n"
        given.write.write_text(f"{head}{again}{text}\n")


if __name__ == "__main__":
    main()
