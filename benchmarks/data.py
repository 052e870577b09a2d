"""Photos to training batches: decode, random crop to 224, mirror, against timm's own transform.

    python benchmarks/data.py --data PHOTOS [--rounds 7] [--write docs/data-speed.md]

PHOTOS is a folder or a tar of small photos. Larger ones are made of them in a temporary folder,
as JPEG of quality 90: 500 x 375 of four photos side by side, 1600 x 1200 of sixteen.
Then, in turns:

- one core: timm's `create_transform` (random resized crop, mirror, uint8 out) and what a
  thread of vitrail's loader does, on the same files' bytes in memory; wall and process CPU time
- two threads, two workers: an epoch of timm's `create_loader` with two worker processes that have
  been started already, without its normalisation, and one of vitrail's `Loader`; wall time

glibc is told to keep freed memory: at its defaults timm spends two fifths of its time on large
photos in getting the same pages anew, in a main process but not in a worker, which would flatter
vitrail. timm's RandAugment and colour jitter are off. Numbers are medians; ratios above 1 are in
vitrail's favour. At the end whole photos resized by `decode = "exact"` are compared with Pillow's,
and a folder of 100,000 small files is opened.
"""

import argparse
import io
import os
import random
import sys
import tarfile
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from vitrail.data.config import Augment
from vitrail.data.crop import draw_crops
from vitrail.data.decode import decode
from vitrail.data.loader import Loader
from vitrail.data.preprocess import Preprocess
from vitrail.data.readers import Work
from vitrail.data.sources import open_data
from vitrail.weights.peer_models import load_package

SIDE, BATCH = 224, 32
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
CROP = Augment(crop_scale=0.08, flip=True)
PREPROCESS = Preprocess(size=(SIDE, SIDE))


class Photos(NamedTuple):
    """A kind of photo, how vitrail reads it, and what is asked of it: floor and aim."""

    size: tuple[int, int]
    mosaic: int  # photos a side
    number: int
    decode: Literal["exact", "fast"]
    one_core: tuple[float, float]
    two_threads: float


KINDS = (
    Photos((500, 375), 2, 256, "exact", (2.0, 2.3), 2.2),
    Photos((1600, 1200), 4, 192, "fast", (2.7, 3.5), 2.8),
)


class PhotoFiles:
    """Photos in two class folders: a source, as the loader wants it."""

    def __init__(self, root: Path, files: list[tuple[str, int]]) -> None:
        self.root, self.files, self.classes = root, files, ("class-0", "class-1")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return (self.root / self.files[index][0]).read_bytes()

    def label(self, index: int) -> int:
        return self.files[index][1]

    def name(self, index: int) -> str:
        return self.files[index][0]


class Held(PhotoFiles):
    """The same, in memory."""

    def __init__(self, source: PhotoFiles) -> None:
        super().__init__(source.root, source.files)
        self.data = [source.read(i) for i in range(len(source))]

    def read(self, index: int) -> bytes:
        return self.data[index]


class Times(NamedTuple):
    """Seconds an image."""

    wall: float
    cpu: float


def photos_of(data: Path) -> Iterator[Image.Image]:
    """Give the JPEG photos of a folder or a tar."""
    if data.is_dir():
        for file in sorted(data.rglob("*.jp*g")):
            yield Image.open(file).convert("RGB")
        return
    with tarfile.open(data) as tar:
        for member in tar:
            if member.name.endswith((".jpg", ".jpeg")) and (file := tar.extractfile(member)):
                yield Image.open(io.BytesIO(file.read())).convert("RGB")


