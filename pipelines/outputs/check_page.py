"""``check.html``: what a check found, with pictures; one file without links."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datamodules.checking.findings import KINDS, Finding, ranked
from datamodules.splits import common_folder
from pipelines.outputs import page
from pipelines.outputs.findings import counted
from pipelines.outputs.sheets import EMPTY, WRONG, Picture

Draw = Callable[[str], Picture]

SHOWN = 8  # findings of a kind with their pictures; all are in check.json
_SIDE = 240  # pixels of a picture on the page
_AROUND = 4.0  # a small box is shown with so many times its size
_LEAST = 48  # pixels of the original picture that are shown, at least
_STYLE = """h2{margin:1.6em 0 .2em}h2 b{font-weight:600;padding:0 .5em;border-radius:.3em;color:#fff}
.error b{background:#c81e1e}.warning b{background:#b46a00}.note b{background:#5a6a7a}
figure{white-space:nowrap}figcaption{white-space:normal}img{max-width:240px;margin-right:4px}"""


def write_page(path: Path, source: str, described: str, findings: Sequence[Finding], draw: Draw) -> None:
    """Write the page.

    Args:
        path: The file.
        source: What was checked.
        described: A line about it.
        findings: All; of each kind the first ``SHOWN`` are shown.
        draw: From an image's path to its picture uint8 (H, W, 3), with its mask where it has one; what it raises as
            ``ValueError`` or ``OSError`` becomes an empty tile.
    """
    top = common_folder(name for found in findings for name in (found.path, *found.others) if name) + os.sep
    groups = ranked(findings)
    parts = [f"<h1>{html.escape(source)}</h1>", f"<p>{html.escape(described)}<br>{counted(findings)}</p>"]
    if groups:
        rows = [_row(kind, len(found)) for kind, found in groups.items()]
        parts.append(page.table(["", "kind", "found", "meaning"], rows, texts=(0, 1, 3)))
    for kind, found in groups.items():
        parts += _section(kind, found, top, draw)
    page.write_page(path, "check", parts, _STYLE)


def _row(kind: str, number: int) -> list[str]:
    about = KINDS[kind]
    return [about.severity, f"<a href='#{kind}'>{kind}</a>", f"{number:,}", html.escape(about.meaning)]


def _section(kind: str, found: Sequence[Finding], top: str, draw: Draw) -> list[str]:
    about = KINDS[kind]
    more = f", the first {SHOWN} of {len(found):,}" if len(found) > SHOWN else ""
    head = f"<h2 class={about.severity} id='{kind}'><b>{about.severity}</b> {kind}</h2>"
    figures = [_figure(one, top, draw) for one in found[:SHOWN]]
    return [head, f"<small>{html.escape(about.meaning)}{more}</small>", page.gallery(figures, _SIDE)]


def _figure(found: Finding, top: str, draw: Draw) -> tuple[str, str]:
    """A finding: its picture, and up to three of the others."""
    others = found.others[: 3 if found.path else 6]
    pictures = [_shown(found.path, found.box, draw)] if found.path else []
    pictures += [_shown(path, None, draw) for path in others]
    where = f"{found.path.removeprefix(top)} ({found.split}): " if found.path else ""
    text = html.escape(f"{where}{found.message.replace(top, '')}").replace("\n", "<br>")
    return "".join(page.picture(one, photo=True) for one in pictures), text


def _shown(path: str, box: tuple[float, float, float, float] | None, draw: Draw) -> Image.Image:
    """A picture of readable size with a box in red; where the box is small the part around it."""
    try:
        picture = Image.fromarray(draw(path))
    except (OSError, ValueError):
        return Image.new("RGB", (_SIDE // 2, _SIDE // 2), EMPTY)
    left, top, right, bottom = _part(picture.size, box)
    cut = picture.crop((left, top, right, bottom))
    factor = _SIDE / max(cut.size)
    method = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
    shown = cut.resize([max(1, round(side * factor)) for side in cut.size], method)
    if box is not None:
        x1, x2 = sorted(((box[0] - left) * factor, (box[2] - left) * factor))
        y1, y2 = sorted(((box[1] - top) * factor, (box[3] - top) * factor))
        ImageDraw.Draw(shown).rectangle((x1 - 1, y1 - 1, x2, y2), outline=WRONG, width=2)
    return shown


def _part(size: tuple[int, int], box: tuple[float, float, float, float] | None) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is shown: all of the picture, or around a small box that lies in it."""
    width, height = size
    if box is None or not np.isfinite(box).all() or box[2] < 0 or box[3] < 0 or box[0] > width or box[1] > height:
        return 0, 0, width, height
    side = max(_AROUND * abs(box[2] - box[0]), _AROUND * abs(box[3] - box[1]), _LEAST)
    if side >= max(width, height):
        return 0, 0, width, height
    centers = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    starts = [
        max(0, min(round(center - side / 2), int(most - side))) for center, most in zip(centers, size, strict=True)
    ]
    left, top = starts
    return left, top, min(width, round(left + side)), min(height, round(top + side))
