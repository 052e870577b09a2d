"""The README's table of dialects is the code's."""

import runpy
from pathlib import Path

from vitrail.weights.dialects.table import DIALECTS

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "docs/dialects.py"))


def test_the_table_in_the_readme_is_up_to_date() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")

    assert SCRIPT["renewed"](page) == page, "run python docs/dialects.py"


def test_each_dialect_has_one_row_and_each_variant_is_named_in_it() -> None:
    _, _, *rows = SCRIPT["table"]().splitlines()

    assert len(rows) == len({dialect.name for dialect in DIALECTS})
    for dialect in DIALECTS:
        [row] = [row for row in rows if row.startswith(f"| `{dialect.name}` |")]
        assert dialect.variant.removeprefix("Hugging Face's ") in row
        assert f"{dialect.home['norm_eps']:g} {dialect.home['activation']}" in row
