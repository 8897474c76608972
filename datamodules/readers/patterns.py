"""Pairs of image and mask files by path patterns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from datamodules.annotations.records import SPLIT_WORDS, Listing, Record, sort_classes, split_name
from datamodules.common.errors import UserError, examples
from datamodules.readers.pairing import list_files, report_unpaired


class _Image(NamedTuple):
    """An image that a pattern matches."""

    file: str  # below the root
    split: str | None


_Key = tuple[str, str]  # split ('' for none) and stem


def read_pattern(root: Path, images: str, masks: str) -> Listing:
    """Image and mask files of a folder, paired by two patterns; see ``pairs.read_pairs``.

    Raises:
        UserError: If a pattern is malformed or matches nothing, or an image has no mask or a mask no image.
    """
    image_regex, mask_regex = _regex(images, "data.images"), _regex(masks, "data.masks")
    _check_fields(images, masks)
    files = list_files(root)
    mask_files = _match_masks(files, mask_regex, masks)
    taken = {file for by_class in mask_files.values() for file in by_class.values()}
    found = _match_images([file for file in files if file not in taken], image_regex, images)
    _refuse_empty(root, files, {("images", images): len(found), ("masks", masks): len(mask_files)})
    has_split = "{split}" in masks
    mask_keys = {key: (key if has_split else ("", key[1])) for key in found}
    no_mask = [str(root / found[key].file) for key, mask_key in mask_keys.items() if mask_key not in mask_files]
    where = f"'{root}' (images '{images}', masks '{masks}')"
    report_unpaired(no_mask, _without_image(root, mask_files, set(mask_keys.values())), where, len(found))
    class_names: list[str] = []
    if "{class}" in masks:
        class_names = sort_classes(name for by_class in mask_files.values() for name in by_class)
    records: list[Record] = []
    for key, image in found.items():
        path = str(root / image.file)
        mask = _mask_of(root, mask_files[mask_keys[key]], class_names)
        records.append({"image": path, "path": path, "mask": mask, "split": image.split})
    return Listing(records, class_names)


def _check_fields(images: str, masks: str) -> None:
    if "{class}" in images:
        raise UserError(f"data.images is '{images}': {{class}} belongs into data.masks only.")
    if "{split}" in masks and "{split}" not in images:
        raise UserError(f"data.masks has {{split}}, but data.images ('{images}') has not; an image's split is asked.")


def _without_image(root: Path, mask_files: dict[_Key, dict[str, str]], used: set[_Key]) -> list[str]:
    """One mask of each image that is not there."""
    return [str(root / next(iter(by_class.values()))) for key, by_class in mask_files.items() if key not in used]


def _refuse_empty(root: Path, files: list[str], counts: dict[tuple[str, str], int]) -> None:
    """Refuse a pattern that matches nothing; ``counts`` is by setting and pattern."""
    for (setting, pattern), count in counts.items():
        if not count:
            raise UserError(
                f"data.{setting} '{pattern}' matches no file below '{root}', which holds"
                f" {examples(files, 3) or 'no files'}."
            )


def _mask_of(root: Path, by_class: dict[str, str], class_names: list[str]) -> str | list[str | None]:
    """One mask, or one for each class; None where there is no file."""
    paths = {name: str(root / file) for name, file in by_class.items()}
    return [paths.get(name) for name in class_names] if class_names else paths[""]


def _match_masks(files: list[str], regex: re.Pattern[str], pattern: str) -> dict[_Key, dict[str, str]]:
    """Mask files by class ('' for all) of each image; a split is in the key where the masks' pattern has one."""
    found: dict[_Key, dict[str, str]] = {}
    for file in files:
        match = regex.fullmatch(file)
        if not match:
            continue
        fields = match.groupdict()
        by_class = found.setdefault((split_name(fields.get("split", "")) or "", fields["stem"]), {})
        name = fields.get("class", "")
        if name in by_class:
            raise UserError(f"data.masks '{pattern}' matches two files for one image: {by_class[name]} and {file}.")
        by_class[name] = file
    return found


def _match_images(files: list[str], regex: re.Pattern[str], pattern: str) -> dict[_Key, _Image]:
    found: dict[_Key, _Image] = {}
    for file in files:
        match = regex.fullmatch(file)
        if not match:
            continue
        fields = match.groupdict()
        split = split_name(fields.get("split", ""))
        key = (split or "", fields["stem"])
        if key in found:
            raise UserError(f"data.images '{pattern}' matches two files of one name: {found[key].file} and {file}.")
        found[key] = _Image(file, split)
    return found


def _regex(pattern: str, key: str) -> re.Pattern[str]:
    if "{stem}" not in pattern:
        raise UserError(f"{key} is '{pattern}': {{stem}}, the part that image and mask share, is missing.")
    fields: Mapping[str, str] = {"stem": ".+", "split": f"(?i:{SPLIT_WORDS})", "class": "[^/]+"}
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
