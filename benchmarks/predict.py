"""Photos to answers: `vitrail predict` end to end against its own engine alone, and its memory.

    python benchmarks/predict.py --data PHOTOS [--images 2000] [--rounds 5] [--model vit-s16]
        [--threads 2] [--write docs/predict-speed.md]

PHOTOS is whatever `vitrail predict` takes: a folder, a tar, a pattern in quotes. The first so many
images are dealt out to the rounds. In each round the same images are answered for twice, in turns:

- end to end: files are read, decoded, resized, run and turned into lines of JSON
- the model alone: the same engine runs the same pixels, in the same batches, from memory

Rates are medians over the rounds, the share is the median of the rounds' own ratios. torch takes
every core that it may; the decode threads come on top of it. The weights are random, which changes
no arithmetic.

Memory is the most that a process of `vitrail predict nano FOLDER -o FILE` ever held, for folders of
1,000 and of 100,000 links to the same small picture (Linux).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from PIL import Image

import vitrail
from vitrail.data.inputs import Item, inputs
from vitrail.data.stream import decoded
from vitrail.engines.engine import Engine
from vitrail.inference.predict import batches
from vitrail.inference.rows import FORMS
from vitrail.weights.bundle import default_preprocess

BATCH = 64
SHARE = 0.95  # of the model's own rate, to be reached
PATHS = (1_000, 100_000)


class Round(NamedTuple):
    """Images a second."""

    whole: float
    model: float


def rate(images: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return images / (time.perf_counter() - began)


def one_round(
    engine: Engine, labels: tuple[str, ...], items: list[Item], threads: int, whole_first: bool
) -> Round:
    """Answer for the images both ways."""
    parts = decoded(items, engine.preprocess, BATCH, threads=threads)
    pixels = [stack.images for part in parts for stack in part.stacks]
    count = sum(map(len, pixels))

    def whole() -> None:
        for batch in batches(engine, labels, items, batch_size=BATCH, threads=threads):
            FORMS["jsonl"].encoded(batch, False)

    def model() -> None:
        for images in pixels:
            engine.run(images).softmax(dim=1).cpu()

    ways = {"whole": whole, "model": model}
    order = ("whole", "model") if whole_first else ("model", "whole")
    return Round(**{way: rate(count, ways[way]) for way in order})


def most_memory(paths: int) -> int:
    """Give the most bytes that predicting so many paths held, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        picture, photos = Path(folder, "picture.png"), Path(folder, "photos")
        Image.new("L", (8, 8), 99).save(picture)
        for number in range(paths):
            place = photos / f"{number // 1000:03d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:06d}.png").symlink_to(picture)
        out = str(Path(folder, "answers.jsonl"))
        words = ["predict", "nano", str(photos), "--format", "jsonl", "-o", out]
        process = subprocess.Popen(
            [sys.executable, "-m", "vitrail.cli", *words], stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        with open(out, "rb") as rows:
            assert (process.returncode, sum(1 for _ in rows)) == (0, paths)
    return used.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="vit-s16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()

    model = vitrail.create(given.model)
    labels = tuple(map(str, range(model.config.classes)))
    preprocess = default_preprocess(model.config)
    bundle = vitrail.Bundle(model=model, preprocess=preprocess, labels=labels)
    engine = vitrail.engine(bundle, "torch", given.dtype, device="cpu")
    items = list(islice(inputs([given.data]), given.images))
    engine.run(next(decoded(items, preprocess, BATCH)).stacks[0].images)  # everything is warm
    each = -(-len(items) // given.rounds)
    rounds = []
    for number in range(given.rounds):
        part = items[number * each : (number + 1) * each]
        rounds.append(one_round(engine, labels, part, given.threads, number % 2 == 0))
        print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr)
    whole, alone = median(r.whole for r in rounds), median(r.model for r in rounds)
    share = median(r.whole / r.model for r in rounds)
    lines = [
        "| images | end to end, images/s | the model alone | share | to reach |",
        "|---|---|---|---|---|",
        f"| {len(items):,} | {whole:.1f} | {alone:.1f} | {share:.1%} | {SHARE:.0%} |",
        "",
        f"{given.model}, {given.dtype}, batches of {BATCH}, {torch.get_num_threads()} threads of "
        f"torch and {given.threads} that decode; torch {torch.__version__}, {os.cpu_count()} "
        f"cores, {given.rounds} rounds. The shares of the rounds: "
        f"{', '.join(f'{r.whole / r.model:.1%}' for r in rounds)}.",
    ]
    if not given.skip_memory:
        few, many = map(most_memory, PATHS)
        lines += [
            "",
            f"Predicting {PATHS[0]:,} paths held {few / 2**20:,.0f} MiB at most, {PATHS[1]:,} "
            f"paths {many / 2**20:,.0f} MiB: {(many - few) / (PATHS[1] - PATHS[0]):,.0f} bytes for "
            "each path more.",
        ]
    print("\n".join(lines))
    if given.write:
        what, _, how = (__doc__ or "").split("\n\n", 2)
        text = f"# Photos to answers\n\n{what}\n\n{how.strip()}"
        page = "\n".join(lines)
        given.write.write_text(f"{text}\n\n{page}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
