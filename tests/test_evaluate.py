import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

from conftest import TINY, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, DataError, NonFiniteError
from vitrail.inference.calibration import calibration_error
from vitrail.inference.details import examine
from vitrail.inference.evaluate import Evaluation, evaluate, measure, score
from vitrail.inference.evaluation_text import evaluation_text
from vitrail.inference.measures import wilson
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

LABELS = tuple("abcdefghi")
PICTURES = np.random.default_rng(1).integers(0, 256, (24, 40, 56, 3), dtype=np.uint8)


class Memory:
    """Random pictures whose classes are `names`; the places in `bad` hold no image."""

    def __init__(self, names: str, classes: str, bad: tuple[int, ...] = ()) -> None:
        self.names, self.classes, self.bad = names, tuple(classes), bad

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(PICTURES[index]).save(file, format="PNG")
        return b"" if index in self.bad else file.getvalue()

    def label(self, index: int) -> int:
        return self.classes.index(self.names[index])

    def name(self, index: int) -> str:
        return f"{index}.png"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(3)
    model = randomize(ViT(TINY)).eval()
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=LABELS)


@torch.no_grad()
def logits(bundle: Bundle, count: int) -> np.ndarray:
    """Answer image by image, past the loader."""
    images = torch.from_numpy(PICTURES[:count]).permute(0, 3, 1, 2) / 255
    return torch.cat([bundle.model(2 * image[None] - 1) for image in images]).numpy()


