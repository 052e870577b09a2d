"""Fonts that have a text's letters: matplotlib's own, and where it lacks some, the system's."""

from collections.abc import Iterator
from typing import NamedTuple

_OWN = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, and many signs
_PLAIN = ("regular", "gothic", "book", "sans")  # in a file's name: better to read when small


class Fonts(NamedTuple):
    """Families to fall back on in this order, and the letters that none of them has."""

    families: list[str]
    lacking: frozenset[str]

    def spelt(self, text: str) -> str:
        """Give a text with escapes in place of the letters that cannot be drawn."""
        return "".join(
            c.encode("ascii", "backslashreplace").decode() if c in self.lacking else c for c in text
        )


def fonts_for(text: str) -> Fonts:
    """Find fonts for all letters of a text; the system's are opened only where they are needed."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    families = [_OWN]
    own = FT2Font(font_manager.findfont(_OWN))
    lacking = {c for c in text if not own.get_char_index(ord(c))}
    for file in _system_fonts() if lacking else ():
        try:
            font = FT2Font(file)
            found = {c for c in lacking if font.scalable and font.get_char_index(ord(c))}
            if found:
                # Matplotlib's list of fonts may be older than the font.
                font_manager.fontManager.addfont(file)
                families.append(font.family_name)
                lacking -= found
        except (OSError, RuntimeError, ValueError):  # a font that it cannot read
            continue
        if not lacking:
            break
    return Fonts(families, frozenset(lacking))


def _system_fonts() -> Iterator[str]:
    """Give the files of the system's fonts, those for running text first."""
    from matplotlib import font_manager

    def rank(file: str) -> tuple[int, str]:
        name = file.rpartition("/")[2].lower()
        return -sum(word in name for word in _PLAIN) + 2 * ("mono" in name), file

    yield from sorted(font_manager.findSystemFonts(), key=rank)