def make(small: list[Image.Image], kind: Photos, folder: Path) -> PhotoFiles:
    """Write photos made of small ones, in two class folders."""
    wide, tall = kind.size[0] // kind.mosaic, -(-kind.size[1] // kind.mosaic)
    files = []
    for i in range(kind.number):
        whole = Image.new("RGB", kind.size)
        for k in range(kind.mosaic**2):
            tile = small[(i * kind.mosaic**2 + k) % len(small)].resize((wide, tall))
            whole.paste(tile, (k % kind.mosaic * wide, k // kind.mosaic * tall))
        name = f"class-{i % 2}/{i:04d}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        whole.save(folder / name, quality=90)
        files.append((name, i % 2))
    return PhotoFiles(folder, files)


def timed(run: Callable[[], object], images: int) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Times((time.perf_counter() - wall) / images, (time.process_time() - cpu) / images)


def in_turns(
    ours: Callable[[], object], theirs: Callable[[], object], images: int, rounds: int
) -> tuple[Times, Times]:
    """Give the medians of both ways, measured in turns after a round that does not count."""
    pairs = [(timed(ours, images), timed(theirs, images)) for _ in range(rounds + 1)][1:]
    return middle([ours for ours, _ in pairs]), middle([theirs for _, theirs in pairs])


def middle(times: list[Times]) -> Times:
    return Times(median(t.wall for t in times), median(t.cpu for t in times))


def one_core(source: PhotoFiles, kind: Photos, rounds: int) -> tuple[Times, Times]:
    peer: Any = import_module("timm.data")
    transform = peer.create_transform(
        SIDE, is_training=True, use_prefetcher=True, color_jitter=None, interpolation="bicubic"
    )
    held = Held(source)
    reader = loader(held, kind, threads=1)
    rows = np.empty((len(source), 3, SIDE, SIDE), np.uint8)
    places = np.arange(len(source))
    crops = iter(range(10**6))  # an epoch each

    def ours() -> None:
        work = Work(places, rows, draw_crops(0, next(crops), places))
        for row in range(len(source)):
            reader._decode(work, row)

    def theirs() -> None:
        for i in range(len(source)):
            transform(Image.open(io.BytesIO(held.read(i))).convert("RGB"))

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return in_turns(ours, theirs, len(source), rounds)
    finally:
        os.sched_setaffinity(0, cores)


def two_threads(source: PhotoFiles, kind: Photos, rounds: int) -> tuple[Times, Times]:
    peer: Any = import_module("timm.data")
    theirs = peer.create_loader(
        peer.ImageDataset(str(source.root)),
        SIDE,
        BATCH,
        is_training=True,
        color_jitter=0.0,
        interpolation="bicubic",
        num_workers=2,
        device=torch.device("cpu"),
    )
    # Inside it is the loader of uint8 batches; around it what normalises them.
    reader = loader(source, kind, threads=2)
    epochs = iter(range(10**6))
    return in_turns(
        lambda: exhaust(reader.epoch(0, next(epochs))),
        lambda: exhaust(theirs.loader),
        len(source),
        rounds,
    )


def exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def loader(source: PhotoFiles, kind: Photos, threads: int) -> Loader:
    return Loader(source, PREPROCESS, BATCH, threads=threads, decode=kind.decode, augment=CROP)


def difference(source: PhotoFiles) -> tuple[int, float]:
    """Give the largest and the mean difference of whole photos from Pillow's bicubic, of 255."""
    most, means = 0, []
    how = Preprocess(size=(SIDE, SIDE), resize="square")
    for i in range(min(len(source), 50)):
        data = source.read(i)
        wanted = Image.open(io.BytesIO(data)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        off = np.abs(how.pixels(decode(data)).transpose(1, 2, 0).astype(int) - np.asarray(wanted))
        most = max(most, int(off.max()))
        means.append(float(off.mean()))
    return most, sum(means) / len(means)


def opening(files: int = 100_000) -> str:
    """Say how long it takes to open a folder of so many small files, and what it keeps of each."""
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(files):
            file = Path(scratch, f"class-{i // 1000:03d}", f"IMG_{i:08d}.jpg")
            file.parent.mkdir(exist_ok=True)
            file.touch()
        open_data(scratch)
        times = [timed(lambda: open_data(scratch), 1) for _ in range(5)]
        tracemalloc.start()
        splits = open_data(scratch)
        kept, peak = (size / files for size in tracemalloc.get_traced_memory())
        tracemalloc.stop()
    wall, cpu = middle(times)
    assert len(splits.train) + len(splits.held_out) == files
    return (
        f"A folder of {files:,} small files opens in {wall:.2f} s (CPU {cpu:.2f} s) when it was "
        f"read before, and keeps {kept:.0f} bytes an image ({peak:.0f} while it opens); to reach: "
        "1 s and 200 bytes."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="a folder or a tar of photos")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if not KEEP.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    warnings.simplefilter("ignore")
    load_package("timm")
    torch.set_num_threads(1)
    random.seed(0)
    small = list(islice(photos_of(given.data), 1024))
    lines = [
        "| photos | decode | on | vitrail, images/s | timm | wall ratio | CPU ratio | to reach |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            source = make(small, kind, Path(scratch))
            name = f"{kind.size[0]} x {kind.size[1]}"
            kilobytes = sum(len(source.read(i)) for i in range(len(source))) / len(source) / 1e3
            core, both = (way(source, kind, given.rounds) for way in (one_core, two_threads))
            floor, aim = kind.one_core
            for where, (ours, theirs), wanted, cpu in (
                ("one core", core, f"{floor}, aim {aim}", f"{core[1].cpu / core[0].cpu:.2f}"),
                ("two threads; two workers", both, f"{kind.two_threads}", "-"),
            ):
                lines.append(
                    f"| {name}, {kilobytes:.0f} kB | {kind.decode} | {where} | {1 / ours.wall:.0f} "
                    f"| {1 / theirs.wall:.0f} | {theirs.wall / ours.wall:.2f} | {cpu} | {wanted} |"
                )
            most, mean = difference(source)
            notes.append(
                f"Exact {name} differs from Pillow's by {most}/255 at most and {mean:.4f}/255 "
                "on average."
            )
    notes.append(opening())
    page = "\n".join([*lines, "", *(f"- {note}" for note in notes)])
    print(page)
    if given.write:
        what, _, how = (__doc__ or "").split("\n\n", 2)
        text = f"# Photos to batches\n\n{what}\n\n{how.strip()}"
        given.write.write_text(f"{text}\n\n{page}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
