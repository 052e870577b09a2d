"""The documents are true: their code runs and prints what they show, their links lead on."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = [
    pytest.param(ROOT / "README.md", marks=pytest.mark.slow),  # trains on the digits
    ROOT / "docs/learn.md",
    ROOT / "docs/explain.md",
    pytest.param(ROOT / "docs/ko/learn.md", marks=pytest.mark.slow),  # the same blocks again
]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    line: int
    code: str
    shown: str  # by the ```text block right after it; a block without one prints nothing


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, m.start()) + 2, m[1], m[2] or "") for m in PYTHON.finditer(text)
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_the_blocks_of_a_page_run_in_order_and_print_what_it_shows(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}

    with torch.random.fork_rng(devices=[]):
        for block in blocks(page):
            # Empty lines, so that a traceback names the line of the page.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            exec(code, namespace)

            assert capsys.readouterr().out == block.shown, f"{name(page)}, line {block.line}"


def test_the_lesson_is_the_same_in_both_languages() -> None:
    english, korean = (
        FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
        for page in ("docs/learn.md", "docs/ko/learn.md")
    )

    assert [body for kind, body in korean if kind != "sh"] == [
        body for kind, body in english if kind != "sh"
    ]
    assert [kind for kind, _ in korean] == [kind for kind, _ in english]
    assert len(english) > 20


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_and_picture_of_a_page_exists(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target for target in LINK.findall(prose) if "://" not in target]

    missing = [
        target
        for target in targets
        if not target.startswith("#") and not (page.parent / target.split("#")[0]).exists()
    ]

    assert not missing
