"""What a training run says at its end, as text for people."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_text(folder: Path, summary: Mapping[str, Any]) -> str:
    """Say how a run ended, and what can be done with it; the last line is its folder."""
    low, high = summary["evaluation"]["top1_interval"]
    return "\n".join(
        [
            f"top-1 {summary['top1']:.2%} of {summary['held_out_images']:,} held-out images "
            f"(95 % interval {low:.1%} to {high:.1%}), "
            f"{round((1 - summary['top1']) * summary['evaluation']['images'])} wrong",
            f"{summary['parameters']:,} parameters, {summary['step']:,} steps, "
            f"{summary['seconds']:.0f} s, {summary['cpu_seconds']:.0f} CPU-seconds of training",
            f"try it: vitrail predict {shlex.quote(str(folder))} "
            f"{shlex.quote(str(folder / 'examples'))}/*",
            str(folder),
        ]
    )


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
