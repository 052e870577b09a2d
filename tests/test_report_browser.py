"""The pages in a browser: what they show is there, and nothing is fetched."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from test_report import scored, write_eval
from test_reporting import NASTY, write_run
from vitrail.reporting.report import report

CHROMIUM = shutil.which("chromium")
# What a person would see and click.
LOOK = """
const broken = [...document.images].filter((image) => !image.naturalWidth).length;
const wide = document.documentElement.scrollWidth > innerWidth;
const table = [...document.querySelectorAll("table.sorts")].at(-1);
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join("|");
const before = names();
const button = table.tHead.querySelectorAll("button")[4];
button.click();
const up = names();
button.click();
document.title = JSON.stringify([broken, document.images.length, wide, before, up, names()]);
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed"),
]


def shown(page: Path, width: int = 360) -> tuple[str, str]:
    """Open a page; give its document, and what the browser's console was told."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    flags += ["--disable-background-networking", f"--window-size={width},900"]
    flags += [f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    flags += ["--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, check=True)
    return done.stdout, "\n".join(re.findall(r".*CONSOLE.*", done.stderr))


def looked(page: Path, script: str, width: int = 360) -> list:
    """Give what a script leaves as JSON in the title of a page, a copy without its policy."""
    copy = page.parent / "copy.html"
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy.write_text(bare.replace("</body>", f"<script>{script}</script></body>"))
    title = re.search(r"<title>(\[.*?\])</title>", shown(copy, width)[0])
    assert title is not None
    return json.loads(html.unescape(title[1]))


def test_pages_load_whole_sort_and_fetch_nothing(tmp_path: Path) -> None:
    names = ["ant", NASTY, "cat"]
    run = write_run(tmp_path / "run", names)
    measured = write_eval(tmp_path / "e", scored([0, 0, 1, 2], [0, 1, 1, 2], names))
    both = report([run, measured], tmp_path / "both.html")

    for page in (report([run]), report([measured]), both):
        document, console = shown(page)
        assert console == ""
        assert document.rstrip().endswith("</html>")

        broken, images, wide, before, up, down = looked(page, LOOK)
        assert (broken, wide) == (0, False)
        if page.name != "both.html":
            assert before != up or up != down
            assert sorted(up.split("|")) == sorted(down.split("|")) == sorted(before.split("|"))
        if page.parent == run:
            assert images == 1


def test_letters_are_as_large_in_every_chart(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat"]
    run = write_run(tmp_path / "run", names)
    measured = write_eval(tmp_path / "e", scored([0, 0, 1, 2], [0, 1, 1, 2], names))
    page = report([run, measured], tmp_path / "both.html")
    script = (
        'const words = [...document.querySelectorAll("figure svg text")];'
        "const tall = words.map((word) => word.getBoundingClientRect().height.toFixed(1));"
        "document.title = JSON.stringify([words.length, [...new Set(tall)].length]);"
    )

    title = looked(page, script, width=1200)

    assert title[0] > 30
    assert title[1] == 1


def test_the_policy_stops_what_would_be_fetched(tmp_path: Path) -> None:
    page = report([write_run(tmp_path / "run", ["ant", "bee"])])
    text = page.read_text()
    page.write_text(text.replace("</main>", '<img src="http://x.invalid/a.png" alt="x"></main>'))

    _, console = shown(page)

    assert "Content Security Policy" in console
