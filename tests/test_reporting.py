"""The page of a run, from run folders made by hand."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.errors import DataError
from vitrail.reporting.page import write_run_page

NASTY = '<b>"x"&'


def evaluation(labels: list[str]) -> dict[str, Any]:
    """Ten images a class, all right but one of the first class, named the second."""
    confusion = np.diag([10] * len(labels))
    confusion[0, :2] = 9, 1
    per_class = [
        {"label": label, "count": 10, "precision": 1.0, "recall": 1.0, "f1": 1.0}
        for label in labels
    ]
    per_class[0] |= {"recall": 0.9, "f1": 0.947}
    per_class[1] |= {"precision": 0.909, "f1": 0.952}
    images = 10 * len(labels)
    return {
        "images": images,
        "failed": 0,
        "loss": 0.12,
        "top1": (images - 1) / images,
        "top1_interval": [0.8333, 0.9941],
        "top5": 1.0,
        "nll": 0.12,
        "brier": 0.05,
        "ece": 0.031,
        "temperature": 0.8,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def row(step: int, split: str, loss: float, top1: float) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 10,
        "split": split,
        "loss": loss,
        "top1": top1,
        "lr": 0.01 / step if split == "train" else None,
        "grad_norm": 1.0,
        "images_per_second": 900.0,
        "seconds": step / 2,
        "update_norm": 0.1 / step if split == "train" else None,
        "peak_share": 0.4 if split == "train" else None,
    }


def write_run(folder: Path, labels: list[str], status: str = "finished") -> Path:
    """Write what `vitrail train` leaves, but for weights."""
    found = evaluation(labels) if status == "finished" else None
    done, steps = (30, 30) if found else (0, 40)  # the summary of a running run is its start's
    summary = {
        "status": status,
        "step": done,
        "steps": steps,
        "top1": found and found["top1"],
        "best_top1": found and found["top1"],
        "parameters": 202186,
        "train_images": 1437,
        "held_out_images": 10 * len(labels),
        "seconds": 21.37,
        "cpu_seconds": 35.24,
        "bad": [],
        "evaluation": found,
    }
    environment = {
        "vitrail": "0.1.0",
        "gpu": None,
        "command": ["/home/me/bin/vitrail", "train", "my photos", "--epochs", "4"],
        "classes": labels,
    }
    rows = [row(s, "train", 3 / s, 1 - 4 / s) for s in (5, 15, 25)]
    rows += [row(s, "val", 2 / s, 1 - 2 / s) for s in (10, 20, 30)]
    for name in ("examples", "last"):
        (folder / name).mkdir(parents=True)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(folder / "examples" / "one-is-1.png")
    (folder / "summary.json").write_text(json.dumps(summary, ensure_ascii=False), "utf-8")
    (folder / "environment.json").write_text(json.dumps(environment, ensure_ascii=False), "utf-8")
    (folder / "recipe.toml").write_text('[data]\nsource = "my photos"  # <mine>\n', "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


class Tags(HTMLParser):
    """The tags of a page, which must close in the order in which they opened; and its text."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag in ("td", "th", "dt", "dd") else ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data if not {"style", "script"} & {*self.open} else ""


def read(run: Path) -> tuple[str, Tags]:
    page = write_run_page(run).read_text("utf-8")
    tags = Tags(page)
    assert tags.open == []
    return page, tags


def test_the_page_of_a_finished_run_says_what_happened(tmp_path: Path) -> None:
    run = write_run(tmp_path / "photos-1", ["ant", "bee", "cat"])

    page, tags = read(run)

    for words in (
        "After 30 steps (3 epochs) on 1,437 labelled images, this Vision Transformer named 29 of",
        "Always answering the most frequent class would be right for 33.3%",
        "Accuracy 96.67% 95 % interval 83.3% to 99.4%",
        "Errors 1 of 30 held-out images",
        "Parameters 202,186",
        "Time 21.4 s 35.2 CPU-seconds",
        "ant bee 1 10.0%",
        f"vitrail train 'my photos' --recipe {run}/recipe.toml",
        f"vitrail predict {run} {run}/examples/*",
        f"vitrail eval {run} 'my photos'",
        "vitrail train 'my photos' --epochs 4",
        "# <mine>",
        "one-is-1.png",
    ):
        assert words in tags.text
    assert [alt for tag, a in tags.seen if tag == "svg" and (alt := a["aria-label"])] == [
        "Loss over epochs: of training images from 0.6 to 0.12; "
        "of held-out images from 0.2 to 0.0667.",
        "Accuracy over epochs: of training images from 20.0% to 84.0%; "
        "of held-out images from 80.0% to 93.3%.",
        "Learning rate: highest 0.002, at the end 0.0004.",
        "Step length: highest 0.02, at the end 0.004.",
        "Use of the device: highest 40.0%, at the end 40.0%.",
    ]
    assert page.count('class="hit"') == 3
    assert page.count('class="miss"') == 1


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    page, tags = read(write_run(tmp_path / "photos-1", ["ant", "bee", "cat"]))

    addresses = [
        value or ""
        for _, attributes in tags.seen
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "data")
    ]
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(ids)
    assert len(ids) == len(set(ids))
    assert re.findall(r"https?:|@import|url\((?!#)", page) == []
    assert [a for tag, a in tags.seen if tag == "script"] == [{}]  # its text stands in the page
    assert len(page) < 100_000


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "photos-1", ["ant", "bee", "cat"])

    assert write_run_page(run).read_bytes() == write_run_page(run).read_bytes()


