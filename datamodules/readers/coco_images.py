"""The images of a COCO file: their ids, their sizes, and where their files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.common.errors import UserError
from datamodules.decoding.limits import max_pixels
from datamodules.readers.coco_values import number_of
from datamodules.readers.places import find_files, roots_of
from datamodules.readers.text import whole


def image_sizes(file: Path, images: list[Any]) -> list[tuple[int, int]]:
    """Height and width of each image; 0 where the file does not say.

    Raises:
        UserError: If they are no numbers, or more pixels than an image may have.
    """
    sizes = []
    for image in images:
        height, width = (_side(file, image, key) for key in ("height", "width"))
        if height * width > max_pixels():  # so large would its masks be, whatever the image file is
            raise UserError(
                f"'{file}': image {image['id']}: {width} x {height} = {width * height:,} pixels are more than"
                f" max_pixels = {max_pixels():,}. Correct its height and width, cut the image into tiles, or raise"
                " data.max_pixels."
            )
        sizes.append((height, width))
    return sizes


def _side(file: Path, image: Any, key: str) -> int:
    """Height or width; 0 where the file does not say, or says -1, as the VGG Image Annotator does."""
    side = image.get(key)
    if type(side) is not int:
        side = whole(side, f"'{file}': image {image['id']}: its {key}") if side not in (None, "") else 0
    return max(0, side)


def image_index(file: Path, images: list[Any]) -> dict[int | str, int]:
    """Image id, see ``number_of`` -> place in the list."""
    index: dict[int | str, int] = {}
    files: dict[str, int] = {}
    for i, image in enumerate(images):
        try:
            number, name = image["id"], image["file_name"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"'{file}': image number {i + 1} must have an 'id' and a 'file_name': {image!r}."
            ) from error
        number = number_of(number)
        if number is None or not isinstance(name, str):
            raise UserError(
                f"'{file}': image number {i + 1}: 'id' must be a number or text, 'file_name' text: {image!r}."
            )
        if index.setdefault(number, i) != i:
            other = images[index[number]]["file_name"]
            raise UserError(f"'{file}': image id {number} occurs twice ('{other}' and '{name}'). Give each its own id.")
        if files.setdefault(name, i) != i:
            other = images[files[name]]["id"]
            raise UserError(
                f"'{file}': file '{name}' is there twice (image ids {other} and {number}). Merge them into one image."
            )
    return index


def image_paths(file: Path, images: list[Any], image_root: str | Path | None, split: str | None) -> list[str]:
    """Path of each image file, below ``image_root`` or the first known place that holds the first image.

    Raises:
        UserError: If images are missing; the first is named.
    """
    roots = roots_of(file, split) if image_root is None else [str(image_root)]
    paths, missing = find_files([image["file_name"] for image in images], roots, loose=True)
    if missing:
        image = images[missing[0]]
        looked = paths[missing[0]] if len(roots) == 1 or missing[0] else f"{image['file_name']} in {', '.join(roots)}"
        raise UserError(
            f"'{file}': image '{image['file_name']}' (id {image['id']}) does not exist (looked for {looked});"
            f" {len(missing)} of {len(paths)} are missing. Set image_root to the folder where file names start."
        )
    return paths
