"""What weights trained on other images are worth for a few hundred photos, at equal cost.

    python benchmarks/transfer.py --from CIFAR10 --data CALTECH101-30 [--write docs/transfer.md]
        [--pretrain-epochs 6] [--epochs 60]

Trains the model of the recipe `small-photos` on the images of `--from`, then twice on `--data` with
the same recipe and the same number of epochs: from scratch, and from those weights (`--weights`).
Both cost as many processor minutes (user + system of the whole command); those of the first
training are given beside them. Accuracy is that of the last weights on the held-out images.
"""

import argparse
import tempfile
from pathlib import Path

from runs import ONE_THREAD, Page, train  # the script beside this one

BEFORE = ("--augment.crop-scale", "0.5")  # small images lose more by a crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", required=True, help="what to learn first")
    parser.add_argument("--data", required=True, help="photos in classes, with a held-out split")
    parser.add_argument("--pretrain-epochs", default="6")
    parser.add_argument("--epochs", default="60")
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    recipe = ("--recipe", "small-photos", *ONE_THREAD)
    first, then = arguments.source, arguments.data
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        before = train(
            first, root / "first", *recipe, *BEFORE, "--epochs", arguments.pretrain_epochs
        )
        words = (*recipe, "--epochs", arguments.epochs)
        scratch = train(then, root / "scratch", *words)
        tuned = train(then, root / "tuned", *words, "--weights", str(root / "first" / "last"))
    name, then = Path(first).name, Path(then).name
    counts = [run.summary["train_images"] for run in (before, scratch)]
    about = f"{name}, {counts[0]:,} training images, then {then}, {counts[1]:,}"
    columns = ("", "accuracy (95 % interval)", "processor minutes")
    page = Page("Weights from other images", __doc__, about, columns)
    for words, run in (
        (f"{name}, {arguments.pretrain_epochs} epochs", before),
        (f"{then} from scratch, {arguments.epochs} epochs", scratch),
        (f"**{then} from those weights, {arguments.epochs} epochs**", tuned),
    ):
        page.row(words, str(run), run.minutes)
    page.write(arguments.write)


if __name__ == "__main__":
    main()