def scores(count: int = 400, classes: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Give logits that are right more often than not, and labels; class 4 is never meant."""
    draw = np.random.default_rng(4)
    labels = draw.choice([c for c in range(classes) if c != 4], count)
    values = draw.normal(size=(count, classes))
    values[np.arange(count), labels] += 1.5
    values[:, 2] -= 6  # class 2 is never answered
    return values, labels


def measured(temperature: float = 1.0) -> Evaluation:
    values, labels = scores()
    return measure(values * temperature, labels, LABELS)


def probabilities() -> np.ndarray:
    powers = np.exp(scores()[0])
    return powers / powers.sum(axis=1, keepdims=True)


def test_an_evaluation_is_the_measure_of_the_model_s_logits(bundle: Bundle) -> None:
    names = "abcdefghi" * 2 + "abc"

    found = evaluate(bundle, Memory(names, "abcdefghi"), batch_size=8, device="cpu")

    values = logits(bundle, len(names))
    wanted = measure(values, np.array(["abcdefghi".index(name) for name in names]), LABELS)
    assert found.confusion == wanted.confusion
    assert (found.images, found.failed) == (21, 0)
    # A batch of eight and of one differ in the last bits of float32.
    assert found.nll == pytest.approx(wanted.nll, rel=1e-5)
    assert found.brier == pytest.approx(wanted.brier, rel=1e-5)


def test_classes_are_found_by_name_whatever_their_order(bundle: Bundle) -> None:
    names = "gfedcbagfedcba"

    forward = evaluate(bundle, Memory(names, "abcdefghi"), device="cpu")
    backward = evaluate(bundle, Memory(names, "gfedcba"), device="cpu")

    assert replace(forward, details=None) == replace(backward, details=None)
    assert [row.count for row in forward.per_class] == [2, 2, 2, 2, 2, 2, 2, 0, 0]


def test_a_class_that_the_model_does_not_know_is_named(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="does not know: zebra"):
        source = Memory("a", "abc")
        source.classes = ("a", "zebra", "b")
        evaluate(bundle, source)


def test_bad_files_are_counted_and_in_no_figure(bundle: Bundle) -> None:
    good = evaluate(bundle, Memory("abcd", "abcdefghi"), device="cpu")
    some = evaluate(bundle, Memory("abcdef", "abcdefghi", bad=(4, 5)), device="cpu")

    assert (some.images, some.failed) == (4, 2)
    assert some.confusion == good.confusion
    assert some.nll == pytest.approx(good.nll, rel=1e-5)
    with pytest.raises(DataError, match="none of the 2"):
        evaluate(bundle, Memory("ab", "abcdefghi", bad=(0, 1)))


def test_a_model_or_a_batch_size_that_cannot_answer_is_refused(bundle: Bundle) -> None:
    features = replace(bundle, model=ViT(TINY.replace(classes=0)), labels=())

    with pytest.raises(ConfigError, match="no classes"):
        evaluate(features, Memory("a", "ab"))
    with pytest.raises(ConfigError, match="batch_size"):
        evaluate(bundle, Memory("a", "ab"), batch_size=0)


def test_answers_that_are_not_finite_are_no_result(bundle: Bundle) -> None:
    values, labels = scores()
    values[3, 5] = np.nan

    with pytest.raises(NonFiniteError):
        measure(values, labels, LABELS)


def test_a_model_with_broken_weights_is_not_compared_with_either(bundle: Bundle) -> None:
    broken = ViT(TINY)
    torch.nn.init.constant_(broken.patch_embed.proj.weight, torch.nan)

    with pytest.raises(NonFiniteError, match="weights are broken"):
        score(replace(bundle, model=broken), Memory("ab", "abcdefghi"), device="cpu")


def test_accuracies_are_scikit_learn_s() -> None:
    values, labels = scores()

    found = measured()

    for k, share in ((1, found.top1), (5, found.top5)):
        wanted = metrics.top_k_accuracy_score(labels, values, k=k, labels=range(9))
        assert share == pytest.approx(wanted, abs=1e-12)
    assert found.images == 400 and 0.4 < found.top1 < 0.9


def test_equal_scores_are_no_answer_for_every_label() -> None:
    found = measure(np.zeros((9, 9)), np.arange(9), LABELS)

    # The first of equals is the likeliest class, and the first five are the top five.
    assert (found.top1, found.top5) == (pytest.approx(1 / 9), pytest.approx(5 / 9))


def test_fewer_than_five_classes_are_all_in_the_top_five() -> None:
    values, labels = scores()

    assert measure(values[:, :4], labels % 4, LABELS[:4]).top5 == 1


def test_loss_and_brier_are_scikit_learn_s() -> None:
    _, labels = scores()

    found = measured()

    wanted = metrics.log_loss(labels, probabilities(), labels=range(9))
    assert found.nll == found.loss == pytest.approx(wanted, rel=1e-9)
    one_hot = labels[:, None] == np.arange(9)
    assert found.brier == pytest.approx(np.mean(np.sum((probabilities() - one_hot) ** 2, 1)))


def test_huge_logits_do_not_overflow() -> None:
    found = measure(np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0]), ("a", "b"))

    assert found.nll == pytest.approx(1e4)
    assert found.brier == pytest.approx(1.0)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_in_each_bin() -> None:
    _, labels = scores()
    confidence, answers = probabilities().max(axis=1), probabilities().argmax(axis=1)
    gap = 0.0
    for low in np.arange(15) / 15:
        inside = [i for i in range(400) if low < confidence[i] <= low + 1 / 15]
        if inside:
            right = np.mean([answers[i] == labels[i] for i in inside])
            gap += len(inside) / 400 * abs(right - np.mean([confidence[i] for i in inside]))

    assert measured().ece == pytest.approx(gap, abs=1e-12)
    sure = np.array([0.92, 0.99])  # in the last bins but one and the last
    assert calibration_error(sure, np.array([True, False])) == pytest.approx((0.08 + 0.99) / 2)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert calibration_error(np.array([0.9, 0.9]), np.array([True, False])) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_the_interval_is_wilson_s(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)


def test_logits_three_times_as_large_need_three_times_the_temperature() -> None:
    once, thrice = measured(), measured(3.0)

    # The search stops within 1e-5 of the logarithm.
    assert thrice.temperature == pytest.approx(3 * once.temperature, rel=1e-4)
    calm = measured(1 / once.temperature)
    assert calm.temperature == pytest.approx(1, rel=1e-4)
    assert calm.nll <= min(once.nll, measured(1.02 / once.temperature).nll)


def test_classes_and_confusion_are_scikit_learn_s() -> None:
    values, labels = scores()
    answers = values.argmax(axis=1)

    found = measured()

    wanted = metrics.precision_recall_fscore_support(
        labels,
        answers,
        labels=range(9),
        zero_division=0,  # type: ignore[arg-type]
    )
    mine = [(row.precision, row.recall, row.f1, row.count) for row in found.per_class]
    np.testing.assert_allclose(mine, np.stack(wanted, axis=1), atol=1e-12)  # type: ignore[arg-type]
    assert [row.label for row in found.per_class] == list(LABELS)
    assert found.per_class[2].precision == 0 and found.per_class[4].count == 0
    matrix = metrics.confusion_matrix(labels, answers, labels=range(9))
    assert np.array_equal(found.confusion, matrix)


def test_the_json_has_the_form_that_others_rely_on(bundle: Bundle) -> None:
    values = measured().to_json()
    detailed = evaluate(bundle, Memory("abcdefghi" * 2, "abcdefghi"), device="cpu").to_json()

    assert list(values) == [
        "images", "failed", "loss", "top1", "top1_interval", "top5", "nll", "brier", "ece",
        "temperature", "per_class", "confusion",
    ]  # fmt: skip
    assert list(detailed) == [
        *values, "confused", "temperature_scaled", "reliability", "aurc", "coverage", "sizes",
        "likely_errors",
    ]  # fmt: skip
    assert json.loads(json.dumps(detailed))["sizes"][0]["low"] == 40
    assert list(values["per_class"][0]) == ["label", "count", "precision", "recall", "f1"]


def test_each_image_that_can_be_read_has_its_row(bundle: Bundle) -> None:
    found = score(bundle, Memory("abcdef", "abcdefghi", bad=(1, 4)), device="cpu", batch_size=4)

    assert found.paths == ("0.png", "2.png", "3.png", "5.png")
    assert found.places.tolist() == [0, 2, 3, 5] and found.labels.tolist() == [0, 2, 3, 5]
    assert found.sides.tolist() == [[40, 56]] * 4
    assert [file.path for file in found.bad] == ["1.png", "4.png"]
    # A batch of four and of one differ in the last bits of float32.
    np.testing.assert_allclose(found.scores, logits(bundle, 6)[[0, 2, 3, 5]], rtol=1e-4, atol=1e-5)


def test_the_page_says_how_many_were_wrong_and_for_what() -> None:
    values, labels = scores()
    details = examine(values, labels, np.full((400, 2), 32), ("x.png",) * 400, LABELS)
    found = replace(measured(), failed=3, details=details)
    wrong = 400 - sum(found.confusion[i][i] for i in range(9))

    text = evaluation_text(found)

    assert f"{wrong} wrong" in text and "3 could not be read" in text
    worst = max(found.confusion[i][j] for i in range(9) for j in range(9) if i != j)
    assert text.split("taken for another:\n")[1].split()[0] == str(worst)
