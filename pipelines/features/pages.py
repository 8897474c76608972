"""What ``features`` writes: a page of the network, one of each layer with its sheet as a picture, and the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.common.files import write_json
from pipelines.features.clock import Clock
from pipelines.features.embedding import LEAST, Embedded, alike_neighbors, plane
from pipelines.features.exemplars import SIDE, Exemplar
from pipelines.features.work import Findings
from pipelines.outputs.page import escaped, gallery, picture, table, write_page
from pipelines.outputs.sheets import Picture, rgb, save_png, sheet
from pipelines.outputs.svg import COLORS, Series, chart
from tasks.maps import Map

MOST_CLASSES = 10  # with a color of their own; what is left is gray
QUALITY = ((0.25, "#e45756"), (0.5, "#f2a33a"), (0.75, "#b7c94d"), (1.0, "#54a24b"))


def write_all(
    found: Findings, folder: Path, facts: dict[str, str], class_names: list[str], seed: int, clock: Clock
) -> Path:
    """Write ``index.html``, ``LAYER.html``, ``LAYER.png``, other sheets and ``features.json``.

    Args:
        found: Of ``work.look_inside``.
        folder: Made if it is missing; what has the same name is replaced.
        facts: Lines for the top of the pages.
        class_names: K.
        seed: Of the map of the set.
        clock: For the map of the set.

    Returns:
        The page of the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"<h1>What {escaped(facts['network'])} looks for</h1>", _facts(facts, found)]
    for i, one in enumerate(found.maps):
        _write_layer(found, i, folder, facts)
        parts.append(f"<p><a href='{escaped(file_of(one))}.html'>{escaped(one.name)}</a> {escaped(_said_of(one))}</p>")
    if found.filters is not None:
        name, filters = found.filters
        save_png(filters, folder / "filters.png")
        parts += [f"<h2>Filters of {escaped(name)}</h2>", picture(filters)]
    parts += _classes(found, folder, class_names)
    parts += _dreams(found, folder)
    neighbors = None
    if found.embedded is not None and len(found.embedded.vectors) >= LEAST:
        before = clock.spent
        shown, neighbors = _map_of_set(found.embedded, class_names, seed, clock)
        found.seconds["embedding"] += clock.spent - before
        parts += shown
    page = folder / "index.html"
    write_page(page, f"Features of {facts['network']}", parts)
    write_json(folder / "features.json", _numbers(found, facts, neighbors))
    return page


def file_of(one: Map) -> str:
    """A layer's name as the stem of a file."""
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in one.name)


def _facts(facts: dict[str, str], found: Findings) -> str:
    rows = [(name, escaped(value)) for name, value in facts.items()]
    rows += [("seconds", ", ".join(f"{name} {value:.1f}" for name, value in found.seconds.items()))]
    rows += [("left out", escaped(note)) for note in found.notes]
    return table(["", ""], rows, texts=(0, 1))


def _said_of(one: Map) -> str:
    field = one.field
    size = f"{field.height.size:g} x {field.width.size:g} pixels"
    sees = f"the whole picture ({size} without attention and pooling over it)" if one.sees_all else size
    return f"{one.channels} channels, {one.height} x {one.width} units; each sees {sees}"


def _write_layer(found: Findings, i: int, folder: Path, facts: dict[str, str]) -> None:
    one, channels = found.maps[i], found.channels[i]
    parts = [f"<h1>{escaped(one.name)}</h1>", f"<p>{escaped(_said_of(one))}</p>", _facts(facts, found)]
    rows: list[list[Picture]] = []
    for k, channel in enumerate(channels):
        pictures = {kind: as_pixels(grown[i].pictures[k]) for kind, grown in found.grown.items()}
        made = [(kind, grown[i]) for kind, grown in found.grown.items()]
        figures = [
            (picture(pictures[kind]), f"{_NAMES[kind]}: {grown.before[k]:.3g} to {grown.after[k]:.3g}")
            for kind, grown in made
        ]
        exemplars = found.exemplars[i].exemplars[k] if found.exemplars else []
        figures += [(picture(each.crop, photo=True), _caption(each)) for each in exemplars]
        parts += [f"<h2>channel {channel}</h2>", f"<p>{_about(found, i, k)}</p>", gallery(figures, SIDE)]
        rows.append([*pictures.values(), *(each.crop for each in exemplars)])
    write_page(folder / f"{file_of(one)}.html", one.name, parts)
    if any(rows):
        columns = max(map(len, rows))
        tiles = [tile(shown) for row in rows for shown in [*row, *[_BLANK] * (columns - len(row))]]
        save_png(sheet(tiles, None, columns), folder / f"{file_of(one)}.png")


_NAMES = {"channels": "grown for the channel's mean", "neurons": "grown for the unit in the middle"}
_BLANK: Picture = np.full((SIDE, SIDE, 3), 255, np.uint8)


