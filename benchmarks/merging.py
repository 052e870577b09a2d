"""What token merging is worth: speed against accuracy, for a trained model, and at ViT-S/16's size.

    python benchmarks/merging.py --data PHOTOS --model RUN [--rounds 9] [--write docs/merging.md]

Each block merges `--merge` patches of each image into others (Bolya et al. 2023); no weight is
changed and nothing is trained. Accuracy is that of RUN on the held-out images of `--data`, and
"same answers" the share of them that get the answer of merge 0. Speed is merge 0's CPU time over
that of the same engine with merging, for pixels in memory, on one thread: batches of 64 for RUN; of
8 for ViT-S/16 at 224 pixels, whose weights are random. All run in turns, so that what else the
machine does falls on all alike, and each round gives ratios of its own, whose medians these are.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import vitrail
from runs import Page  # the script beside this one
from vitrail.data.sources import Source
from vitrail.inference.evaluate import evaluation_loader, score
from vitrail.weights.bundle import Bundle, default_preprocess

OF_RUN, OF_S16 = (0, 2, 4, 6, 8, 10), (0, 4, 8, 13, 16)
DTYPES = ("float32", "bfloat16")


def speeds(bundle: Bundle, pixels: Tensor, merges: Sequence[int], rounds: int) -> list[list[str]]:
    """Give for each of `merges` how many times as fast it is as the first, by dtype."""
    found = []
    for dtype in DTYPES:
        engines = [
            vitrail.engine(bundle, dtype=dtype, device="cpu", merge=merge) for merge in merges
        ]
        times: list[list[float]] = []
        for _ in range(rounds + 1):
            times.append([])
            for engine in engines:
                began = time.process_time()
                engine.run(pixels)
                times[-1].append(time.process_time() - began)
        ratios = zip(*([row[0] / cpu for cpu in row] for row in times[1:]), strict=True)  # warm
        found.append([f"{median(ratio):.2f}" for ratio in ratios])
    return [list(row) for row in zip(*found, strict=True)]


def accuracies(bundle: Bundle, source: Source, merges: Sequence[int]) -> list[list[str]]:
    """Give for each of `merges` the accuracy, and the share of the first one's answers."""
    rows, first = [], None
    for merge in merges:
        scored = score(bundle, source, threads=1, merge=merge)
        figures, answers = scored.figures(), scored.scores.argmax(axis=1)
        first = answers if first is None else first
        low, high = figures.top1_interval
        same = (answers == first).mean()
        rows.append([f"{figures.top1:.2%} ({low:.1%} to {high:.1%})", f"{same:.1%}"])
    return rows


def left(bundle: Bundle, merge: int) -> str:
    """Say how many patches there are before the first block and after the last."""
    first = now = bundle.model.config.grid[0] * bundle.model.config.grid[1]
    for _ in range(bundle.model.config.depth):
        now -= min(merge, now // 2)
    return f"{first} to {now}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="photos in classes, with a held-out split")
    parser.add_argument("--model", required=True, help="a run that was trained on them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    given = parser.parse_args()
    torch.set_num_threads(1)

    run, source = vitrail.load(given.model), vitrail.open_data(given.data).held_out
    pixels = next(islice(evaluation_loader(run, source, 64, 1).once(), 1)).images
    model = vitrail.create("vit-s16")
    labels = tuple(map(str, range(model.config.classes)))
    s16 = Bundle(model=model, preprocess=default_preprocess(model.config), labels=labels)
    noise = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8)

    config, name = run.model.config, Path(given.data).name
    height, width = config.image_size
    trained = f"{name}, {height} x {width}, patches of {config.patch_size}"
    about = f"{len(source):,} held-out images of {name}; {given.rounds} rounds"
    speed = tuple(f"times as fast, {dtype}" for dtype in DTYPES)
    columns = ("model", "merge", "patches", *speed, "accuracy (95 % interval)", "same answers")
    page = Page("Token merging", __doc__, about, columns)
    how_right = accuracies(run, source, OF_RUN)
    for merge, fast, right in zip(
        OF_RUN, speeds(run, pixels, OF_RUN, given.rounds), how_right, strict=True
    ):
        page.row(trained, str(merge), left(run, merge), *fast, *right)
    for merge, fast in zip(OF_S16, speeds(s16, noise, OF_S16, given.rounds), strict=True):
        page.row("ViT-S/16, 224 x 224", str(merge), left(s16, merge), *fast, "", "")
    page.write(given.write)


if __name__ == "__main__":
    main()
