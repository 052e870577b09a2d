"""Calibration, coverage, label errors, comparisons, corruptions: each against a slow second way."""

import csv
import io
import json
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

from conftest import TINY, randomize
from test_evaluate import LABELS, Memory, probabilities, scores
from vitrail.data.loader import Loader
from vitrail.data.preprocess import Preprocess
from vitrail.engines.build import engine
from vitrail.errors import ConfigError, DataError, OutputError
from vitrail.inference.calibration import best_temperature, reliability, risk_coverage, scaled
from vitrail.inference.comparing import compare, difference_interval, mcnemar
from vitrail.inference.corruptions import KINDS, SEVERITIES, corrupt, corruption_results
from vitrail.inference.details import by_size, examine
from vitrail.inference.evaluate import Scored, score
from vitrail.inference.evaluation_files import check_folder, write_evaluation, write_predictions
from vitrail.inference.evaluation_text import comparison_text, corruptions_text
from vitrail.inference.label_errors import likely_errors
from vitrail.inference.measures import brier, negative_log_likelihood, softmax
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

IMAGES = torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator())


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(3)
    model = randomize(ViT(TINY)).eval()
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=LABELS)


def test_brier_and_log_loss_are_scikit_learn_s() -> None:
    values, labels = scores()

    found = brier(softmax(values), labels), negative_log_likelihood(values, labels)

    how = {"labels": range(9), "scale_by_half": False}
    wanted = metrics.brier_score_loss(labels, probabilities(), **how)  # type: ignore[arg-type]
    assert found[0] == pytest.approx(wanted, abs=1e-12)
    wanted = metrics.log_loss(labels, probabilities(), labels=range(9))
    assert found[1] == pytest.approx(wanted, abs=1e-12)


def test_the_reliability_diagram_counts_every_answer_in_its_bin() -> None:
    _, labels = scores()
    sure, right = probabilities().max(axis=1), probabilities().argmax(axis=1) == labels

    bins = reliability(sure, right)

    assert sum(b.images for b in bins) == 400 and len(bins) == 15
    for b in bins:
        inside = [i for i in range(400) if b.low < sure[i] <= b.high]
        assert b.images == len(inside)
        assert b.confidence == pytest.approx(sure[inside].mean() if inside else 0, abs=1e-12)
        assert b.accuracy == pytest.approx(right[inside].mean() if inside else 0, abs=1e-12)


def test_each_half_is_scaled_by_the_temperature_of_the_other() -> None:
    values, labels = scores()
    half = np.zeros(400, bool)
    for c in range(9):
        half[np.flatnonzero(labels == c)[1::2]] = True

    found = scaled(3 * values, labels)

    assert found is not None
    first, second = (best_temperature(3 * values[own], labels[own]) for own in (half, ~half))
    assert found.temperatures == (second, first)
    nll = [
        negative_log_likelihood(3 * values[own] / t, labels[own])
        for own, t in ((half, second), (~half, first))
    ]
    assert found.nll == pytest.approx(np.average(nll, weights=[half.sum(), (~half).sum()]))
    assert found.nll < negative_log_likelihood(3 * values, labels)
    assert scaled(values[:1], labels[:1]) is None


def test_risk_and_coverage_are_means_over_the_surest() -> None:
    _, labels = scores()
    sure, right = probabilities().max(axis=1), probabilities().argmax(axis=1) == labels

    area, curve = risk_coverage(sure, right)

    order = sorted(range(400), key=lambda i: -sure[i])
    risks = [1 - np.mean([right[i] for i in order[:k]]) for k in range(1, 401)]
    assert area == pytest.approx(np.mean(risks), abs=1e-12)
    assert [point.coverage for point in curve] == pytest.approx([k / 20 for k in range(1, 21)])
    for point in curve:
        k = round(point.coverage * 400)
        assert point.accuracy == pytest.approx(1 - risks[k - 1], abs=1e-12)
        assert point.confidence == sure[order[k - 1]]


def test_equally_sure_answers_count_alike_in_any_order() -> None:
    sure = np.array([0.9, 0.9, 0.9, 0.5])
    right = np.array([True, False, False, True])

    areas = [risk_coverage(sure[o], right[o])[0] for o in ([0, 1, 2, 3], [2, 1, 0, 3])]

    assert areas[0] == areas[1] == pytest.approx((3 * 2 / 3 + 0.5) / 4)


def test_accuracy_by_size_covers_every_image_once() -> None:
    shorter = np.array([8, 9, 15, 16, 31, 500, 300])
    right = np.array([1, 0, 1, 1, 1, 0, 0], bool)

    found = by_size(shorter, right)

    assert [(s.low, s.high, s.images) for s in found] == [(8, 15, 3), (16, 31, 2), (300, 500, 2)]
    assert [s.top1 for s in found] == pytest.approx([2 / 3, 1, 0])


