"""What `bench` has found, as a table, and what to do about it."""

import shlex
from collections.abc import Sequence

from vitrail.inference.bench import Row

_ALIKE = 0.995  # as of engine auto
_AS_FAST = 0.95  # of the fastest: of such rows the one that takes the least memory is better


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out for a person."""
    lines = ["engine    dtype     batch   images/s  of peak  memory, MiB  agreement"]
    for row in rows:
        name = f"{row.setting.engine:8}  {row.setting.dtype:8}  {row.setting.batch:5}"
        if row.error is not None:
            lines.append(f"{name}   {(row.error.splitlines() or ['failed'])[0]}")
        elif row.images_per_second is None:
            lines.append(f"{name}   not measured yet")
        else:
            figures = (
                f"{_rate(row.images_per_second):>9}",
                f"{_or_dash(row.share_of_peak, '.0%'):>7}",
                f"{_or_dash(row.memory_mib, ',.0f'):>11}",
                f"{_or_dash(row.agreement, '.1%'):>9}",
            )
            lines.append(f"{name}  {'  '.join(figures)}")
    return "\n".join(lines)


def advice(rows: Sequence[Row], images: int, are_real: bool, command: str) -> str:
    """Say in one sentence what to take; nothing is proven by noise but what is exact anyway.

    `command` is the beginning of it: `vitrail predict MODEL`.
    """
    speeds = {row: row.images_per_second for row in rows if row.images_per_second is not None}
    alike = [row for row in speeds if row.agreement is not None and row.agreement >= _ALIKE]
    sure = [row for row in alike if are_real or row.setting.dtype == "float32"]
    if not sure:
        return "No setting was measured that is known to answer as torch does in float32."
    least = _AS_FAST * max(speeds[row] for row in sure)
    best = min((row for row in sure if speeds[row] >= least), key=lambda row: row.memory_mib or 0)
    engine, dtype, batch = best.setting
    said = f"--engine {engine} --dtype {dtype} --batch-size {batch}"
    text = f"Take `{command} {said}`: {_rate(speeds[best])} images/s"
    plain = [speeds[row] for row in speeds if row.setting[:2] == ("torch", "float32")]
    if plain and best.setting[:2] != ("torch", "float32"):
        text += f", {speeds[best] / max(plain):.1f} times as fast as torch in float32"
    if are_real:
        return f"{text}; it answers {best.agreement:.1%} of {images} images as that does."
    faster = max(speeds, key=lambda row: speeds[row])
    if speeds[faster] * _AS_FAST > speeds[best]:
        text += (
            f"; {faster.setting.engine} in {faster.setting.dtype} is "
            f"{speeds[faster] / speeds[best]:.1f} times as fast as that, and --data DATA tells "
            "whether it answers real images alike"
        )
    return text + "."


def beginning(model: str, device: str, threads: int | None) -> str:
    """Give the beginning of a command that answers as was measured."""
    before = "" if threads is None else f"OMP_NUM_THREADS={threads} "
    after = "" if device == "auto" else f" --device {device}"
    return f"{before}vitrail predict {shlex.quote(model)} IMAGES{after}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
