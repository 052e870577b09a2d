"""How far our numbers are from other libraries', and what comes back of their files.

    python benchmarks/parity.py [--write docs/parity.md]

For each form of file that the tests know, a small model of the other library, every weight random,
is written and read by `vitrail.load`: the numbers are the largest difference of logits and tokens
as a share of their largest number, 0 for equal bits, and the way back compares each tensor of the
image encoder with that of an export. `python benchmarks/parity.py` repeats it where vitrail is
installed with its `dev` extra.
"""

import argparse
import logging
import platform
import sys
import tempfile
import warnings
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vitrail.weights.dialects.table import DIALECTS
from vitrail.weights.peer_models import LIBRARIES, load_package

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
oracles = import_module("oracles")
cases = import_module("test_dialects")
round_trips = import_module("test_round_trips")

COLUMNS = ("float32", "float64", "other sizes, float32", "other sizes, float64", "way back")
SINGLE, DOUBLE, OTHER, OTHER_DOUBLE, BACK = COLUMNS
EXACT, FOLDED, NOTHING = "bit for bit", "one unit in the last place", "–"

# Why a case has nothing in a column, or another word or a larger number than is asked of it: the
# first that fits. A case without any other size is looked up under `OTHER` alone.
WHY: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (DOUBLE, OTHER_DOUBLE),
        "clip: *",
        "the file holds float16, and the model that it makes is of float32",
    ),
    ((DOUBLE,), "google: *", "the file holds bfloat16, and the model that it makes is of float32"),
    (
        (DOUBLE, OTHER_DOUBLE),
        "huggingface: DINOv3*",
        "transformers computes the angles of the rotations in float32 in part, and rounds them "
        "otherwise than DINOv3's code, whose rotations are ours",
    ),
    (
        (DOUBLE,),
        "vit-pytorch: SimpleViT",
        "vit-pytorch computes the positions in float32 for a float64 model too, and rounds them "
        "otherwise",
    ),
    ((OTHER_DOUBLE,), "timm: *", "timm resizes the positions in float32 for a float64 model too"),
    (
        (OTHER_DOUBLE,),
        "huggingface: DINOv2*",
        "transformers resizes DINOv2's positions in float32 for a float64 model too",
    ),
    (
        (OTHER,),
        "*: DINOv3*",
        "rotations, and no positions to resize; transformers' DINOv3 is asked at other sizes",
    ),
    ((OTHER,), "timm: *", "built for one size; the rule is that of the rows above"),
    ((OTHER,), "clip: timm tower*", "open_clip's model of a tower of timm's, built for one size"),
    ((OTHER,), "clip: *", "open_clip resizes square tables of positions alone; this one is oblong"),
    ((OTHER,), "huggingface: MAE with decoder", "the row above asks its encoder at other sizes"),
    (
        (OTHER,),
        "huggingface: *",
        "transformers resizes square tables of positions alone; this one is oblong",
    ),
    (
        (OTHER,),
        "google: *",
        "vit_jax and big_vision resize square tables of positions alone; this one is oblong",
    ),
    ((OTHER,), "vit-pytorch: *", "vit-pytorch resizes no positions"),
    ((OTHER,), "blog: *", "the post's model resizes no positions"),
    ((BACK,), "timm: CLIP", "no file of timm can say the eps of this model: the export is refused"),
    ((BACK,), "clip: TorchScript archive", "an export is a state dict, and no archive of code"),
    ((BACK,), "clip: timm tower*", "an export has timm's names, without open_clip's around them"),
    ((BACK,), "vit-pytorch: SimpleViT", "an export is always vit-pytorch's `ViT`"),
    ((BACK,), "blog: *", "the scale of the post's attention is folded into q and v, and out again"),
)


class Measured(NamedTuple):
    """What one model of another library, in one precision, says of ours."""

    dialect: str
    native: float | None
    others: float | None
    back: str


class Cell(NamedTuple):
    """A word or number of the table, and why it is not as the others are."""

    text: str
    why: str = ""


def measure(name: str, dtype: torch.dtype) -> Measured:
    """Build the oracle, load its file and compare."""
    torch.manual_seed(0)
    oracle = cases.ORACLES[name](dtype)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        source.mkdir()
        origin = oracle.write(source)
        model = cases.vitrail.load(origin, **oracle.given).model
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        native = furthest(model, oracle, oracle.size)
        others = [furthest(model, oracle, size) for size in oracle.others]
        there = largest(others) if others else None
        back = way_back(oracle, origin, Path(temporary)) if comes_back(name, oracle) else NOTHING
    return Measured(oracle.dialect, native, there, back)