def test_the_most_confused_pairs_are_the_largest_cells_off_the_diagonal() -> None:
    values, labels = scores()
    matrix = metrics.confusion_matrix(labels, values.argmax(axis=1), labels=range(9))

    found = examine(values, labels, np.full((400, 2), 9), ("x",) * 400, LABELS).confused

    cells = {(i, j): matrix[i, j] for i in range(9) for j in range(9) if i != j and matrix[i, j]}
    assert {(row.label, row.answered): row.images for row in found} == {
        (LABELS[i], LABELS[j]): count for (i, j), count in cells.items()
    }
    assert [row.images for row in found] == sorted(cells.values(), reverse=True)


def test_labels_that_were_swapped_are_found_by_class_thresholds() -> None:
    draw = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 40)
    values = draw.normal(size=(120, 3))
    values[np.arange(120), truth] += 6
    labels = truth.copy()
    swapped = [3, 50, 90]
    values[swapped, truth[swapped]] += 6  # as sure as of any
    labels[swapped] = (truth[swapped] + 1) % 3
    given, names = softmax(values), ("a", "b", "c")

    found = likely_errors(given, labels, tuple(f"{i}.png" for i in range(120)), names)

    # By the letter of the paper: thresholds by class, then the likeliest class that reaches its.
    threshold = [given[labels == c, c].mean() for c in range(3)]
    doubtful = {}
    for i in range(120):
        reach = [c for c in range(3) if given[i, c] >= threshold[c]]
        best = max(reach, key=lambda c: given[i, c], default=labels[i])
        if best != labels[i]:
            doubtful[f"{i}.png"] = names[best]
    assert {row.path: row.answered for row in found} == doubtful
    assert {f"{i}.png" for i in swapped} <= doubtful.keys()
    margins = [row.of_label - row.probability for row in found]
    assert margins == sorted(margins) and all(row.label != row.answered for row in found)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_model_that_knows_no_class_accuses_no_label(classes: int) -> None:
    draw = np.random.default_rng(0)
    truth = np.repeat(np.arange(classes), 40)
    values = draw.normal(size=(40 * classes, classes))
    values[np.arange(len(truth)), truth] += 6
    paths, names = tuple(map(str, range(len(truth)))), tuple(map(str, range(classes)))

    in_another_order = likely_errors(softmax(values), (truth + 1) % classes, paths, names)
    constant = likely_errors(np.full_like(values, 1 / classes), truth, paths, names)

    assert in_another_order == constant == ()


def test_a_class_that_the_model_does_not_know_accuses_and_is_accused_by_none() -> None:
    draw = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 40)
    labels = truth.copy()
    labels[(truth == 2) | (truth == 3)] ^= 1  # these two names are swapped throughout
    labels[[5, 45]] = 1, 0  # and here a label alone is wrong
    values = draw.normal(size=(160, 4))
    values[np.arange(160), truth] += 8
    names = ("a", "b", "c", "d")

    found = likely_errors(softmax(values), labels, tuple(map(str, range(160))), names)

    assert {"5", "45"} <= {row.path for row in found}
    assert {row.label for row in found} | {row.answered for row in found} == {"a", "b"}


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 9), (10, 10), (40, 21), (0, 1)])
def test_mcnemar_is_exact(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1))
    wanted = min(Fraction(1), Fraction(2 * tail, 2**n))

    assert mcnemar(gained, lost) == pytest.approx(float(wanted), abs=1e-12)


