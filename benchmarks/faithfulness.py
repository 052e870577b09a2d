"""How faithful the maps of `vitrail explain` are, on the held-out images of a trained model.

    python benchmarks/faithfulness.py --model RUN [--data DATA] [--images 100] [--write FILE]

For each image and each method the deletion and the insertion area of the likeliest class (Petsiuk
et al. 2018): patches are hidden in the order of the map, by the image's mean colour, or come back
into a blurred image. Deletion is better small, insertion large. `gain` is by how much both are
better than a random order's, on average over images, with the standard error of that mean, and
`better` the share of images where it is above 0. `attention` is the last layer's, the mean of its
heads, of the class token, or of the patches in a model without one. `paper` is relevance by the
rule of Chefer, Gur & Wolf 2021, equations 5 and 6, of what the head reads; `relevance` departs from
it, and `vitrail.explaining.relevance` says how and why: it was chosen on digits runs of other seeds
(on the same images) and on other Caltech images (of the same run) than those below. The images are
drawn from the held-out ones with seed 0. All maps of an image stand beside the same random orders,
which run once. With --write a table is put into the file in place of the one that has the same
name, beside the others.
"""

import argparse
import re
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor

import vitrail
from vitrail.explaining.attention import readout
from vitrail.explaining.choices import Method
from vitrail.explaining.faithfulness import Faithfulness, compared
from vitrail.explaining.relevance import taken_for
from vitrail.model.vit import ViT

METHODS: tuple[Method, ...] = ("attention", "rollout", "relevance", "occlusion")


def measure(bundle: vitrail.Bundle, images: list[bytes]) -> dict[str, list[Faithfulness]]:
    """Measure each method on each image."""
    found: dict[str, list[Faithfulness]] = {name: [] for name in (*METHODS, "paper")}
    for image in images:
        explained = [vitrail.explain(bundle, image, method, device="cpu") for method in METHODS]
        pixels = torch.from_numpy(np.moveaxis(explained[0].pixels, -1, 0)[None])
        ready, target = bundle.preprocess.normalize(pixels), explained[0].target
        assert target is not None
        maps = [torch.from_numpy(each.map) for each in explained]
        maps.append(paper(bundle.model, ready, target))
        for figures, figure in zip(
            found.values(), compared(bundle.model, ready[0], maps, target), strict=True
        ):
            figures.append(figure)
    return found


def paper(model: ViT, images: Tensor, target: int) -> Tensor:
    """Give what patches of one image are to what the head reads, N: R = R + C R, less R = 1."""
    config = model.config
    taken, _ = taken_for(model, images, target, range(config.depth), range(config.heads))
    own = torch.eye(config.prefix + config.grid[0] * config.grid[1])
    flow = own
    for layer, each in taken:
        if layer == "pool":
            return (each[0, 0] @ flow[config.prefix :])[config.prefix :]
        flow = flow + each[0] @ flow
    return (readout(model, len(own)) @ (flow - own))[config.prefix :]


def table(found: dict[str, list[Faithfulness]]) -> str:
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


def against(found: dict[str, list[Faithfulness]], other: str) -> str:
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
        f"Relevance gains, image by image, {against(found, 'attention')}, "
        f"{against(found, 'rollout')} and {against(found, 'paper')}."
    )
    print(text)
    if given.write is not None:
        write(given.write, given.name, text)


if __name__ == "__main__":
    main()
