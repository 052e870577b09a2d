"""Charts: round words on their axes, marks where their values are, and names that stay text."""

import xml.etree.ElementTree as ET

import pytest

from vitrail.reporting import intervals
from vitrail.reporting.curves import Line, draw
from vitrail.reporting.drawing import Drawing, axis, in_percent
from vitrail.reporting.intervals import Row


def words(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, "0 0.2 0.4 0.6 0.8 1"),
        (0, 36, "0 10 20 30"),
        (0, 2.4, "0 0.5 1 1.5 2"),
        (0.83, 0.97, "0.85 0.9 0.95"),
        (0, 4.2e-5, "0 1e-05 2e-05 3e-05 4e-05"),
        (0, 123456, "0 25000 50000 75000 100000"),
        (-0.3, 0.3, "-0.2 0 0.2"),
    ],
)
def test_an_axis_has_a_few_round_words(low: float, high: float, wanted: str) -> None:
    found = axis(low, high)

    assert " ".join(word for _, word in found.words) == wanted
    assert (found.low, found.high) == (low, high)
    assert all(low <= value <= high + 1e-9 for value, _ in found.words)


@pytest.mark.parametrize("last", [3, 7, 15, 36, 300, 1234])
def test_epochs_are_counted_in_whole_ones(last: int) -> None:
    found = axis(0, last, 6, whole=True)

    assert 3 <= len(found.words) <= 7
    assert all(word.isdecimal() for _, word in found.words)


def test_a_mark_is_where_its_value_is() -> None:
    drawing = Drawing(axis(0, 10), axis(-1, 1), left=60, tall=145)

    drawing.line((0, 10), (1, -1), "val", width=2, dashes=(3, 1))
    drawing.dots([5], [0], "train")
    drawing.bar(0, 5, 0, "rule")

    root = ET.fromstring(drawing.svg("alt", "below"))
    line, dot, bar = (root.find(tag) for tag in ("polyline", "circle", "rect"))
    assert line is not None and dot is not None and bar is not None
    assert line.attrib == {
        "points": "60.0,9.0 346.0,109.0",
        "stroke": "var(--val)",
        "stroke-width": "2",
        "stroke-dasharray": "6.0 2.0",
    }
    assert (dot.get("cx"), dot.get("cy"), dot.get("fill")) == ("203.0", "59.0", "var(--train)")
    assert [bar.get(key) for key in ("x", "y", "width", "height")] == [
        "60.0", "59.0", "143.0", "50.0"
    ]  # fmt: skip


@pytest.mark.parametrize("values", [[0.0], [1.0], [1.0, 1.0], [0.0, 0.0], [0.5, 0.9], [0.0, 1.0]])
@pytest.mark.parametrize("from_zero", [True, False])
def test_a_share_is_drawn_between_0_and_1(values: list[float], from_zero: bool) -> None:
    epochs = [i + 1.0 for i in range(len(values))]

    svg = draw("a", [Line("val", epochs, values)], percent=True, from_zero=from_zero)

    shares = [float(word[:-1]) for word in words(svg) if word.endswith("%")]
    assert len(shares) >= 2
    assert min(shares) >= 0 and max(shares) <= 100


def test_one_value_is_a_dot_and_of_many_points_some_are_drawn() -> None:
    one = draw("a", [Line("val", [2], [0.5])])
    many = draw("a", [Line("val", range(1, 1001), range(1000), dotted=True)])

    (points,) = (line.get("points", "") for line in ET.fromstring(many).iter("polyline"))
    assert one.count("<circle") == 1 and many.count("<circle") == 0
    assert len(points.split()) == 250
    assert points.split()[0].startswith("346.0,")  # the last of all is there


def test_a_name_is_text_and_cut_where_it_is_long() -> None:
    rows = [
        Row('<b>"x"&', 0.5, (0.4, 0.6)),
        Row("a-run-with-a-very-long-name", 0.6, (0.5, 0.7)),
        Row("고양이와 강아지 사진", 0.7, (0.6, 0.8)),
    ]

    found = words(intervals.draw('<b>"x"&', rows, "accuracy"))

    assert found[-4:] == ['<b>"x"&', "a-run-with-a-ve…", "고양이와 강아지…", "accuracy"]
    assert in_percent(0.07) == "7%"