def test_a_figure_that_is_not_finite_is_left_out_of_its_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path / "photos-1", ["ant", "bee", "cat"])
    rows = (run / "metrics.jsonl").read_text().splitlines()
    broken = json.loads(rows[1]) | {"update_norm": float("inf"), "lr": float("nan")}
    (run / "metrics.jsonl").write_text("\n".join([rows[0], json.dumps(broken), *rows[2:], ""]))

    _, tags = read(run)

    labels = [a["aria-label"] or "" for tag, a in tags.seen if tag == "svg"]
    assert "Step length: highest 0.02, at the end 0.004." in labels
    assert "Learning rate: highest 0.002, at the end 0.0004." in labels


def test_what_a_person_named_is_text_and_never_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / NASTY, [NASTY, "고양이", "Löwe"])
    change(run / "summary.json", bad=[{"path": f"{NASTY}.jpg", "reason": NASTY}])
    (run / "examples" / f"{NASTY}-개.png").write_bytes(b"no image")

    page, tags = read(run)

    assert "<b>" not in page
    assert f"{NASTY} · a vitrail training run" in tags.text
    assert f"{NASTY} 고양이 1 10.0%" in tags.text
    assert f"{NASTY}.jpg {NASTY}" in tags.text
    assert f"cannot be shown {NASTY}-개.png" in tags.text
    titles = [a["title"] for tag, a in tags.seen if tag == "td" and "title" in a]
    assert f"{NASTY} named 고양이: 1 of 10" in titles


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("running", "This run had not ended when this page was written: 30 of 40 steps were"),
        ("interrupted", "This run was stopped after 30 of 40 steps (3 epochs); it can go on"),
        ("failed", "This run failed after 30 of 40 steps (3 epochs); the last line of log.txt"),
        ("nonfinite", "Training blew up after 30 of 40 steps (3 epochs)"),
    ],
)
def test_a_run_without_an_evaluation_shows_how_far_it_came(
    tmp_path: Path, status: str, words: str
) -> None:
    run = write_run(tmp_path / "photos-1", ["ant", "bee", "cat"], status)

    _, tags = read(run)

    assert words in tags.text
    assert "Accuracy so far 93.33% at step 30" in tags.text
    assert f"recipe.toml --out {run}" in tags.text
    assert "What it confuses" not in tags.text


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 20, "epo', "utf-8")

    page, tags = read(tmp_path)

    assert "Whether this run has ended is not known, as it has no summary.json: 0" in tags.text
    assert "Nothing was measured yet." in tags.text
    assert "<svg" not in page


def test_one_held_out_row_alone_is_a_dot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "photos-1", ["ant", "bee", "cat"])
    (run / "metrics.jsonl").write_text(json.dumps(row(10, "val", 0.5, 0.9)) + "\n", "utf-8")

    page, _ = read(run)

    assert page.count("<svg") == 2
    assert page.count("<circle") == 2


def test_sixty_classes_get_a_picture_in_place_of_a_matrix(tmp_path: Path) -> None:
    run = write_run(tmp_path / "photos-1", [f"class {i}" for i in range(60)])

    page, tags = read(run)

    assert 'class="hit"' not in page
    alts = [a["alt"] or "" for tag, a in tags.seen if tag == "img"]
    assert any(alt.startswith("Confusion matrix of 60 classes") for alt in alts)
    assert "class 0 class 1 1 10.0%" in tags.text
    assert tags.text.index("class 0 10 100.0% 90.0%") < tags.text.index("class 1 10 90.9% 100.0%")
    assert tags.text.count(" 10 100.0% 100.0% 100.0%") == 58


def test_a_photo_is_embedded_small_upright_and_without_its_metadata(tmp_path: Path) -> None:
    run = write_run(tmp_path / "photos-1", ["ant", "bee", "cat"])
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "secret camera"
    Image.fromarray(noise).save(run / "examples" / "photo.jpg", exif=exif)

    page, tags = read(run)

    photo = next(
        a for tag, a in tags.seen if tag == "img" and a["alt"] == "Held-out image photo.jpg"
    )
    assert (photo["src"] or "").startswith("data:image/jpeg;base64,")
    assert "class" not in photo
    assert len(page) < 200_000


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no run: it holds none of summary.json"):
        write_run_page(tmp_path)

    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n', "utf-8")
    with pytest.raises(DataError, match=r"is no row of metrics"):
        write_run_page(tmp_path)
