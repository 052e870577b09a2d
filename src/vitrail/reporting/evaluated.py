"""What `vitrail eval -o FOLDER` and the end of a run write, read as it stands."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.errors import DataError
from vitrail.weights.json_files import read_json

EVALUATION, PREDICTIONS = "evaluation.json", "predictions.jsonl"
_FIGURES = ("images", "top1", "top5", "nll", "brier", "ece", "temperature")


class Answer(NamedTuple):
    """The answer to one image; `of_label` is absent where the file has the best classes alone."""

    path: str
    label: str
    answered: str
    probability: float  # of the answered class
    margin: float  # to the second best class, 1 where there is none
    of_label: float | None

    @property
    def right(self) -> bool:
        return self.answered == self.label


class Evaluated(NamedTuple):
    """Figures as in `evaluation.json`, and the answers, absent where there is no file of them."""

    found: Mapping[str, Any]
    answers: tuple[Answer, ...] | None = None

    @property
    def labels(self) -> list[str]:
        return [row["label"] for row in self.found["per_class"]]

    @property
    def detailed(self) -> bool:
        """Say whether there is more than the figures of a run's summary."""
        return "reliability" in self.found


def read_evaluation(folder: Path) -> Evaluated:
    """Read `evaluation.json`, and `predictions.jsonl` where it is there.

    Raises `WeightsError` or `DataError` for a file that is not what it should be.
    """
    path = folder / EVALUATION
    found = checked(read_json(path), path)
    rows = folder / PREDICTIONS
    if not rows.is_file():
        return Evaluated(found)
    labels = {row["label"]: place for place, row in enumerate(found["per_class"])}
    return Evaluated(found, tuple(_answers(rows, labels)))


def checked(found: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Give an evaluation that has its figures; raises `DataError` for anything else."""
    try:
        numbers = [found[name] for name in _FIGURES] + list(found["top1_interval"])
        counts = [row["count"] for row in found["per_class"]]
        names = [row["label"] for row in found["per_class"]]
        sides = {len(row) for row in found["confusion"]} | {len(found["confusion"])}
        whole = all(isinstance(n, int | float) for n in (*numbers, *counts)) and sum(counts)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} holds no evaluation ({error!r}); measure the model again"
        ) from error
    if not whole or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} holds no evaluation: its figures are no numbers; measure again")
    if sides != {len(names)}:
        raise DataError(
            f"{path}: the confusion matrix is not {len(names)} x {len(names)}, as the classes; "
            "measure the model again"
        )
    return found


def _answers(path: Path, labels: Mapping[str, int]) -> Iterator[Answer]:
    """Give the answers one by one: a file of them may be larger than memory."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if row["error"] is None:
                    yield _answer(row, labels)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(
                    f"{path} line {number} is no answer ({error!r}); measure the model again"
                ) from error


def _answer(row: Mapping[str, Any], labels: Mapping[str, int]) -> Answer:
    best, label = row["top"], row["label"]
    of_label = next((a["probability"] for a in best if a["label"] == label), None)
    if of_label is None and row.get("probabilities"):
        of_label = row["probabilities"][labels[label]]
    sure = float(best[0]["probability"])
    margin = sure - best[1]["probability"] if len(best) > 1 else 1.0
    return Answer(str(row["path"]), str(label), str(best[0]["label"]), sure, margin, of_label)