@torch.no_grad()
def furthest(model: Any, oracle: Any, size: tuple[int, int]) -> float:
    """Give the larger of the differences of logits and of tokens."""
    images = oracle.images(size, next(model.parameters()).dtype)
    pairs = zip(oracles.ours(model, images), oracle.answer(images), strict=True)
    return largest([oracles.difference(our, their) for our, their in pairs])


def largest(numbers: list[float]) -> float:
    return float(np.max(numbers))  # unlike Python's own, not a number where one of them is not


def comes_back(name: str, oracle: Any) -> bool:
    return oracle.bare is not None and name not in round_trips.NOT_BACK


def way_back(oracle: Any, origin: Path, folder: Path) -> str:
    """Export what was imported, and give how near its tensors are to those of the file."""
    target = round_trips.export(origin, folder, oracle.dialect, **oracle.given)
    source, back = (oracle.bare(oracles.read(path)) for path in (origin, target))
    try:
        round_trips.assert_same_tensors(back, source)
        return EXACT
    except AssertionError:
        round_trips.assert_same_tensors(back, source, round_trips.FOLDED)
        return FOLDED


def why(name: str, column: str) -> str:
    """Give the reason of a cell that is not as the others are; each has one, or the script ends."""
    for columns, pattern, reason in WHY:
        if column in columns and fnmatchcase(name, pattern):
            return reason
    raise SystemExit(f"{name} is not as others are in the column {column}: WHY should say why")


def row(name: str) -> tuple[str, list[Cell]]:
    """Give the dialect of a case and its cells."""
    single = measure(name, torch.float32)
    double = Measured(single.dialect, None, None, single.back)
    if name not in cases.HALF:
        double = measure(name, torch.float64)
    resized = OTHER if single.others is None else OTHER_DOUBLE
    back = single.back if single.back == double.back else FOLDED

    def number(far: float | None, dtype: torch.dtype, column: str) -> Cell:
        text = NOTHING if far is None else f"{far:.1e}" if far else "0"
        if far is not None and not far <= oracles.TOLERANCES[torch.float32]:
            raise SystemExit(f"{name} is {far:.1e} away in the column {column}")
        usual = far is not None and far <= oracles.TOLERANCES[dtype]
        return Cell(text, "" if usual else why(name, column))

    return single.dialect, [
        number(single.native, torch.float32, SINGLE),
        number(double.native, torch.float64, DOUBLE),
        number(single.others, torch.float32, OTHER),
        number(double.others, torch.float64, resized),
        Cell(back, "" if back == EXACT else why(name, BACK)),
    ]


def section(dialect: str, rows: dict[str, list[Cell]]) -> list[str]:
    """Give one dialect's cases as a Markdown table, its reasons below it."""
    reasons: dict[str, str] = {}  # -> the letter that stands for it
    lines = []
    for name, cells in rows.items():
        family, case = name.split(": ", 1)
        texts = [case if dialect.startswith(family) else name]
        for text, reason in cells:
            if reason:
                letter = reasons.setdefault(reason, chr(ord("a") + len(reasons)))
                text = f"{text} ({letter})"
            texts.append(text)
        lines.append(f"| {' | '.join(texts)} |")
    library = LIBRARIES.get(dialect)
    against = "the post's code, as `tests/oracle_blog.py` has it"
    if library:
        against = f"{library.distribution} {version(library.distribution)}"
    return [
        f"## {dialect}",
        "",
        f"Held against {against}.",
        "",
        f"| files of | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
        *lines,
        "",
        *(f"- ({letter}) {reason}" for reason, letter in reasons.items()),
        *([""] if reasons else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # what an import leaves aside is the tests' affair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_package("timm")
        import transformers
    transformers.logging.disable_progress_bar()
    table: dict[str, dict[str, list[Cell]]] = {dialect.name: {} for dialect in DIALECTS}
    for name in cases.ORACLES:
        dialect, cells = row(name)
        table[dialect][name] = cells
    single, double = oracles.TOLERANCES.values()
    own = " and ".join(f"{name} {version(name)}" for name in ("torch", "vitrail"))
    about = (__doc__ or "").split("\n\n", 2)
    lines = [
        "# Parity",
        "",
        about[2].strip(),
        "",
        f"The tests ask for at most {single:.0e} in float32 and {double:.0e} in float64;",
        "a letter says why more is shown, or nothing.",
        "",
        *(line for name in sorted(table) for line in section(name, table[name])),
        f"Measured on {platform.machine()} with {own}.",
    ]
    print("\n".join(lines))
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
