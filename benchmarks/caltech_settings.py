"""How the settings of the recipe `small-photos` were chosen: on a split inside the training images.

    python benchmarks/caltech_settings.py --data CALTECH101-30 [--epochs 40]
        [--write docs/caltech-settings.md]

A fifth of the training images, by class, is held out; the images that the recipe's figures come
from take no part. Each candidate is the recipe with one change, and learns for about as many
processor minutes, the last ones of which are given.
"""

import argparse
import csv
import tempfile
from pathlib import Path

from runs import ONE_THREAD, Page, train  # the script beside this one
from vitrail.data.sources import open_data, split

# Epochs are in shares of those asked for.
CANDIDATES: dict[str, tuple[float, tuple[str, ...]]] = {
    "the recipe": (1.0, ()),
    "learned positions": (1.0, ("--model.positions", "learned", "--model.prefix-positions", "0")),
    "all patches, half as many epochs": (0.5, ("--train.drop.patches", "0")),
    "whole photos at evaluation, not their middle": (1.0, ("--data.crop", "1")),
    "four in ten images mixed, not six": (1.0, ("--augment.mix-share", "0.4")),
}


def write_inner(data: str, folder: Path) -> str:
    """Write a split of the training images as a table of class folders beside it."""
    source = open_data(data).train
    _, held_out = split([source.label(i) for i in range(len(source))], 0.2, seed=0)
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split"))
        for i in range(len(source)):
            name = f"{i}{Path(source.name(i)).suffix}"
            (folder / name).write_bytes(source.read(i))
            part = "val" if i in held_out else "train"
            table.writerow((name, source.classes[source.label(i)], part))
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="photos in classes")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    name = Path(arguments.data).name
    about = f"{name}, {arguments.epochs} epochs, seed 0"
    columns = ("candidate", "accuracy (95 % interval)", "processor minutes")
    page = Page("How the settings for photos were chosen", __doc__, about, columns)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "inner").mkdir()
        data = write_inner(arguments.data, root / "inner")
        for number, (name, (share, flags)) in enumerate(CANDIDATES.items()):
            epochs = str(round(share * arguments.epochs))
            words = ("--recipe", "small-photos", "--epochs", epochs, *flags, *ONE_THREAD)
            run = train(data, root / f"run-{number}", *words)
            page.row(name, str(run), run.minutes)
    page.write(arguments.write)


if __name__ == "__main__":
    main()
