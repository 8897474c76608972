"""Pairs of image and mask files: by folder, or by path patterns."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from datamodules.annotations.records import Listing, Record, sort_classes, split_name
from datamodules.common.errors import UserError
from datamodules.decoding.files import IMAGE_SUFFIXES, subfolders

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot"),
    *("groundtruth", "ground_truth", "gt", "segmentation", "segmentations", "segmentationclass"),
)
#: What a mask's name may have behind its image's, in folders that are found without patterns.
MASK_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_L")
_SPLIT_WORDS = "train|validation|valid|val|test"
_EXAMPLES = 5


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
        return _by_pattern(root, images, masks)
    records: list[Record] = []
    for folders in _layout(root):
        records += _by_folder(folders)
    return Listing(records, [])


# Layouts.


def _layout(root: Path) -> list[_Folders]:
    folders = subfolders(root)
    pair = _pair(folders)
    if pair is not None:
        below = [(_splits(subfolders(f))) for f in pair]
        if below[0] and below[1]:
            if set(below[0]) != set(below[1]):
                raise UserError(
                    f"'{pair[0]}' has the splits {', '.join(below[0])}, but '{pair[1]}' has {', '.join(below[1])}."
                )
            return [_Folders(below[0][s], below[1][s], s) for s in below[0]]
        return [_Folders(*pair, None)]
    found = []
    for split, folder in _splits(folders).items():
        inner = _pair(subfolders(folder))
        if inner is not None:
            found.append(_Folders(*inner, split))
    if not found:
        by_role: dict[tuple[str, bool], Path] = {}
        for folder in folders:
            match = re.fullmatch(rf"({_SPLIT_WORDS})[-_ ]?(.*)", folder.name.lower())
            if match and match[2] in ("", *IMAGE_FOLDERS, *MASK_FOLDERS):
                by_role[str(split_name(match[1])), match[2] in MASK_FOLDERS] = folder
        found = [
            _Folders(folder, by_role[split, True], split)
            for (split, is_mask), folder in by_role.items()
            if not is_mask and (split, True) in by_role
        ]
        lonely = [f for (split, is_mask), f in by_role.items() if (split, not is_mask) not in by_role]
        if found and lonely:
            raise UserError(
                f"'{lonely[0]}' has no folder of {'images' if lonely[0].name.lower() in MASK_FOLDERS else 'masks'}"
                f" beside it, as the other splits have. Add it, or move '{lonely[0].name}' elsewhere."
            )
    if not found:
        have = ", ".join(f.name for f in folders[:12]) or "no folders"
        raise UserError(
            f"'{root}' is none of the known layouts of images and masks; it holds {have}. Known are images/ + masks/,"
            " train/images/ + train/masks/, train/ + train_masks/, VOC (JPEGImages/ + SegmentationClass/) and COCO"
            " (annotations/*.json + images/). For any other set data.images and data.masks, for example"
            " images: '{split}/{stem}.jpg' and masks: '{split}annot/{stem}.png'."
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


def _by_folder(folders: _Folders) -> list[Record]:
    images, masks = stems(folders.images), stems(folders.masks)
    pairs = pair_files(images, masks, f"'{folders.images}' and '{folders.masks}'")
    return [
        {"image": images[name], "path": images[name], "mask": masks[mask], "split": folders.split}
        for name, mask in pairs.items()
    ]


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
    _report(
        [path for name, path in images.items() if name not in pairs],
        [path for name, path in masks.items() if name not in used],
        where,
        len(images),
    )
    return pairs


def stems(folder: Path) -> dict[str, str]:
    """Path of each image file below the folder, by its name below it without the suffix.

    Raises:
        UserError: If two files have one name, or there is none.
    """
    found: dict[str, str] = {}
    for path in _files(folder):
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        stem = os.path.splitext(path)[0]
        if stem in found:
            raise UserError(f"'{found[stem]}' and '{folder / path}' have one name; which is meant? Remove one.")
        found[stem] = str(folder / path)
    if not found:
        raise UserError(f"Folder '{folder}' holds no image files.")
    return found


def _files(folder: Path) -> list[str]:
    """Paths below the folder of all files, with slashes, sorted; links are followed, hidden files left out."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        below = os.path.relpath(parent, folder)
        found += [f if below == "." else f"{below}/{f}".replace(os.sep, "/") for f in files if not f.startswith(".")]
    return sorted(found)