def test_models_are_compared_on_the_images_that_both_can_read() -> None:
    this = dict(enumerate([True, True, True, False, True, False]))
    other = {0: True, 1: False, 2: False, 3: True, 4: True, 9: True}

    found = compare(this, other)

    assert (found.images, found.only_this_right, found.only_other_right) == (5, 2, 1)
    assert (found.top1, found.top1_against) == (0.8, 0.6)
    assert found.difference == pytest.approx(0.2) and found.p_value == 1.0
    low, high = found.difference_interval
    assert low < 0.2 < high
    assert "McNemar's exact p = 1" in comparison_text(found, "other")
    # Agresti and Min 2005, of 1,600 voters (Agresti 2002, table 10.1): 150 and 86 changed.
    assert difference_interval(150, 86, 1600) == pytest.approx((0.0213, 0.0586), abs=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_grow_with_severity_and_depend_on_the_image_alone(kind: str) -> None:
    places = np.array([4, 7, 9])
    damage = []
    for severity in SEVERITIES:
        found = corrupt(IMAGES, kind, severity, places)
        assert found.dtype == torch.uint8 and found.shape == IMAGES.shape
        damage.append(((found.double() - IMAGES) ** 2).mean().item())
        alone = corrupt(IMAGES[1:2], kind, severity, places[1:2])
        assert torch.equal(found[1:2], alone)

    assert damage == sorted(damage) and damage[0] > 0
    other = corrupt(IMAGES, kind, 3, places, seed=1)
    drawn = kind in ("noise", "occlusion")
    assert torch.equal(other, corrupt(IMAGES, kind, 3, places)) != drawn


def test_noise_is_normal_and_occlusion_covers_its_share() -> None:
    grey = torch.full((1, 1, 200, 300), 128, dtype=torch.uint8)

    noise = corrupt(grey, "noise", 1, np.array([0])).double() - 128
    # 60,000 draws: the standard error of the mean is .08 and of the deviation .06.
    assert abs(noise.mean().item()) < 0.4
    assert noise.std().item() == pytest.approx(255 * 0.08, abs=0.3)
    covered = corrupt(torch.zeros_like(grey), "occlusion", 5, np.array([0])) == 128
    assert covered.double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_corruption_that_there_is_not_is_refused() -> None:
    for kind, severity in (("blurr", 1), ("blur", 6), ("blur", 0)):
        with pytest.raises(DataError, match="noise, blur, jpeg, contrast, occlusion"):
            corrupt(IMAGES, kind, severity, np.arange(3))


def test_accuracy_under_corruption_is_that_of_the_corrupted_images(bundle: Bundle) -> None:
    source = Memory("abcdefghia", "ihgfedcba", bad=(3,))
    loader = Loader(source, bundle.preprocess, 4, max_bad_share=1.0)
    runs = engine(bundle, "torch", device="cpu")

    found = corruption_results(runs, loader, LABELS)

    assert [(row.kind, row.severity) for row in found] == [
        (k, s) for k in KINDS for s in SEVERITIES
    ]
    hits = 0
    for batch in loader.once():
        answers = runs.run(corrupt(batch.images, "contrast", 4, batch.places)).argmax(dim=1)
        names = [source.names[place] for place in batch.places]
        hits += sum(LABELS[a] == name for a, name in zip(answers.tolist(), names, strict=True))
    (mine,) = [row for row in found if (row.kind, row.severity) == ("contrast", 4)]
    assert mine.top1 == hits / 9
    table = corruptions_text(found, 0.5).splitlines()
    assert len(table) == 6 and table[0].split()[-7:] == ["clean", *"12345", "mean"]


@pytest.fixture
def scored(bundle: Bundle) -> Scored:
    source = Memory("abcdefghia", "abcdefghi", bad=(3,))
    source.name = lambda index: f"참새, {index}\n.png"  # type: ignore[method-assign]
    return score(bundle, source, device="cpu")


def test_an_evaluation_is_a_folder_of_figures_and_rows(scored: Scored, tmp_path: Path) -> None:
    folder = str(tmp_path / "new" / "evaluation")
    check_folder(folder)
    write_evaluation(scored.evaluation().to_json() | {"model": "m"}, scored, folder)
    check_folder(folder)  # the same may be written again

    figures = json.loads(Path(folder, "evaluation.json").read_text(encoding="utf-8"))
    lines = Path(folder, "predictions.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines[:-1]]
    assert (figures["images"], figures["failed"], figures["model"]) == (9, 1, "m")
    assert list(rows[0]) == ["path", "label", "error", "top", "probabilities"]
    assert [row["path"] for row in rows] == [
        f"참새, {i}\n.png" for i in (0, 1, 2, *range(4, 10), 3)
    ]
    wanted = softmax(scored.scores.astype(np.float64))
    np.testing.assert_allclose([row["probabilities"] for row in rows[:-1]], wanted, rtol=1e-6)
    assert [row["top"][0]["index"] for row in rows[:-1]] == wanted.argmax(axis=1).tolist()
    assert rows[-1]["error"] and rows[-1]["top"] == [] and rows[-1]["label"] is None
    hits = sum(row["top"][0]["label"] == row["label"] for row in rows[:-1])
    assert hits / 9 == figures["top1"]


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    with pytest.raises(OutputError, match=r"notes\.txt"):
        check_folder(str(tmp_path))
    with pytest.raises(OutputError, match="is a file"):
        check_folder(str(tmp_path / "notes.txt"))


def test_predictions_as_csv_read_back(scored: Scored, tmp_path: Path) -> None:
    write_predictions(scored, str(tmp_path / "a.csv"))

    text = (tmp_path / "a.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == ["path", "label", "answer", "probability", "right", "error"]
    assert [row["path"] for row in rows][:2] == ["참새, 0\n.png", "참새, 1\n.png"]
    assert sum(row["right"] == "1" for row in rows) == sum(scored.right().values())
    assert all((row["answer"] == row["label"]) == (row["right"] == "1") for row in rows[:-1])


def test_predictions_have_two_forms() -> None:
    from vitrail.inference.evaluation_files import check_predictions

    with pytest.raises(ConfigError, match=r"\.jsonl or \.csv"):
        check_predictions("a.txt")
