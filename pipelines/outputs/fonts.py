"""Fonts of captions and figures: matplotlib's own, and for what it lacks (Chinese, Japanese, Korean) the machine's."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SIZE = 12  # of captions, in pixels
LATIN = 0x24F  # up to here DejaVu has all, and no other font need be opened
#: Words in the names of fonts with many scripts, which are looked at first.
BROAD = ("cjk", "noto", "unifont", "droid", "wqy", "gothic", "hei", "song", "ming", "nanum", "arialuni")

_missing: set[str] = set()  # characters that were warned of


def font_for(text: str) -> Font:
    """The font of a caption, ``SIZE`` pixels high: the first one that has all of its characters."""
    path = _path_for("".join(sorted(_foreign(text))))
    return _load(path or _dejavu())


def families_for(text: str) -> list[str]:
    """The names of matplotlib's fonts for a text that its own font lacks characters of; none where that suffices."""
    path = _path_for("".join(sorted(_foreign(text))))
    if path is None:
        return []
    from matplotlib import font_manager

    font_manager.fontManager.addfont(path)
    return ["DejaVu Sans", font_manager.FontProperties(fname=path).get_name()]  # type: ignore[arg-type]


def _foreign(text: str) -> set[str]:
    return {char for char in text if ord(char) > LATIN and not char.isspace()}


@functools.cache
def _path_for(chars: str) -> str | None:
    """A file with these characters, or else with most of them; None where matplotlib's own has as many."""
    wanted = set(chars)
    own = _dejavu()
    lacking = wanted - _characters(own) if wanted and own else set()
    if not lacking:
        return None
    best, left = None, lacking
    for path in system_fonts():
        still = lacking - _characters(path)
        if len(still) < len(left):
            best, left = path, still
        if not left:
            break
    _warn(left)
    return best


def has_font(text: str) -> bool:
    """Whether one font, matplotlib's or the machine's, has all characters of a text."""
    own = _dejavu()
    return any(set(text) <= _characters(path) for path in [*([own] if own else []), *system_fonts()])


def system_fonts() -> list[str]:
    """The machine's font files, those of many scripts first."""
    from matplotlib import font_manager

    def rank(path: str) -> tuple[bool, str]:
        return not any(word in Path(path).name.lower() for word in BROAD), path

    return sorted(font_manager.findSystemFonts(), key=rank)


@functools.cache
def _characters(path: str) -> set[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return {chr(code) for code in FT2Font(path).get_charmap()}
    except (OSError, RuntimeError):  # no font that FreeType reads
        return set()


def _warn(chars: set[str]) -> None:
    """Say once which characters no font of the machine has."""
    new = sorted(chars - _missing)
    if not new:
        return
    _missing.update(new)
    shown = "".join(new[:8]) + ("..." if len(new) > 8 else "")
    print(
        f"warning: no font of this machine has {shown}: pictures show boxes in their place. Install one, for example"
        " the package fonts-noto-cjk, or put its file into ~/.fonts.",
        file=sys.stderr,
        flush=True,
    )


@functools.cache
def _dejavu() -> str | None:
    # PIL's own font has ASCII only. Matplotlib's has Latin, Greek and Cyrillic; looked up without importing it.
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return str(path)
    return None


@functools.cache
def _load(path: str | None) -> Font:
    return ImageFont.load_default(SIZE) if path is None else ImageFont.truetype(path, SIZE)
