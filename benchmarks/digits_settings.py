"""How the settings of the recipe `digits` were chosen: on splits inside the training images.

    python benchmarks/digits_settings.py [--splits 4] [--write docs/digits-settings.md]

The 1,437 training images are split four times, by class, 80 to 20. Each candidate is the recipe
with one change back; it learns from the larger part and answers for the 287 or 288 other images.
The 360 test images take no part.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean

from digits import vitrail  # the script beside this one
from vitrail.data.digits import Digits
from vitrail.data.sources import open_data, split

CANDIDATES: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "weight decay .05 instead of .2": ("--optimizer.weight-decay", "0.05"),
    "bilinear instead of bicubic augmentation": ("--augment.interpolation", "bilinear"),
    "positions from N(0, 1/8) instead of N(0, 1)": ("--train.position-scale", "1"),
    "AdamW, lr .002, instead of Muon": ("--optimizer.name", "adamw", "--lr", "0.002"),
}


def write_inner(folder: Path, seed: int) -> str:
    """Write one split of the training images as folders train/CLASS and val/CLASS."""
    outer = open_data("digits").train
    assert isinstance(outer, Digits)
    parts = split([outer.label(i) for i in range(len(outer))], 0.2, seed)
    for name, places in zip(("train", "val"), parts, strict=True):
        for i in places:
            file = folder / name / str(outer.label(i)) / outer.name(i)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(outer.read(i))
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    lines = ["# How the digits' settings were chosen", "", *(__doc__ or "").split("\n\n", 2)[2:]]
    lines += ["| candidate | accuracy on each split | mean |", "|---|---|---|"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = [write_inner(root / f"split-{i}", i) for i in range(arguments.splits)]
        for number, (name, flags) in enumerate(CANDIDATES.items()):
            runs = root / f"runs-{number}"
            found = [vitrail(data[i], i, runs, *flags)[0] for i in range(arguments.splits)]
            row = f"| {name} | {', '.join(f'{a:.2%}' for a in found)} | {mean(found):.2%} |"
            print(row, flush=True)
            lines.append(row)
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
