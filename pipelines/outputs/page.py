"""Parts of a page for people: one HTML file without links, its pictures inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.common.files import write_text

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
h2{margin:1.8em 0 .3em}h3{margin:1.2em 0 .2em;font-size:1em}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}
td.t,th.t{text-align:left}td:not(.t){white-space:nowrap}
td.c{min-width:2.2em;text-align:center;padding:.2em .3em;border:1px solid #eee}
img{max-width:100%;vertical-align:top}svg{vertical-align:top;margin-right:1em}small{color:#666}
pre{background:#f6f6f6;padding:.8em;overflow-x:auto;font-size:13px}
.p{display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start}
figure{margin:.6em 0;width:min-content;min-width:var(--w,240px)}
figcaption{font-size:13px;color:#444;overflow-wrap:anywhere}
.m{font-size:1.5em;margin:.2em 0}"""


def write_page(path: Path, title: str, parts: Iterable[str], style: str = "") -> None:
    """Write a page.

    Args:
        path: The file.
        title: Of the window.
        parts: HTML, in order.
        style: CSS beside ``STYLE``.
    """
    head = f"<!doctype html><meta charset='utf-8'><title>{escaped(title)}</title><style>{STYLE}\n{style}</style>"
    write_text(path, "\n".join([head, *parts, ""]))


def escaped(text: Any) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[int] = (0,)) -> str:
    """A table.

    Args:
        head: Names of the columns, text.
        rows: Cells, HTML.
        texts: Columns that hold text, not numbers.
    """
    kinds = [" class=t" if i in texts else "" for i in range(len(head))]
    lines = [f"<tr>{''.join(f'<th{kind}>{escaped(name)}</th>' for kind, name in zip(kinds, head, strict=True))}</tr>"]
    for row in rows:
        lines.append(f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>")
    return f"<table>{''.join(lines)}</table>"


def picture(pixels: NDArray[np.uint8] | Image.Image, *, photo: bool = False) -> str:
    """A picture uint8 (H, W, 3); as JPEG where it is a photograph."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    if photo:
        image.save(buffer, format="JPEG", quality=88)
    else:
        image.save(buffer, format="PNG")
    code = base64.b64encode(buffer.getvalue()).decode()
    return f"<img src='data:image/{'jpeg' if photo else 'png'};base64,{code}'>"


def picture_file(path: Path) -> str:
    """A picture file as it is, PNG or JPEG; nothing where there is none."""
    if not path.is_file():
        return ""
    kind = "jpeg" if path.suffix in (".jpg", ".jpeg") else "png"
    return f"<p><img src='data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}'></p>"


def gallery(figures: Iterable[tuple[str, str]], width: int = 240) -> str:
    """Pictures side by side with their captions.

    Args:
        figures: HTML of a picture or several, and of its caption.
        width: Of each at least, in pixels.
    """
    each = [f"<figure>{shown}<figcaption>{caption}</figcaption></figure>" for shown, caption in figures]
    return f"<div class=p style='--w:{width}px'>{''.join(each)}</div>"


def matrix(counts: NDArray[Any], names: Sequence[str]) -> str:
    """A table of counts (K, K), rows the true classes, colored by the fraction of the row."""
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    large = int(counts.max(initial=0)) > 99_999  # pixels: fractions tell more
    rows = []
    for name, row, own in zip(names, counts.tolist(), fractions.tolist(), strict=True):
        cells = "".join(_cell(n, f, large) for n, f in zip(row, own, strict=True))
        rows.append(f"<tr><td class=t>{escaped(name)}</td>{cells}</tr>")
    head = "".join(f"<th class=c title='{escaped(name)}'>{escaped(name[:12])}</th>" for name in names)
    return f"<table><tr><th class=t>true \\ predicted</th>{head}</tr>{''.join(rows)}</table>"


def _cell(count: int, fraction: float, large: bool) -> str:
    if not count:
        return "<td class=c></td>"
    ink = ";color:#fff" if fraction > 0.5 else ""
    text = f"{fraction:.2f}" if large else f"{count:,}"
    return f"<td class=c style='background:rgba(49,104,163,{fraction**0.5:.2f}){ink}'>{text}</td>"
