"""The page at / in a browser, as a person uses it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser
from servers import Process, picture, serving

pytest.importorskip("fastapi")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed"),
]

SHOWN = "!document.getElementById('map').hidden"
# Of the map: its size, and how many colours it has.
MAP = """(() => {
  const map = document.getElementById("map");
  const { data } = map.getContext("2d").getImageData(0, 0, map.width, map.height);
  const colours = new Set();
  for (let i = 0; i < data.length; i += 4) colours.add(data.slice(i, i + 3).join());
  return [map.width, map.height, colours.size];
})()"""
PIXELS = """(() => {
  const map = document.getElementById("map");
  return map.getContext("2d").getImageData(0, 0, map.width, map.height).data.join();
})()"""


def text(selector: str) -> str:
    return f"document.querySelector('{selector}').textContent"


def click(selector: str) -> str:
    return f"document.querySelector('{selector}').click()"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with serving(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / name for name in ("a.png", "b <b>.png", "c.png")]
    for seed, file in enumerate(files):
        file.write_bytes(picture(seed))
    files[2].write_text("no image")
    return files


def faults(browser: Browser) -> list[str]:
    """Give what went wrong in the page: not what the server refused, nor the browser's advice."""
    return [
        line
        for line in browser.console
        if ('"error"' in line or '"exception"' in line) and "responded with a status" not in line
    ]


def test_photos_are_answered_and_explained(
    server: Process, photos: list[Path], tmp_path: Path
) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait("document.title === 'model · vitrail'")
        browser.choose("#files", photos)
        browser.wait("document.querySelectorAll('#photos .error').length === 1")
        browser.wait("document.querySelectorAll('#classes li').length === 5")
        browser.wait(f"!{text('#photos')}.includes('waiting')")
        assert browser.run(text("#name")) == "a.png"
        wide = browser.run("document.documentElement.scrollWidth")
        assert wide == 360

        browser.run(click("input[value=attention]"))
        browser.wait(SHOWN)
        assert browser.run(MAP)[:2] == [7, 5]
        assert browser.run(MAP)[2] > 5
        last = browser.run(PIXELS)
        browser.run("const layer = document.getElementById('layer'); layer.value = 0;"
                    "layer.dispatchEvent(new Event('input'))")  # fmt: skip
        browser.wait(f"{PIXELS} !== '{last}'")
        mean = browser.run(PIXELS)
        browser.run("const head = document.getElementById('head'); head.value = 3;"
                    "head.dispatchEvent(new Event('input'))")  # fmt: skip
        browser.wait(f"{PIXELS} !== '{mean}'")
        assert browser.run(text("#head-says")) == "3 of 6"

        browser.run(click("#classes li:nth-child(2) button"))
        browser.wait(f"{text('#says')}.startsWith('What speaks for')")
        second = browser.run(text("#classes li:nth-child(2) b"))
        assert second in browser.run(text("#says"))
        assert browser.run("document.getElementById('map').ariaLabel").startswith("What speaks")
        assert browser.run("document.activeElement.textContent").startswith(second)

        browser.run(click("#photos li:nth-child(3) button"))
        assert "no image that can be read" in browser.run(text("#trouble"))
        assert browser.run(text("#name")) == "c.png"
        assert faults(browser) == []


@pytest.mark.parametrize(("language", "word"), [("ko", "사진 고르기"), ("en", "Choose photos")])
def test_the_page_speaks_the_language_of_the_browser_and_the_chosen_one(
    server: Process, tmp_path: Path, language: str, word: str
) -> None:
    other = {"ko": "en", "en": "ko"}[language]
    with Browser(tmp_path / "profile", language=language) as browser:
        browser.open(server.url)
        browser.wait("document.title.includes('model')")

        assert browser.run(text(".drop label span")) == word
        assert browser.run("document.documentElement.lang") == language
        browser.run(click(f"[data-language={other}]"))
        assert browser.run("document.documentElement.lang") == other
        browser.open(server.url)
        browser.wait("document.title.includes('model')")
        assert browser.run("document.documentElement.lang") == other
        missing = browser.run(
            "[...document.querySelectorAll('[data-word]')].filter((x) => !x.textContent ||"
            " x.textContent === x.dataset.word).map((x) => x.dataset.word)"
        )
        assert missing == []


def test_a_photo_is_taken_with_the_camera(server: Process, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", 1200) as browser:
        browser.open(server.url)
        browser.wait("document.title.includes('model')")
        browser.run(click("#camera"))
        browser.wait("document.getElementById('video').videoWidth")
        browser.run(click("#shoot"))
        browser.wait("document.querySelectorAll('#classes li').length === 5")

        assert not browser.run("document.getElementById('lens').open")
        assert faults(browser) == []


def test_the_token_is_asked_for(photos: list[Path], tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--token", "s3cret") as server,
        Browser(tmp_path / "profile") as browser,
    ):
        browser.open(server.url)
        browser.wait("!document.getElementById('key').hidden")
        for token in ("wrong", "s3cret"):
            browser.run(f"document.getElementById('token').value = '{token}'")
            browser.run("document.getElementById('key').requestSubmit()")
            if token == "wrong":
                browser.wait(f"{text('#trouble')}.includes('not the right one')")
        browser.wait("document.title.includes('model')")
        browser.choose("#files", photos[:1])
        browser.wait("document.querySelectorAll('#classes li').length === 5")


def test_nothing_from_elsewhere_is_let_into_the_page(server: Process, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait("document.title.includes('model')")
        browser.run("document.body.insertAdjacentHTML('beforeend',"
                    " '<img src=\"http://x.invalid/a.png\">')")  # fmt: skip
        blocked = browser.run(
            "fetch('http://x.invalid/').then(() => 'fetched', (error) => String(error))"
        )

        assert "Failed to fetch" in blocked
        assert any("Content Security Policy" in line for line in browser.console)
