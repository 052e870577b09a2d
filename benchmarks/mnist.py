"""How well MNIST's digits are told apart after 40 processor minutes.

    python benchmarks/mnist.py --data MNIST [--seed 0] [--write docs/mnist.md]

Trains by `vitrail train DATA --recipe mnist` and counts the processor minutes of the whole command
(user + system; one thread computes and one decodes, so that none is spent on threads that wait for
each other). Accuracy is that of the last weights on the held-out images; no epoch was chosen.
"""

import argparse
import tempfile
from pathlib import Path

from runs import ONE_THREAD, Page, train  # the script beside this one


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
    about = f"{summary['train_images']:,} training images, {summary['parameters']:,} parameters"
    columns = ("accuracy (95 % interval)", "wrong", "processor minutes")
    page = Page("MNIST", __doc__, f"{about}, seed {arguments.seed}", columns)
    page.row(str(run), str(wrong), run.minutes)
    page.write(arguments.write)


if __name__ == "__main__":
    main()
