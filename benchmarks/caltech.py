"""How well a few hundred photos are learned from scratch, on the CPU.

    python benchmarks/caltech.py --data CALTECH101-30 [--seed 0] [--write docs/caltech.md]

Trains by `vitrail train DATA --recipe small-photos` and counts the processor minutes of the whole
command (user + system; one thread of the CPU for the model and one that decodes, so that no minute
is spent on threads that wait for each other). Accuracy is that of the last weights on the held-out
images; no epoch was chosen. `caltech_settings.py` beside this script compares settings on a split
inside the training images. Beside it stands logistic regression on the pixels of each image
squeezed whole to 12 x 12, its strength chosen by cross-validation on the training images.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from runs import ONE_THREAD, Page, train  # the script beside this one
from vitrail.data.loader import Loader
from vitrail.data.preprocess import Preprocess
from vitrail.data.sources import Source, open_data


def pixels(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Give the pixels of all images, each squeezed whole to 12 x 12, N 432, and their labels, N."""
    small = Preprocess(size=(12, 12), resize="square")
    batches = list(Loader(source, small, 64).once())
    images = np.concatenate([batch.images.numpy() for batch in batches])
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    return images.reshape(len(images), -1) / 255, labels


def logistic_regression(data: str) -> float:
    """Give the accuracy of logistic regression, its strength chosen on the training images."""
    splits = open_data(data)
    strengths = {"logisticregression__C": (0.001, 0.01, 0.1, 1.0)}
    method = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    search = GridSearchCV(method, strengths, cv=5).fit(*pixels(splits.train))
    images, labels = pixels(splits.held_out)
    return float(np.mean(search.predict(images) == labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="photos in classes, with a held-out split")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ("--recipe", "small-photos", "--seed", arguments.seed, *ONE_THREAD)
        run = train(arguments.data, Path(folder) / "run", *words)
    summary = run.summary
    about = f"{Path(arguments.data).name}, {summary['train_images']:,} training images"
    columns = ("", "accuracy (95 % interval)", "processor minutes")
    page = Page("Photos from scratch", __doc__, f"{about}, seed {arguments.seed}", columns)
    page.row(
        "logistic regression, 12 x 12 pixels", f"{logistic_regression(arguments.data):.2%}", ""
    )
    name = f"**vitrail, {summary['parameters']:,} parameters**"
    page.row(name, f"**{run}**", run.minutes)
    page.write(arguments.write)


if __name__ == "__main__":
    main()