def _by_pattern(root: Path, images: str, masks: str) -> Listing:
    image_regex, mask_regex = _regex(images, "data.images"), _regex(masks, "data.masks")
    if "{class}" in images:
        raise UserError(f"data.images is '{images}': {{class}} belongs into data.masks only.")
    if "{split}" in masks and "{split}" not in images:
        raise UserError(f"data.masks has {{split}}, but data.images ('{images}') has not; an image's split is asked.")
    split_masks = "{split}" in masks
    files = _files(root)
    found: dict[tuple[str, str], tuple[str, str | None]] = {}
    mask_files: dict[tuple[str, str], dict[str, str]] = {}
    for file in files:
        if match := mask_regex.fullmatch(file):
            fields = match.groupdict()
            key = (split_name(fields["split"]) or "" if split_masks else "", fields["stem"])
            by_class = mask_files.setdefault(key, {})
            name = fields.get("class", "")
            if name in by_class:
                raise UserError(f"data.masks '{masks}' matches two files for one image: {by_class[name]} and {file}.")
            by_class[name] = file
        elif match := image_regex.fullmatch(file):
            fields = match.groupdict()
            split = split_name(fields["split"]) if "split" in fields else None
            key = (split or "", fields["stem"])
            if key in found:
                raise UserError(f"data.images '{images}' matches two files of one name: {found[key][0]} and {file}.")
            found[key] = (file, split)
    for key_name, pattern, matched in (("images", images, found), ("masks", masks, mask_files)):
        if not matched:
            raise UserError(
                f"data.{key_name} '{pattern}' matches no file below '{root}', which holds"
                f" {', '.join(files[:3]) or 'no files'}{', ...' if len(files) > 3 else ''}."
            )
    pairs = {key: (key if split_masks else ("", key[1])) for key in found}
    used = set(pairs.values())
    _report(
        [str(root / found[key][0]) for key, mask in pairs.items() if mask not in mask_files],
        [str(root / next(iter(by.values()))) for key, by in mask_files.items() if key not in used],
        f"'{root}' (images '{images}', masks '{masks}')",
        len(found),
    )
    class_names = sort_classes({name for by in mask_files.values() for name in by}) if "{class}" in masks else []
    records: list[Record] = []
    for key, (file, split) in found.items():
        by_class = {name: str(root / path) for name, path in mask_files[pairs[key]].items()}
        mask = [by_class.get(name) for name in class_names] if class_names else by_class[""]
        records.append({"image": str(root / file), "path": str(root / file), "mask": mask, "split": split})
    return Listing(records, class_names)


def _regex(pattern: str, key: str) -> re.Pattern[str]:
    if "{stem}" not in pattern:
        raise UserError(f"{key} is '{pattern}': {{stem}}, the part that image and mask share, is missing.")
    fields: Mapping[str, str] = {"stem": ".+", "split": f"(?i:{_SPLIT_WORDS})", "class": "[^/]+"}
    out, seen = "", set()
    for part in re.split(r"(\{[^{}]*\}|\*)", pattern.removeprefix("./")):
        name = part[1:-1]
        if part == "*":
            out += "[^/]*"
        elif not part.startswith("{"):
            out += re.escape(part)
        elif name not in fields:
            raise UserError(f"{key} is '{pattern}': '{part}' is unknown; {{stem}}, {{split}}, {{class}} and * are.")
        else:
            out += f"(?P={name})" if name in seen else f"(?P<{name}>{fields[name]})"
            seen.add(name)
    return re.compile(out)


def _report(no_mask: list[str], no_image: list[str], where: str, total: int) -> None:
    """Refuse what has no partner."""
    problems = []
    for paths, what, other in ((no_mask, "image(s)", "mask"), (no_image, "mask(s)", "image")):
        if paths:
            shown = ", ".join(paths[:_EXAMPLES]) + (", ..." if len(paths) > _EXAMPLES else "")
            problems.append(f"{len(paths)} {what} without {'a mask' if other == 'mask' else 'an image'}: {shown}.")
    if problems:
        raise UserError(
            f"In {where}, {total} images: {' '.join(problems)} Add what is missing or move these files elsewhere; or"
            " set data.images and data.masks to patterns that match only the pairs."
        )
