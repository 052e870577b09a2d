"""The pages in a browser: what they show is there, and nothing is fetched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from test_report import scored, write_eval
from test_reporting import NASTY, write_run
from vitrail.reporting.report import report

CHROMIUM = shutil.which("chromium")
# Run in a copy of a page whose policy was taken out: what a person would see and click.
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


def test_pages_load_whole_sort_and_fetch_nothing(tmp_path: Path) -> None:
    names = ["ant", NASTY, "cat"]
    run = write_run(tmp_path / "run", names)
    measured = write_eval(tmp_path / "e", scored([0, 0, 1, 2], [0, 1, 1, 2], names))
    both = report([run, measured], tmp_path / "both.html")

    for page in (report([run]), report([measured]), both):
        document, console = shown(page)
        assert console == ""
        assert document.rstrip().endswith("</html>")

        copy = tmp_path / "copy.html"
        bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
        copy.write_text(bare.replace("</body>", f"<script>{LOOK}</script></body>"))
        title = re.search(r"<title>(\[.*?\])</title>", shown(copy)[0])
        assert title is not None
        broken, images, wide, before, up, down = eval_json(title[1])
        assert (broken, wide) == (0, False)
        if page.name != "both.html":
            assert before != up or up != down
            assert sorted(up.split("|")) == sorted(down.split("|")) == sorted(before.split("|"))
        if page.parent == run:
            assert images == 1


def test_the_policy_stops_what_would_be_fetched(tmp_path: Path) -> None:
    page = report([write_run(tmp_path / "run", ["ant", "bee"])])
    text = page.read_text()
    page.write_text(text.replace("</main>", '<img src="http://x.invalid/a.png" alt="x"></main>'))

    _, console = shown(page)

    assert "Content Security Policy" in console


def eval_json(text: str) -> list:
    import html
    import json

    return json.loads(html.unescape(text))
