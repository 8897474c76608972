"""Images side by side as uint8 arrays (H, W, 3), with captions; and what all pictures share: font, size, saving.

torchvision's ``make_grid`` neither enlarges small images nor writes captions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from datamodules.common.files import atomic_path
from pipelines.outputs.fonts import SIZE as FONT_SIZE
from pipelines.outputs.fonts import Font, font_for

Picture = NDArray[np.uint8]
TILE = 144  # smaller images are enlarged until a tile has about this many pixels, so that they can be seen
MAX_TILE = 320  # larger ones are reduced to it
GAP = 8
CAPTION_LINES = 3
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)
EMPTY = (238, 238, 238)
FRAME = 2  # pixels
WRONG = (200, 30, 30)  # frame and caption of a wrong prediction


def image_grid(
    images: ArrayLike,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    max_images: int = 64,
    wrong: Sequence[bool] | None = None,
) -> Picture:
    """Put images side by side.

    Args:
        images: uint8 (N, H, W, C) with C = 1 (gray), 3 (RGB) or more (the first three are shown), or (N, H, W).
        captions: One text below each image, wrapped.
        columns: Images in a row; by default about as many as rows.
        max_images: Only so many are shown.
        wrong: Which images have a red frame and caption, as wrong predictions.

    Returns:
        uint8 (H', W', 3). Small images are enlarged by a whole number, without smoothing.

    Raises:
        ValueError: For other dtypes or shapes, no images, and a wrong number of captions.
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"images: uint8 (N, H, W, C) with N > 0 expected, got {array.dtype} {array.shape}")
    if captions is not None and len(captions) != len(array):
        raise ValueError(f"captions: one per image expected, got {len(captions)} for {len(array)} images")
    tiles = [scaled(rgb(image)) for image in array[:max_images]]
    return sheet(tiles, captions[:max_images] if captions else None, columns, wrong)


def contact_sheet(
    images: Sequence[str | Path | NDArray[Any]],
    captions: Sequence[str] | None,
    path: str | Path,
    columns: int | None = None,
    tile: int = 176,
    wrong: Sequence[bool] | None = None,
) -> Path:
    """Write a sheet of thumbnails of images of any sizes.

    Args:
        images: Files, frames of a video, or uint8 arrays (H, W, C) or (H, W). They are read one by one; one that
            cannot be read is shown as an empty tile.
        captions: One text below each.
        path: PNG file to write.
        columns: Images in a row; by default about as many as rows.
        tile: Side of a thumbnail in pixels.
        wrong: Which images have a red frame and caption.

    Returns:
        The file.

    Raises:
        ValueError: For no images, and a wrong number of captions.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"contact sheet: {len(images)} images, {'no' if captions is None else len(captions)} captions")
    tiles = [_thumbnail(_open(image), tile) for image in images]
    return save_png(sheet(tiles, captions, columns, wrong), path)


def _thumbnail(picture: Image.Image | None, side: int) -> Image.Image:
    """An image in the middle of a square tile, its proportions kept; an empty tile for None."""
    canvas = Image.new("RGB", (side, side), EMPTY)
    if picture is None:
        return canvas
    factor = min(side / picture.width, side / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    method = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
    canvas.paste(picture.resize(size, method), ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


def is_wrong(row: Mapping[str, Any]) -> bool:
    """Whether a task's row says that an image's label is not the true one; no where one of the two is not known."""
    return "truth" in row and "label" in row and row["truth"] != row["label"]


def save_png(array: NDArray[Any], path: str | Path) -> Path:
    """Write uint8 (H, W, 3) or (H, W) as a PNG file, making its folder.

    Returns:
        The file.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")
    return Path(path)


def printable(text: str) -> str:
    """The text in one line, control characters as question marks."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def rgb(image: NDArray[Any]) -> Picture:
    """An image (H, W) or (H, W, C) as C-contiguous (H, W, 3): gray is repeated, of more channels the first three."""
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] < 3:
        image = np.repeat(image[..., :1], 3, axis=-1)
    return np.ascontiguousarray(image[..., :3])


def scaled(image: Picture) -> Image.Image:
    """A tile of readable size: enlarged by a whole number, or reduced to ``MAX_TILE`` pixels."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > MAX_TILE:
        picture.thumbnail((MAX_TILE, MAX_TILE), Image.Resampling.LANCZOS)
    elif longest < TILE:
        factor = max(1, round(TILE / longest))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture


def _open(image: str | Path | NDArray[Any]) -> Image.Image | None:
    if isinstance(image, np.ndarray):
        return Image.fromarray(rgb(image))
    from datamodules.decoding.images import read_image  # late: its package needs torch

    try:
        return Image.fromarray(read_image(image))
    except (OSError, ValueError):
        return None


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Break a caption at spaces, and inside of words where it must be, into a few lines."""
    text = "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
    lines = [line for paragraph in text.split("\n") for line in _broken(paragraph, font, width)]
    if len(lines) > CAPTION_LINES:
        last = lines[CAPTION_LINES - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: CAPTION_LINES - 1], last + "..."]
    return lines


def _broken(paragraph: str, font: Font, width: int) -> Iterator[str]:
    """The lines of one paragraph, each at most so many pixels wide."""
    line = ""
    for word in paragraph.split(" "):
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            yield line
        while font.getlength(word) > width and len(word) > 1:
            length = _fitting(word, font, width)
            yield word[:length]
            word = word[length:]
        line = word
    yield line


def _fitting(word: str, font: Font, width: int) -> int:
    """How many letters of a word that is too long fit; one at least."""
    for length in range(len(word) - 1, 1, -1):
        if font.getlength(word[:length]) <= width:
            return length
    return 1


def sheet(
    tiles: Sequence[Image.Image],
    captions: Sequence[str] | None,
    columns: int | None = None,
    wrong: Sequence[bool] | None = None,
) -> Picture:
    """Tiles in rows, each with its caption, wrapped, below it: uint8 (H, W, 3); those that are wrong in red."""
    count = len(tiles)
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    font = font_for("".join(map(str, captions or ())))
    texts = [_wrapped(str(caption), font, width) for caption in captions] if captions else [[] for _ in tiles]
    line = FONT_SIZE + 3
    below = max(map(len, texts)) * line + (4 if captions else 0)
    canvas = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + below + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
        left, top = GAP + index % columns * (width + GAP), GAP + index // columns * (height + below + GAP)
        x, y = left + (width - tile.width) // 2, top + height - tile.height
        canvas.paste(tile, (x, y))
        is_wrong = wrong is not None and wrong[index]
        if is_wrong:
            draw.rectangle((x - FRAME, y - FRAME, x + tile.width + 1, top + height + 1), outline=WRONG, width=FRAME)
        for number, text in enumerate(lines):
            draw.text((left, top + height + 2 + number * line), text, fill=WRONG if is_wrong else INK, font=font)
    return np.asarray(canvas)
