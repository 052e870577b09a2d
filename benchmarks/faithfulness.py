"""How faithful the maps of `vitrail explain` are, on the held-out images of a trained model.

    python benchmarks/faithfulness.py --model RUN [--data DATA] [--images 100] [--write FILE]

For each image and each method the deletion and the insertion area of the likeliest class (Petsiuk
et al. 2018): patches are hidden in the order of the map, by the image's mean colour, or come back
into a blurred image. Deletion is better small, insertion large. `gain` is by how much both are
better than a random order's, on average over images, with the standard error of that mean, and
`better` the share of images where it is above 0. `attention` is the last layer's, the mean of its
heads, of the class token, or of the patches in a model without one. The images are drawn from the
held-out ones with seed 0. With --write a table is put into the file in place of the one that has
the same name, beside the others.
"""

import argparse
import re
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

import vitrail
from vitrail.explaining.choices import Method
from vitrail.explaining.faithfulness import Faithfulness

METHODS: tuple[Method, ...] = ("attention", "rollout", "relevance", "occlusion")


def measure(bundle: vitrail.Bundle, images: list[bytes]) -> dict[Method, list[Faithfulness]]:
    """Measure each method on each image."""
    found: dict[Method, list[Faithfulness]] = {method: [] for method in METHODS}
    for image in images:
        for method in METHODS:
            figure = vitrail.explain(bundle, image, method, measure=True).faithfulness
            assert figure is not None
            found[method].append(figure)
    return found


def table(found: dict[Method, list[Faithfulness]]) -> str:
    """Write a row for each method, and one for a random order."""
    lines = ["| method | deletion | insertion | gain | better |", "|---|---|---|---|---|"]
    figures = found["relevance"]
    chance = mean(f.random_deletion for f in figures), mean(f.random_insertion for f in figures)
    lines.append(f"| random order | {chance[0]:.3f} | {chance[1]:.3f} | 0 | |")
    for method, figures in found.items():
        gains = [f.gain for f in figures]
        error = stdev(gains) / len(gains) ** 0.5
        deletion, insertion = mean(f.deletion for f in figures), mean(f.insertion for f in figures)
        better = mean(gain > 0 for gain in gains)
        lines.append(
            f"| {method} | {deletion:.3f} | {insertion:.3f} | {mean(gains):.3f} ± {error:.3f} | "
            f"{better:.0%} |"
        )
    return "\n".join(lines)


def against(found: dict[Method, list[Faithfulness]], other: Method) -> str:
    """Say by how much relevance gains more than another method, image by image."""
    gains = zip(found["relevance"], found[other], strict=True)
    more = [one.gain - two.gain for one, two in gains]
    return f"{mean(more):+.3f} ± {stdev(more) / len(more) ** 0.5:.3f} more than {other}"


def write(file: Path, name: str, text: str) -> None:
    """Put a section into the file, in place of the one of that name."""
    about = (__doc__ or "").split("\n\n", 2)
    head = f"# Faithfulness\n\n{about[0]}\n\n{about[2].strip()}\n"
    old = file.read_text() if file.is_file() else ""
    sections = dict(re.findall(r"^## (.+?)\n\n(.*?)(?=^## |\Z)", old, re.MULTILINE | re.DOTALL))
    sections[name] = text
    parts = [f"## {key}\n\n{value.strip()}\n" for key, value in sections.items()]
    file.write_text("\n".join([head, *parts]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--name", default="Digits", help="of the section")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle, source = vitrail.load(given.model), vitrail.open_data(given.data).held_out
    chosen = np.random.default_rng(0).permutation(len(source))[: given.images]
    found = measure(bundle, [source.read(int(i)) for i in chosen])
    config = bundle.model.config
    text = (
        f"{len(chosen)} of {len(source)} held-out images, {config.depth} layers of width "
        f"{config.width}, patches of {config.patch_size} in {config.image_size[0]} x "
        f"{config.image_size[1]} pixels, pooling {config.pooling}.\n\n{table(found)}\n\n"
        f"Relevance gains {against(found, 'attention')} and {against(found, 'rollout')}, image by "
        "image."
    )
    print(text)
    if given.write is not None:
        write(given.write, given.name, text)


if __name__ == "__main__":
    main()
