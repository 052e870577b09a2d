"""What an explanation of one image costs, in forward passes of the same model.

    python benchmarks/explain.py [--preset vit-b16] [--rounds 9] [--write FILE]

A forward pass without gradients, and then each method, in turns on one thread, so that what else
the machine does falls on all alike. Each method gives its maps and the answer: attention of the
last layer and of all layers, of all heads, for the class token; rollout and relevance through all
layers. Promised: attention and rollout take at most 1.5 times a forward pass, relevance 4 times.
Occlusion is as many passes as it has windows, the measure of faithfulness as many as it says.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

import vitrail
from vitrail.data.preprocess import Preprocess
from vitrail.explaining.occlusion import windows
from vitrail.weights.bundle import Bundle

MOST = {"attention": 1.5, "rollout": 1.5, "relevance": 4.0}


def forward(bundle: Bundle, image: np.ndarray) -> None:
    """Answer for the image as `explain` does, from its pixels on."""
    pixels = torch.from_numpy(bundle.preprocess.pixels(image))[None]
    with torch.inference_mode():
        bundle.model(bundle.preprocess.normalize(pixels)).softmax(dim=1)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Give wall and process CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Give the medians of wall and CPU seconds of each, run in turns."""
    for work in works.values():  # warm up
        work()
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(timed(work))
    return {
        name: (median(w for w, _ in found), median(c for _, c in found))
        for name, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="vit-b16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = vitrail.create(given.preset, classes=1000).eval()
    config = model.config
    half = (0.5,) * config.channels
    labels = tuple(map(str, range(1000)))
    preprocess = Preprocess(size=config.image_size, mean=half, std=half)
    bundle = Bundle(model=model, preprocess=preprocess, labels=labels)
    shape = (*config.image_size, config.channels)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    explain = partial(vitrail.explain, bundle, image, device="cpu")
    works: dict[str, Callable[[], object]] = {
        "forward": partial(forward, bundle, image),
        "attention, last layer": partial(explain, "attention"),
        "attention, all layers": partial(explain, "attention", layers=list(range(config.depth))),
        "rollout": partial(explain, "rollout"),
        "relevance": partial(explain, "relevance"),
    }
    found = measure(works, given.rounds)
    wall, cpu = found["forward"]
    lines = [
        "| | CPU, ms | wall, times forward | CPU, times forward | promised |",
        "|---|---|---|---|---|",
    ]
    for name, (w, c) in found.items():
        most = next((f"{v:g}" for key, v in MOST.items() if name.startswith(key)), "")
        lines.append(f"| {name} | {1000 * c:.0f} | {w / wall:.2f} | {c / cpu:.2f} | {most} |")
    count = len(windows(config.grid)) + 2
    lines += [
        "",
        f"`{given.preset}`, one image, medians of {given.rounds} rounds, one thread, float32, "
        f"torch {torch.__version__}. Occlusion: {count} passes in batches; `measure`: 170.",
    ]
    table = "\n".join(lines)
    print(table)
    if given.write is not None:
        text = (__doc__ or "").split("\n\n", 2)
        about = f"# What an explanation costs\n\n{text[0]}\n\n{text[2].strip()}\n"
        given.write.write_text(f"{about}\n`python benchmarks/explain.py` repeats it.\n\n{table}\n")


if __name__ == "__main__":
    main()
