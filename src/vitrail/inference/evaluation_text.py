"""An evaluation as a page of text."""

from collections.abc import Sequence

from vitrail.data.listing import one_line
from vitrail.inference.comparing import Comparison
from vitrail.inference.corruptions import SEVERITIES, Corrupted
from vitrail.inference.details import Details
from vitrail.inference.evaluate import ClassResult, Evaluation
from vitrail.model.page import aligned

_CLASSES = 30  # so many are shown in a table; of more, the worst
_WORST = 10  # lines of a list of what went wrong


def evaluation_text(found: Evaluation) -> str:
    """Give an evaluation as a page of text."""
    low, high = found.top1_interval
    lines = [
        f"top-1        {found.top1:7.2%}   95 % interval {low:.2%} to {high:.2%}",
        f"top-5        {found.top5:7.2%}",
        f"images       {found.images:7,}   {round(found.images * (1 - found.top1))} wrong"
        + (f", {found.failed} could not be read" if found.failed else ""),
        f"nll          {found.nll:7.4f}   Brier {found.brier:.4f}",
        f"calibration  {found.ece:7.4f}   expected error; best temperature {found.temperature:.2f}",
    ]
    details = found.details
    if details and (scaled := details.temperature_scaled):
        lines.append(
            f"  scaled     {scaled.ece:7.4f}   nll {scaled.nll:.4f}, by temperatures "
            f"{scaled.temperatures[0]:.2f} and {scaled.temperatures[1]:.2f}, each fitted on the "
            "other half"
        )
    lines += ["", *_classes(found.per_class)]
    if details:
        lines += _details(details)
    return "\n".join(lines)


def comparison_text(found: Comparison, against: str) -> str:
    """Say whether one model is better than another, and how sure that is."""
    low, high = found.difference_interval
    return "\n".join(
        [
            f"against {against}, on the {found.images:,} images that both can read:",
            f"top-1        {found.top1:.2%} and {found.top1_against:.2%}, a difference of "
            f"{found.difference:+.2%} (95 % interval {low:+.2%} to {high:+.2%})",
            f"one right    {found.only_this_right} only this model, {found.only_other_right} only "
            f"the other; McNemar's exact p = {found.p_value:.3g}",
        ]
    )


def corruptions_text(found: Sequence[Corrupted], clean: float) -> str:
    """Give accuracies by kind and severity as a table."""
    rows: list[tuple[str, ...]] = [("top-1, corrupted", "clean", *map(str, SEVERITIES), "mean")]
    for kind in dict.fromkeys(row.kind for row in found):
        top1 = [row.top1 for row in found if row.kind == kind]
        shares = (f"{share:.1%}" for share in (clean, *top1, sum(top1) / len(top1)))
        rows.append((kind, *shares))
    return "\n".join(aligned(rows))


def _classes(results: Sequence[ClassResult]) -> list[str]:
    shown = [c for c in results if c.count]
    if many := len(results) > _CLASSES:
        shown = sorted(shown, key=lambda c: c.f1)[:_WORST]
    rows: list[tuple[str, ...]] = [("class", "images", "precision", "recall", "f1")]
    for c in shown if many else results:
        rates = (f"{rate:.1%}" for rate in (c.precision, c.recall, c.f1))
        rows.append((one_line(c.label), f"{c.count:,}", *rates))
    note = f"the {len(shown)} worst of {len(results):,} classes; --json has all"
    return [*aligned(rows), *[note] * many]


def _details(found: Details) -> list[str]:
    lines = []
    if found.confused:
        lines += ["", "taken for another:"]
        lines += [
            f"  {pair.images:4}  {one_line(pair.label)} for {one_line(pair.answered)}"
            for pair in found.confused[:_WORST]
        ]
    rows = [("surest", "top-1", "confidence from")]
    for point in found.coverage:
        if round(point.coverage * 20) in (10, 16, 18, 19, 20):
            share = f"{point.coverage:.0%} of images"
            rows.append((share, f"{point.accuracy:.1%}", f"{point.confidence:.1%}"))
    lines += ["", *aligned(rows), f"area under risk and coverage: {found.aurc:.4f}"]
    if len(found.sizes) > 1:
        sizes = [("shorter side", "images", "top-1")]
        for size in found.sizes:
            sizes.append((f"{size.low} to {size.high} px", f"{size.images:,}", f"{size.top1:.1%}"))
        lines += ["", *aligned(sizes)]
    if found.likely_errors:
        lines += ["", f"labels in doubt: {len(found.likely_errors):,}, the worst first"]
        lines += [
            f"  {one_line(row.path)}: {one_line(row.label)} ({row.of_label:.1%}), looks like "
            f"{one_line(row.answered)} ({row.probability:.1%})"
            for row in found.likely_errors[:_WORST]
        ]
    return lines