def tile(pixels: Picture) -> Image.Image:
    """A picture in a square of ``SIDE``."""
    shown = Image.fromarray(pixels)
    factor = SIDE / max(shown.size)
    size = (max(1, round(shown.width * factor)), max(1, round(shown.height * factor)))
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(shown.resize(size, Image.Resampling.LANCZOS), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return canvas


def as_pixels(image: Tensor) -> Picture:
    """A float picture (C, H, W) in [0, 1] as uint8 (H, W, 3)."""
    pixels: NDArray[Any] = (image * 255).round().byte().permute(1, 2, 0).numpy()
    return rgb(pixels)


def _caption(one: Exemplar) -> str:
    return escaped(f"{one.value:.3g} {one.caption} {Path(one.path).name}")


def _about(found: Findings, i: int, k: int) -> str:
    said = []
    if found.relevance:
        said.append(f"{found.relevance[i][k]:.1%} of what the scores owe to the layer")
    if found.exemplars:
        of_layer = found.exemplars[i]
        said.append(f"mean over {of_layer.images} pictures {of_layer.means[k]:.3g}")
        values = [one.value for one in of_layer.exemplars[k]]
        if values and max(values) <= 0:
            said.append("never above 0")
    return "; ".join(said)


def _classes(found: Findings, folder: Path, class_names: list[str]) -> list[str]:
    classes, grown = found.classes
    if not classes:
        return []
    pictures = [as_pixels(one) for group in grown for one in group.pictures]
    before = [value for group in grown for value in group.before]
    after = [value for group in grown for value in group.after]
    save_png(sheet([tile(one) for one in pictures], [class_names[k] for k in classes]), folder / "classes.png")
    captions = [
        escaped(f"{class_names[k]}: {low:.3g} to {high:.3g}")
        for k, low, high in zip(classes, before, after, strict=True)
    ]
    shown = gallery(zip(map(picture, pictures), captions, strict=True), SIDE)
    return ["<h2>Pictures grown for a class's score</h2>", shown]


def _dreams(found: Findings, folder: Path) -> list[str]:
    if not found.dreams:
        return []
    names = ["the picture", *(one.name for one in found.maps)]
    pictures = [as_pixels(one) for one in found.dreams]
    images = [Image.fromarray(one) for one in pictures]
    save_png(sheet(images, names[: len(images)]), folder / "dream.png")
    shown = [(picture(one, photo=True), escaped(name)) for one, name in zip(pictures, names, strict=False)]
    return ["<h2>DeepDream: what each layer sees, exaggerated</h2>", gallery(shown)]


def _map_of_set(embedded: Embedded, class_names: list[str], seed: int, clock: Clock) -> tuple[list[str], float | None]:
    """Charts by class and by error, and the fraction of nearest neighbors of one class."""
    vectors = np.stack(embedded.vectors).astype(np.float64)
    parts, neighbors = ["<h2>Map of the set</h2>"], None
    classes = embedded.classes() if embedded.amounts else None
    if classes is not None:
        neighbors = alike_neighbors(vectors, classes)
        parts.append(f"<p>Of {len(vectors)} pictures {neighbors:.1%} have a nearest neighbor of their class.</p>")
    for name, (places, said) in plane(vectors, seed, clock).items():
        colorings = [_by_class(places, classes, class_names)] if classes is not None else [[_dots(places, "")]]
        if embedded.quality:
            colorings.append(_by_quality(places, np.array(embedded.quality)))
        charts = "".join(chart(series, title=f"{name}: {said}") for series in colorings)
        parts.append(f"<div class=p>{charts}</div>")
    return parts, neighbors


def _dots(places: NDArray[Any], name: str, color: str | None = None) -> Series:
    return Series(places[:, 0].tolist(), places[:, 1].tolist(), name, style="dots", color=color)


def _by_class(places: NDArray[Any], classes: NDArray[np.int64], class_names: list[str]) -> list[Series]:
    """The most frequent classes in colors of their own, the others below them in gray."""
    counts = np.bincount(classes, minlength=len(class_names))
    colors = [*COLORS[:-1], "#d67195", "#439894", "#79706e"]
    first = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k]][:MOST_CLASSES]
    others = ~np.isin(classes, first)
    series = [_dots(places[others], "others", "#d5d5d5")] if others.any() else []
    return [*series, *(_dots(places[classes == k], class_names[k], colors[n]) for n, k in enumerate(sorted(first)))]


def _by_quality(places: NDArray[Any], quality: NDArray[np.float64]) -> list[Series]:
    """Right below wrong, so that what is wrong is seen; of other qualities in four steps."""
    if set(np.unique(quality)) <= {0.0, 1.0}:
        wrong = quality == 0
        names = ((~wrong, f"right ({(~wrong).sum()})", "#cfd8e3"), (wrong, f"wrong ({wrong.sum()})", "#e45756"))
        return [_dots(places[which], name, color) for which, name, color in names if which.any()]
    series, low = [], -1.0
    for high, color in QUALITY:
        which = (quality > low) & (quality <= high)
        if which.any():
            series.append(_dots(places[which], f"up to {high:g} right ({which.sum()})", color))
        low = high
    return series[::-1]


def _numbers(found: Findings, facts: dict[str, str], neighbors: float | None) -> dict[str, Any]:
    """For programs; without pictures."""
    layers = []
    for i, (one, channels) in enumerate(zip(found.maps, found.channels, strict=True)):
        of_layer = []
        for k, channel in enumerate(channels):
            row: dict[str, Any] = {"channel": channel}
            if found.relevance:
                row["relevance"] = found.relevance[i][k]
            if found.exemplars:
                keys = ("value", "path", "caption", "unit", "box", "place")
                row["mean"] = found.exemplars[i].means[k]
                row["exemplars"] = [{key: getattr(x, key) for key in keys} for x in found.exemplars[i].exemplars[k]]
            row |= {kind: {"before": g[i].before[k], "after": g[i].after[k]} for kind, g in found.grown.items()}
            of_layer.append(row)
        layers.append({"name": one.name, "channels": of_layer, "sees": None if one.sees_all else _sides(one)})
    classes = [value for group in found.classes[1] for value in group.after]
    return {
        **facts,
        "seconds": found.seconds,
        "notes": found.notes,
        "layers": layers,
        "classes": classes,
        "neighbors_of_one_class": neighbors,
    }


def _sides(one: Map) -> list[float]:
    return [one.field.height.size, one.field.width.size]
