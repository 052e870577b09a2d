"""Answers as text: tables for people, CSV and JSON lines for programs."""

import csv
import io
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitrail.data.listing import one_line
from vitrail.inference.evaluate import Evaluation
from vitrail.inference.predict import Prediction
from vitrail.model.page import aligned
from vitrail.weights.disk import write_bytes


def write_predictions(answers: Iterable[Prediction], how: str, output: str | None) -> int:
    """Write answers as `table`, `csv`, `jsonl` or `json`, to a file or standard output.

    Gives the number of images that could not be answered for.
    """
    failed = 0

    def counted() -> Iterator[Prediction]:
        nonlocal failed
        for answer in answers:
            failed += answer.error is not None
            yield answer

    lines = {"table": _table, "csv": _csv, "jsonl": _jsonl, "json": _one_json}[how](counted())
    # A name that is not UTF-8 is shown by its escapes, which in JSON read back as the same name.
    lines = (line.encode("utf-8", "backslashreplace").decode() for line in lines)
    if output is None:
        for line in lines:
            print(line, flush=True)
    else:
        write_bytes(Path(output), "".join(f"{line}\n" for line in lines).encode())
    return failed


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
        "",
        *_class_lines(found),
    ]
    if pairs := _confused(found):
        lines += ["", "taken for another:", *pairs]
    return "\n".join(lines)


def run_text(folder: Path, summary: Mapping[str, Any]) -> str:
    """Say how a run ended, and what can be done with it; the last line is its folder."""
    rows = list(_run_rows(summary))
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(
        [
            *(f"{name:<{width}}  {figure:>10}   {note}".rstrip() for name, figure, note in rows),
            "",
            f"report: {folder / 'report.html'}",
            f"try it: vitrail predict {shlex.quote(str(folder))} "
            f"{shlex.quote(str(folder / 'examples'))}/*",
            str(folder),
        ]
    )


def _run_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Give the lines of a run that has ended: a name, a figure, and what else belongs to it."""
    found = summary["evaluation"]
    low, high = found["top1_interval"]
    wrong = round((1 - summary["top1"]) * found["images"])
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    yield "top-1", f"{summary['top1']:.2%}", f"{interval}; {wrong:,} of {found['images']:,} wrong"
    if len(found["per_class"]) > 5:
        yield "top-5", f"{summary['top5']:.2%}", ""
    yield "loss", f"{summary['loss']:.4f}", ""
    if summary["best_top1"] is not None:
        step = summary.get("best_step")  # a run of before has none of these
        yield "best top-1", f"{summary['best_top1']:.2%}", f"at step {step:,}" if step else ""
    yield "parameters", f"{summary['parameters']:,}", ""
    yield "steps", f"{summary['step']:,}", ""
    yield "seconds", f"{summary['seconds']:,.0f}", f"{summary['cpu_seconds']:,.0f} CPU-seconds"
    rate, share = summary.get("images_per_second"), summary.get("peak_share")
    if rate is not None:
        peak = "" if share is None else f"{share:.0%} of what this device multiplies at most"
        yield "images/s", f"{rate:,.0f}", peak
    if summary.get("skipped_steps"):
        yield "skipped", f"{summary['skipped_steps']:,}", "steps that were not finite"
    if summary["bad"]:
        yield "bad files", f"{len(summary['bad']):,}", "left out; the report lists them"


def trial_text(found: Mapping[str, Any]) -> str:
    """Say what a whole run is going to take, by a few steps of it."""
    parts = f", {found['micro_batch']:,} images at a time" if found["micro_batch"] else ""
    minutes = found["seconds"] / 60
    return "\n".join(
        [
            f"a step takes {found['step_seconds']:.3g} s{parts}",
            f"an evaluation takes {found['evaluation_seconds']:.3g} s",
            f"memory: {found['peak_bytes'] / 2**20:,.0f} MiB at most",
            f"{found['steps']:,} steps and {found['evaluations']:,} evaluations: "
            f"about {minutes:,.1f} minutes",
        ]
    )


def _table(answers: Iterable[Prediction]) -> Iterator[str]:
    rows = list(answers)
    width = max((len(one_line(row.path)) for row in rows), default=0)
    for row in rows:
        best = "  ".join(f"{a.label} {a.probability:.1%}" for a in row.top)
        found = best if row.error is None else f"error: {row.error}"
        yield f"{one_line(row.path):<{width}}  {one_line(found)}"


def _csv(answers: Iterable[Prediction]) -> Iterator[str]:
    yield "path,label,probability,labels,probabilities,error"
    for row in answers:
        line = io.StringIO()
        first = row.top[0] if row.top else None
        csv.writer(line, lineterminator="\r\n").writerow(  # fields with either are quoted
            [
                row.path,
                first.label if first else "",
                first.probability if first else "",
                ";".join(answer.label for answer in row.top),
                ";".join(str(answer.probability) for answer in row.top),
                row.error or "",
            ]
        )
        yield line.getvalue().removesuffix("\r\n")


def _jsonl(answers: Iterable[Prediction]) -> Iterator[str]:
    for row in answers:
        yield json.dumps(row.to_json(), ensure_ascii=False)


def _one_json(answers: Iterable[Prediction]) -> Iterator[str]:
    yield json.dumps([row.to_json() for row in answers], indent=2, ensure_ascii=False)


def _class_lines(found: Evaluation) -> list[str]:
    rows: list[tuple[str, ...]] = [("class", "images", "precision", "recall", "f1")]
    for c in found.per_class:
        rates = (f"{rate:.1%}" for rate in (c.precision, c.recall, c.f1))
        rows.append((c.label, f"{c.count:,}", *rates))
    return aligned(rows)


def _confused(found: Evaluation, most: int = 10) -> list[str]:
    names = [c.label for c in found.per_class]
    pairs = [
        (count, names[true], names[answer])
        for true, row in enumerate(found.confusion)
        for answer, count in enumerate(row)
        if true != answer and count
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [f"  {count:4}  {true} for {answer}" for count, true, answer in pairs[:most]]
