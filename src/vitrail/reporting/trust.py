"""How far answers can be trusted: calibration, coverage and image size, as charts with words.

Every sentence is made of the figures that it speaks of, and holds whatever they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitrail.inference.measures import wilson
from vitrail.reporting import intervals
from vitrail.reporting.drawing import Chart, Drawing, axis, in_percent
from vitrail.reporting.intervals import Row

_SEARCHED = 0.051, 19.6  # what lies outside is at the edge of the temperatures tried, 0.05 to 20
_TENTH = 18  # of 20: the point of the curve at which the least sure tenth is left out


def charts(found: Mapping[str, Any]) -> Iterator[Chart]:
    """Draw calibration, coverage and, where images differ in size, accuracy by size."""
    bins = [row for row in found["reliability"] if row["images"]]
    yield Chart("Calibration", _reliability(bins, found["images"]), calibration(found))
    yield Chart("Leaving out the least sure", _coverage(found["coverage"]), coverage(found))
    if len(found["sizes"]) > 1:
        yield Chart("Image size", _sizes(found["sizes"]), sizes(found))


def calibration(found: Mapping[str, Any]) -> str:
    """Say whether the model is as sure as it is right, and where the two are furthest apart."""
    bins = [row for row in found["reliability"] if row["images"]]
    sure = sum(row["confidence"] * row["images"] for row in bins) / found["images"]
    low, high = found["top1_interval"]
    verdict = f"as sure as it is right, as far as {found['images']:,} answers can tell"
    if not low <= sure <= high:
        verdict = "surer than it should be" if sure > high else "more modest than it need be"
    worst = max(bins, key=lambda row: row["images"] * abs(row["confidence"] - row["accuracy"]))
    count, share = worst["images"], worst["accuracy"]
    given = f"given with {worst['low']:.0%} to {worst['high']:.0%} confidence"
    example = f"of the {count:,} answers {given}, {round(share * count):,} were right"
    if count == 1:
        example = f"the one answer {given} was {'right' if share else 'wrong'}"
    return (
        f"The model is {verdict}: it is {sure:.1%} sure on average, and {found['top1']:.1%} of "
        f"its answers are right. The largest part of the gap: {example}. Dots on the dashed line "
        "are as sure as they are right; lines through them are 95 % intervals; a bar is the share "
        "of all answers that are so sure."
    )


def temperature(found: Mapping[str, Any]) -> str:
    """Say what one number could mend."""
    best, after = found["temperature"], found.get("temperature_scaled")
    if not _SEARCHED[0] < best < _SEARCHED[1]:
        return (
            "These images cannot tell a best temperature: it lies at the edge of what was tried, "
            "0.05 to 20."
        )
    effect = "softens" if best > 1 else "sharpens"
    text = f"Dividing the scores by {best:.2f}, which {effect} every answer, fits these images best"
    if abs(best - 1) < 0.005:
        text = "The scores fit these images best as they are (temperature 1.00)"
    if after is None:
        return f"{text}."
    return (
        f"{text}. On images that it was not fitted on, scaling takes the calibration error from "
        f"{found['ece']:.2%} to {after['ece']:.2%} and the log loss from {found['nll']:.4f} to "
        f"{after['nll']:.4f}."
    )


def coverage(found: Mapping[str, Any]) -> str:
    """Say what it is worth to leave out the images of which the model is least sure."""
    point = next(row for row in found["coverage"] if round(20 * row["coverage"]) == _TENTH)
    if found["top1"] == 1:
        return "Every answer is right: there is nothing to gain by leaving out the least sure."
    if found["top1"] == 0:
        return "Every answer is wrong: there is nothing to gain by leaving out the least sure."
    kept = f"{point['accuracy']:.1%} of the others are right"
    if point["accuracy"] > found["top1"] + 1e-9:
        return (
            f"Leave out the tenth of the images it is least sure of, and {kept}, instead of "
            f"{found['top1']:.1%} of all. Those others have a confidence of "
            f"{point['confidence']:.1%} or more: what is below could go to a person."
        )
    return (
        f"To leave out the tenth of the images it is least sure of does not help: {kept}, and "
        f"{found['top1']:.1%} of all."
    )


def sizes(found: Mapping[str, Any]) -> str:
    """Say for which size of image the answers are worst, or that all have one size."""
    rows = found["sizes"]
    first, last = rows[0]["low"], rows[-1]["high"]
    if len(rows) == 1:
        span = f"of {first:,} pixels" if first == last else f"of {first:,} to {last:,} pixels"
        alike = "" if first == last else ", too alike to compare by size"
        return f"All images have a shorter side {span}{alike}."
    worst, best = (choose(rows, key=lambda row: row["top1"]) for choose in (min, max))
    if worst["top1"] == best["top1"]:
        return f"At every size of image {best['top1']:.1%} of the answers are right."
    low, high = worst["top1_interval"]
    apart = low > best["top1_interval"][1] or high < best["top1_interval"][0]
    return (
        f"Of the {worst['images']:,} images with a shorter side of {_span(worst)} pixels "
        f"{worst['top1']:.1%} are named right, of the {best['images']:,} of {_span(best)} pixels "
        f"{best['top1']:.1%}; "
        + ("luck alone does not explain that." if apart else "their intervals overlap.")
    )


def _reliability(bins: Sequence[Mapping[str, Any]], images: int) -> str:
    drawing = Drawing(axis(0, 1, text=in_percent), axis(0, 1, text=in_percent))
    for row in bins:  # with a gap between neighbours
        share = row["images"] / images
        drawing.bar(row["low"] + 0.004, row["high"] - 0.004, share, "rule")
    drawing.line((0, 1), (0, 1), "soft", width=1.2, dashes=(4, 3))
    for row in bins:
        span = wilson(row["accuracy"] * row["images"], row["images"])
        drawing.line([row["confidence"]] * 2, span, "val", width=1)
        drawing.dots([row["confidence"]], [row["accuracy"]], "val")
    rows = (f"{row['confidence']:.0%} sure, {row['accuracy']:.0%} right" for row in bins)
    return drawing.svg(f"Confidence and accuracy: {'; '.join(rows)}.", "confidence")


def _coverage(points: Sequence[Mapping[str, Any]]) -> str:
    x, y = ([row[key] for row in points] for key in ("coverage", "accuracy"))
    room = max((max(y) - min(y)) / 10, 0.02)  # what a few images decide is no slope
    shares = axis(max(min(y) - room, 0), min(max(y) + room, 1), text=in_percent)
    drawing = Drawing(axis(0, 1, text=in_percent), shares)
    drawing.line(x, y, "val")
    half = next(row for row in points if round(20 * row["coverage"]) == 10)
    alt = (
        f"Accuracy of the surest images: {half['accuracy']:.1%} of the surer half, "
        f"{points[-1]['accuracy']:.1%} of all."
    )
    return drawing.svg(alt, "share of the images that is answered")


def _sizes(rows: Sequence[Mapping[str, Any]]) -> str:
    spans = [Row(_span(row), row["top1"], row["top1_interval"]) for row in rows]
    alt = "; ".join(f"{row.share:.1%} at {row.name} pixels" for row in spans)
    alt = f"Accuracy by the image's shorter side: {alt}."
    return intervals.draw(alt, spans, "accuracy, by the shorter side in pixels")


def _span(row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    return f"{low}" if low == high else f"{low}–{high}"
