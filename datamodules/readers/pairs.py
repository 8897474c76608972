"""Pairs of image and mask files: by folder, or by path patterns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datamodules.annotations.records import SPLIT_WORDS, Listing, Record, split_name
from datamodules.common.errors import UserError
from datamodules.decoding.files import left_out, only_folder, subfolders
from datamodules.readers.pairing import pair_files, stems
from datamodules.readers.patterns import read_pattern

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot"),
    *("groundtruth", "ground_truth", "gt", "segmentation", "segmentations", "segmentationclass"),
)


class _Folders(NamedTuple):
    images: Path
    masks: Path
    split: str | None


def read_pairs(root: str | Path, images: str | None = None, masks: str | None = None) -> Listing:
    """Image and mask files of a folder, paired by their names.

    Without patterns these layouts are known, at any depth of folders below, the names in any case:

    - ``images/`` and ``masks/`` (or ``labels/``, ``annotations/``, ...), with or without ``train``/``val``/``test``
      folders in both;
    - ``train/images/`` and ``train/masks/``, likewise ``val`` and ``test``;
    - ``train/`` and ``trainannot/`` (or ``train_masks``, ``train_labels``, ...), or ``train_images`` and
      ``train_masks``, likewise ``val`` and ``test``.

    A mask has its image's name, the suffix apart, or that with ``_mask``, ``_label``, ``_gt``, ``_L`` or the like.

    Patterns are paths below ``root`` with ``{stem}`` (what image and mask have in common; it may span folders),
    ``{split}`` (train, val, valid, validation or test), ``{class}`` in ``masks`` (one binary mask a class) and ``*``
    for anything but a slash.

    Args:
        root: The folder.
        images: Pattern of the images, for example ``{split}/{stem}.jpg``.
        masks: Pattern of the masks, for example ``{split}annot/{stem}.png``.

    Returns:
        Records with ``mask``, a path, or with ``{class}`` a list of one path (None: no such file) for each of
        ``class_names``; without ``{class}`` there are no class names.

    Raises:
        UserError: If there is no such folder.
        UserError: If the layout is not known, a pattern is malformed or matches nothing, or an image has no mask or a
            mask no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"Folder '{root}' does not exist (looked in {Path.cwd()}).")
    if images is not None or masks is not None:
        if images is None or masks is None:
            raise UserError("data.images and data.masks go together: one is the pattern of the images, one of masks.")
        return read_pattern(root, images, masks)
    records: list[Record] = []
    others: Counter[str] = Counter()
    for folders in _layout(root):
        records += _by_folder(folders, others)
    return Listing(records, [], notes=tuple(left_out(others, root)))


# Layouts.


def has_layout(root: Path) -> bool:
    """Whether a folder, or the only folder in it, has one of the known layouts."""
    return bool(_find_layout(root))


def _find_layout(root: Path) -> list[_Folders]:
    folders = subfolders(root)
    found = _outer_pair(folders) or _inner_pairs(folders) or _named_by_split(folders)
    inner = only_folder(root)
    return found or ([] if inner is None else _find_layout(inner))


def _layout(root: Path) -> list[_Folders]:
    found = _find_layout(root)
    if found:
        return found
    folders = subfolders(root)
    have = ", ".join(f.name for f in folders[:12]) or "no folders"
    raise UserError(
        f"'{root}' is none of the known layouts of images and masks; it holds {have}. Known are images/ + masks/,"
        " train/images/ + train/masks/, train/ + train_masks/, VOC (JPEGImages/ + SegmentationClass/) and COCO"
        " (annotations/*.json + images/). For any other set data.images and data.masks, for example"
        " images: '{split}/{stem}.jpg' and masks: '{split}annot/{stem}.png'."
    )


def _outer_pair(folders: list[Path]) -> list[_Folders]:
    """``images/`` and ``masks/``, with or without the splits in both."""
    pair = _pair(folders)
    if pair is None:
        return []
    images, masks = (_splits(subfolders(folder)) for folder in pair)
    if not images or not masks:
        return [_Folders(*pair, None)]
    if set(images) != set(masks):
        raise UserError(f"'{pair[0]}' has the splits {', '.join(images)}, but '{pair[1]}' has {', '.join(masks)}.")
    return [_Folders(images[split], masks[split], split) for split in images]


def _inner_pairs(folders: list[Path]) -> list[_Folders]:
    """``train/images/`` and ``train/masks/``, likewise the other splits."""
    found = []
    for split, folder in _splits(folders).items():
        pair = _pair(subfolders(folder))
        if pair is not None:
            found.append(_Folders(*pair, split))
    return found


def _named_by_split(folders: list[Path]) -> list[_Folders]:
    """``train/`` and ``trainannot/``, or ``train_images/`` and ``train_masks/``, likewise the other splits."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for folder in folders:
        match = re.fullmatch(rf"({SPLIT_WORDS})[-_ ]?(.*)", folder.name.lower())
        if not match:
            continue
        split, role = str(split_name(match[1])), match[2]
        if role in MASK_FOLDERS:
            masks[split] = folder
        elif role in ("", *IMAGE_FOLDERS):
            images[split] = folder
    found = [_Folders(folder, masks[split], split) for split, folder in images.items() if split in masks]
    lonely = [folder for split, folder in images.items() if split not in masks]
    lonely += [folder for split, folder in masks.items() if split not in images]
    if found and lonely:
        first = min(lonely)
        raise UserError(
            f"'{first}' has no folder of {'masks' if first in images.values() else 'images'} beside it, as the other"
            f" splits have. Add it, or move '{first.name}' elsewhere."
        )
    return found


def _splits(folders: Iterable[Path]) -> dict[str, Path]:
    named = [(split_name(f.name), f) for f in folders]
    return {split: folder for split, folder in named if split is not None}


def _pair(folders: list[Path]) -> tuple[Path, Path] | None:
    """The folder of images and that of masks, or None."""
    found = []
    for names in (IMAGE_FOLDERS, MASK_FOLDERS):
        matches = [f for f in folders if f.name.lower() in names]
        if len(matches) > 1:
            raise UserError(
                f"'{matches[0]}' and '{matches[1]}' could both be meant. Set data.images and data.masks, for example"
                f" images: '{matches[0].name}/{{stem}}.jpg'."
            )
        found += matches
    return (found[0], found[1]) if len(found) == 2 and found[0].name.lower() in IMAGE_FOLDERS else None


# Pairing.


def _by_folder(folders: _Folders, others: Counter[str]) -> list[Record]:
    images, masks = stems(folders.images, others), stems(folders.masks, others)
    pairs = pair_files(images, masks, f"'{folders.images}' and '{folders.masks}'")
    return [
        {"image": images[name], "path": images[name], "mask": masks[mask], "split": folders.split}
        for name, mask in pairs.items()
    ]
