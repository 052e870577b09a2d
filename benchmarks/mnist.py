"""How well MNIST's digits are told apart after 40 processor minutes.

    python benchmarks/mnist.py --data MNIST [--seed 0] [--write docs/mnist.md]

Trains by `vitrail train DATA --recipe mnist` and counts the processor minutes of the whole command
(user + system; one thread computes and one decodes, so that none is spent on threads that wait for
each other). Accuracy is that of the last weights on the held-out images; no epoch was chosen.
"""

import argparse
import platform
import tempfile
from pathlib import Path

import torch

from caltech import ONE_THREAD  # the scripts beside this one
from runs import train
from vitrail import __version__ as version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="MNIST's four files in a folder")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ("--recipe", "mnist", "--seed", arguments.seed, *ONE_THREAD)
        run = train(arguments.data, Path(folder) / "run", *words)
    summary = run.summary
    wrong = round((1 - summary["top1"]) * summary["held_out_images"])
    lines = ["# MNIST", "", *(__doc__ or "").split("\n\n", 2)[2:]]
    lines += [
        f"{summary['train_images']:,} training images; {summary['parameters']:,} parameters; "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"vitrail {version}, seed {arguments.seed}.",
        "",
        "| accuracy (95 % interval) | wrong | processor minutes |",
        "|---|---|---|",
        f"| {run} | {wrong} | {run.cpu_seconds / 60:.1f} |",
        "",
    ]
    print("\n".join(lines))
    if arguments.write:
        arguments.write.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
