"""Writes the table of dialects in README.md from the code: `python docs/dialects.py`.

With `--check` nothing is written, and the exit code is 1 where the table is out of date.
"""

import argparse
import re
import sys
from pathlib import Path

from vitrail.weights.dialect import Dialect
from vitrail.weights.dialects.table import DIALECTS
from vitrail.weights.peer_models import LIBRARIES

README = Path(__file__).parent.parent / "README.md"
BETWEEN = re.compile(r"(?<=^<!-- dialects -->\n).*?(?=^<!-- /dialects -->$)", re.M | re.S)
COLUMNS = ("dialect", "files of", "written as", "compared with", "home: eps, activation")


def table() -> str:
    """Give a row for each name, in the order of the alphabet."""
    names = sorted({dialect.name for dialect in DIALECTS})
    rows = [row(name, [d for d in DIALECTS if d.name == name]) for name in names]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def row(name: str, variants: list[Dialect]) -> tuple[str, ...]:
    # What is tried last is the most common.
    whose = [f"{d.variant}{' (only where named)' * d.asked_for}" for d in reversed(variants)]
    homes = [f"{d.home['norm_eps']:g} {d.home['activation']}" for d in reversed(variants)]
    forms = {dialect.writes for dialect in variants}
    form = "folder" if "folder" in forms else " or ".join(f"`{ending}`" for ending in sorted(forms))
    library = LIBRARIES[name].distribution if name in LIBRARIES else "–"
    files = "; ".join(whose).replace("Hugging Face's ", "")
    return f"`{name}`", files, form, library, ", ".join(dict.fromkeys(homes))


def renewed(page: str) -> str:
    """Give the page with today's table between the two comments."""
    page, places = BETWEEN.subn(lambda match: table(), page)
    assert places == 1, f"README.md has {places} places for the table, not 1"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = README.read_text(encoding="utf-8")
    new = renewed(page)
    if check and new != page:
        sys.exit("the table of dialects in README.md is out of date: run python docs/dialects.py")
    if not check:
        README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
