"""How well the digits are told apart, beside kernel methods on the same split.

    python benchmarks/digits.py [--seeds 5] [--write docs/digits.md]

Trains with `vitrail train digits` as it stands, seeds 0 to 4, and counts the processor seconds of
the whole command (user + system). Accuracy is that of the last weights on the 360 test images; no
epoch was chosen, and the recipe's settings come from splits inside the training part. The harder
split takes the images in file order, 80 % then 20 %: other people wrote the second part.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from runs import train  # the script beside this one
from vitrail import __version__ as version
from vitrail.data.digits import Digits
from vitrail.data.sources import open_data

Split = tuple[list[int], list[int]]
ORDER: Split = (list(range(1437)), list(range(1437, 1797)))


def vitrail(data: str, seed: int, folder: Path, *flags: str) -> tuple[float, float]:
    """Train once; give the test accuracy and the processor seconds of the command."""
    words = ("--recipe", "digits", *flags, "--seed", str(seed))
    run = train(data, folder / str(seed), *words)
    return run.summary["top1"], run.cpu_seconds


def kernel_methods(split: Split) -> Iterator[tuple[str, float]]:
    """Give each reference classifier and its test accuracy."""
    pixels, labels = load_digits(return_X_y=True)
    images, labels = np.asarray(pixels).reshape(-1, 8, 8), np.asarray(labels)
    train, test = split
    framed = np.pad(images[train], ((0, 0), (1, 1), (1, 1)))
    places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))  # as it is, then one pixel each way
    shifted = [framed[:, y : y + 8, x : x + 8] for y, x in places]
    flat, many = images[train].reshape(-1, 64), np.concatenate(shifted).reshape(-1, 64)
    rows = (
        ("kNN, k = 3", KNeighborsClassifier(3), flat, labels[train]),
        ("SVC, gamma = .001", SVC(gamma=0.001), flat, labels[train]),  # type: ignore[arg-type]
        ("SVC, C = 10", SVC(C=10), flat, labels[train]),
        (
            "SVC, C = 10, one-pixel shifts",
            SVC(C=10),
            many,
            np.tile(labels[train], 5),
        ),
    )
    for name, method, x, y in rows:
        yield name, float(method.fit(x, y).score(images[test].reshape(-1, 64), labels[test]))


def write_in_order(folder: Path) -> str:
    """Write the digits in file order as folders train/CLASS and test/CLASS."""
    for name, indices in zip(("train", "test"), ORDER, strict=True):
        source = Digits(indices)
        for i in range(len(source)):
            file = folder / name / str(source.label(i)) / source.name(i)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(source.read(i))
    return str(folder)


def table(name: str, split: Split, runs: list[tuple[float, float]]) -> list[str]:
    """Give one split's results as a Markdown table."""
    accuracies = [accuracy for accuracy, _ in runs]
    seeds = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
    spent = ", ".join(f"{seconds:.0f}" for _, seconds in runs)
    rows = [f"| {method} | {accuracy:.2%} |" for method, accuracy in kernel_methods(split)]
    return [
        f"## {name}",
        "",
        "| | test accuracy |",
        "|---|---|",
        *rows,
        f"| **vitrail, median of {len(runs)} seeds** | **{median(accuracies):.2%}** |",
        "",
        f"Seeds 0 to {len(runs) - 1}: {seeds}; processor seconds of the whole command: {spent}.",
        "",
    ]


def positions(seeds: range) -> list[str]:
    """Give what the size of the initial positions does, as a Markdown table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for scale, std in (("0.16", ".02, as in large models"), ("1", "1/8 = 1/sqrt(width)")):
            flags = ("--train.position-scale", scale)
            runs = [vitrail("digits", seed, Path(folder) / scale, *flags) for seed in seeds]
            accuracies = ", ".join(f"{accuracy:.2%}" for accuracy, _ in runs)
            rows.append(f"| {std} | {accuracies} |")
    return [
        "## How large the positions begin",
        "",
        "The fixed split, the recipe with other initial positions (its own begin with a standard",
        f"deviation of 1), seeds 0 to {len(seeds) - 1}:",
        "",
        "| standard deviation | test accuracy |",
        "|---|---|",
        *rows,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    splits = open_data("digits")
    assert isinstance(splits.train, Digits) and isinstance(splits.held_out, Digits)
    fixed = (list(splits.train.indices), list(splits.held_out.indices))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ordered = write_in_order(root / "ordered")
        lines = ["# The digits", "", *(__doc__ or "").split("\n\n", 2)[2:]]
        for name, data, split in (
            ("The fixed split", "digits", fixed),
            ("File order: other writers", ordered, ORDER),
        ):
            runs = [vitrail(data, seed, root / f"runs-{name[:4]}") for seed in seeds]
            section = table(name, split, runs)
            print("\n".join(section), flush=True)
            lines += section
    section = positions(range(min(arguments.seeds, 3)))
    print("\n".join(section), flush=True)
    lines += section
    lines.append(
        f"Measured on {platform.machine()}, {os.cpu_count()} cores, with vitrail {version}."
    )
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
