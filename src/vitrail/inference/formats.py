"""What a training run says at its end, as text for people."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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
