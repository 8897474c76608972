"""``explain.html``: the pictures with what each method says, and which of them to believe. One file, no links."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from datamodules.common.files import atomic_path
from pipelines.explaining.faithfulness import UNCHANGED
from pipelines.explaining.pictures import Explained, Explanation
from pipelines.explaining.scores import MethodScore, as_rows
from pipelines.outputs import page
from pipelines.outputs.heat import framed, heat_overlay, sized
from pipelines.outputs.sheets import Picture, sheet
from pipelines.outputs.svg import Bar, intervals

WIDTH = 200  # pixels of a picture on the page, at least
_STYLE = "figure{--w:200px}h3{margin-top:1.6em}figure b{color:#c81e1e;font-weight:600}"
_READ = (
    "Red speaks for the target, blue against it. <b>deletion</b> is the mean probability while the picture is hidden"
    " from the most important cell on (low is good), <b>insertion</b> while it is shown in that order (high is good),"
    " and <b>beside random</b> what their difference is above that of random explanations of the same pictures."
    " <b>random weights</b> is the rank correlation with the explanation of the same network with its weights shuffled:"
    " a method that says the same of both shows edges of the picture, not what the network has learned."
)


def write_explanations(
    folder: Path,
    title: str,
    explanations: Sequence[Explanation],
    scores: Sequence[MethodScore],
    names: Sequence[str],
    read: Callable[[Explanation], Picture],
) -> Path:
    """Write the page, and ``overlays/NAME.jpg`` for each target.

    Args:
        folder: Where to; it exists.
        title: Of the page.
        explanations: All.
        scores: Of ``method_scores``; empty where nothing was measured.
        names: Of each explanation the name of its file, without suffix.
        read: An explanation's picture, uint8 (H, W, C), in original pixels.

    Returns:
        The page.
    """
    order = [one.method for one in scores if one.method != "random"]
    parts = [f"<h1>{page.escaped(title)}</h1>", *_summary(scores, len(explanations))]
    for one, name in zip(explanations, names, strict=True):
        pictures, captions = drawn(one, read(one), order or list(one.methods))
        tiles = [Image.fromarray(picture) for picture in pictures]
        with atomic_path(folder / "overlays" / f"{name}.jpg") as path:
            Image.fromarray(sheet(tiles, captions, columns=len(tiles))).save(path, format="JPEG", quality=88)
        head = f"<h3>{page.escaped(one.target.name)} <small>{page.escaped(one.path)}</small></h3>"
        figures = [
            (
                page.picture(picture, photo=True),
                f"<b>{page.escaped(text)}</b>" if "unchanged" in text else page.escaped(text),
            )
            for picture, text in zip(pictures, captions, strict=True)
        ]
        parts.append(head + page.gallery(figures, WIDTH))
    page.write_page(folder / "explain.html", title, parts, _STYLE)
    return folder / "explain.html"


def drawn(one: Explanation, pixels: Picture, methods: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """The picture and its explanations as small pictures uint8 (h, w, 3), each with a caption.

    Args:
        one: The explanation.
        pixels: Its picture, uint8 (H, W, C).
        methods: In this order.
    """
    box = one.target.box_in(one.geometry)
    pictures, captions = [framed(sized(pixels), pixels.shape, box)], [one.target.name]
    for method in methods:
        pictures.append(heat_overlay(pixels, one.methods[method].heat, box))
        captions.append(_caption(method, one.methods[method]))
    return pictures, captions


def _caption(method: str, found: Explained) -> str:
    if found.areas is None:
        return method
    text = f"{method} {found.areas.insertion:.2f} - {found.areas.deletion:.2f}"
    if found.similarity is not None and found.similarity >= UNCHANGED:
        text += f", unchanged by random weights ({found.similarity:.2f})"
    return text


def _summary(scores: Sequence[MethodScore], count: int) -> list[str]:
    if not scores:
        return []
    head, *rows = as_rows(scores)
    bars = [Bar(one.method, one.gain, one.low, one.high) for one in scores if not math.isnan(one.gain)]
    table = page.table(head, [[page.escaped(cell) for cell in row] for row in rows], texts=(0, len(head) - 1))
    return [f"<p>{_READ}</p>", f"<p>{count} explained.</p>", table, intervals(bars, "beside random", zero=True)]
