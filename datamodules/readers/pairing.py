"""Image and mask files that belong together by their names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datamodules.common.errors import UserError, examples
from datamodules.decoding.files import IMAGE_SUFFIXES, count_others, is_visible, skipped_files

#: What a mask's name may have behind its image's, in folders that are found without patterns.
MASK_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_L")
_EXAMPLES = 5


def pair_files(images: Mapping[str, str], masks: Mapping[str, str], where: str) -> dict[str, str]:
    """Name of an image -> name of its mask, which may end in one of ``MASK_ENDINGS``.

    Args:
        images: Paths by name.
        masks: Likewise.
        where: What an error calls the two places.

    Raises:
        UserError: If an image has no mask or a mask no image.
    """
    pairs = {name: name + end for name in images for end in reversed(MASK_ENDINGS) if name + end in masks}
    used = set(pairs.values())
    report_unpaired(
        [path for name, path in images.items() if name not in pairs],
        [path for name, path in masks.items() if name not in used],
        where,
        len(images),
    )
    return pairs


def stems(folder: Path, others: Counter[str]) -> dict[str, str]:
    """Path of each image file below the folder, by its name below it without the suffix.

    Files left out because of their suffix are added to ``others``.

    Raises:
        UserError: If two files have one name, or there is none.
    """
    found: dict[str, str] = {}
    files = list_files(folder)
    others.update(count_others(map(os.path.basename, files)))
    for path in files:
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        stem = os.path.splitext(path)[0]
        if stem in found:
            raise UserError(f"'{found[stem]}' and '{folder / path}' have one name; which is meant? Remove one.")
        found[stem] = str(folder / path)
    if not found:
        told = f" {skipped_files(others)}" if others else ""
        raise UserError(f"Folder '{folder}' holds no image files.{told}")
    return found


def list_files(folder: Path) -> list[str]:
    """Paths below the folder of all visible files, with slashes, sorted; each real folder is visited once."""
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if is_visible(f))
        below = os.path.relpath(parent, folder)
        found += [f if below == "." else f"{below}/{f}".replace(os.sep, "/") for f in files if is_visible(f)]
    return sorted(found)


def without_annotations(alone: list[str], total: int, folder: str | Path, kind: str) -> list[str]:
    """A sentence about the images of a folder that no ``kind`` of file is of, where there are any."""
    if not alone:
        return []
    return [
        f"{len(alone):,} of {total:,} images in '{folder}' have no {kind} file and are left out,"
        f" for example '{alone[0]}'."
        " Write one without objects where nothing is on the image."
    ]


def report_unpaired(no_mask: list[str], no_image: list[str], where: str, total: int) -> None:
    """Refuse what has no partner."""
    problems = []
    for paths, what, other in ((no_mask, "image(s)", "mask"), (no_image, "mask(s)", "image")):
        if paths:
            missing = "a mask" if other == "mask" else "an image"
            problems.append(f"{len(paths)} {what} without {missing}: {examples(paths, _EXAMPLES)}.")
    if problems:
        raise UserError(
            f"In {where}, {total} images: {' '.join(problems)} Add what is missing or move these files elsewhere; or"
            " set data.images and data.masks to patterns that match only the pairs."
        )
