"""What embeddings are worth for telling classes apart: the quick answer for small data."""

import warnings
from typing import Any, NamedTuple

import numpy as np

from vitrail.errors import DataError
from vitrail.inference.measures import wilson
from vitrail.inference.neighbours import normalized

_FOLDS, _INNER = 5, 3
_NEIGHBOURS = (1, 3, 5, 10, 20)
_C = tuple(10.0**power for power in range(-4, 3))


class Probe(NamedTuple):
    """How many images a classifier of embeddings told that it had not seen.

    Every image is answered for once, by a fold that was fitted on the others; `chosen` is the k or
    C of each fold, settled by a cross-validation inside of what it was fitted on.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]  # Wilson's, 95 %; folds share images, so it is a little narrow
    images: int
    folds: int
    chosen: tuple[float, ...]


def probe(vectors: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[Probe, ...]:
    """Cross-validate kNN by cosine and logistic regression on embeddings, N D, by labels, N.

    Raises `DataError` where a class has fewer than three images, or there is only one class.
    """
    _, labels, count = np.unique(labels, return_inverse=True, return_counts=True)
    if len(count) < 2 or count.min() < 3:
        raise DataError(
            f"the labels have {len(count)} classes, the smallest of {count.min()} images; to be "
            "cross-validated there should be 2 classes or more, each of 3 images or more"
        )
    return (
        _validated("kNN", _knn, normalized(vectors), labels, int(count.min()), seed),
        _validated("logistic", _logistic, vectors, labels, int(count.min()), seed),
    )


def _validated(
    name: str, search: Any, vectors: np.ndarray, labels: np.ndarray, smallest: int, seed: int
) -> Probe:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold

    folds = min(_FOLDS, smallest)
    inner = min(_INNER, smallest - -(-smallest // folds))
    right, chosen = 0, []
    outer = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for seen, unseen in outer.split(vectors, labels):
        inside = StratifiedKFold(inner, shuffle=True, random_state=seed)
        found = search(inside, len(seen) - -(-len(seen) // inner))
        with warnings.catch_warnings():  # a C that does not converge loses in the comparison
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.fit(vectors[seen], labels[seen])
        right += int((found.predict(vectors[unseen]) == labels[unseen]).sum())
        chosen.append(float(next(iter(found.best_params_.values()))))
    count = len(labels)
    return Probe(name, right / count, wilson(right, count), count, folds, tuple(chosen))


def _knn(inside: Any, fitted: int) -> Any:
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier

    # Of rows of length 1 the Euclidean order is the order of cosines.
    choices = {"n_neighbors": [k for k in _NEIGHBOURS if k <= fitted]}
    return GridSearchCV(KNeighborsClassifier(), choices, cv=inside)


def _logistic(inside: Any, fitted: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return GridSearchCV(model, {"logisticregression__C": _C}, cv=inside)
