"""Which program wrote a JSON file of annotations, and where such files lie in a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from datamodules.annotations.records import split_name
from datamodules.decoding.files import is_visible, subfolders

JsonKind = Literal["coco", "labelme", "createml", "via", "labelstudio"]

_PART = 1 << 16  # bytes at the start and at the end that tell
_SIGNS: dict[JsonKind, tuple[str, ...]] = {  # what these parts of a file hold, in this order
    "labelme": (r'"shapes"\s*:', r'"(imagePath|imageData|imageHeight|flags)"\s*:'),
    "via": (r'"(regions|_via_img_metadata)"\s*:', r'"(filename|_via_settings)"\s*:'),
    "createml": (
        r"^\s*\[",
        r'"(image|imagefilename|imagefile)"\s*:',
        r'"coordinates"\s*:|"annotations?"\s*:\s*\[\s*\]',
    ),
    "labelstudio": (r"^\s*\[", r'"(rectanglelabels|polygonlabels|brushlabels|ellipselabels|keypointlabels|data)"'),
}


def json_kind(file: Path) -> JsonKind:
    """Which program's file this is, by its start and its end; COCO's where nothing speaks for another."""
    with open(file, "rb") as stream:
        start = stream.read(_PART)
        stream.seek(max(_PART, file.stat().st_size - _PART) // 2 * 2)  # whole characters of UTF-16
        start += stream.read()
    text = start.decode("utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace")
    if re.search(r'"categories"\s*:', text) or re.match(r'\s*\{\s*"(images|info|licenses)"\s*:', text):
        return "coco"
    found = (kind for kind, signs in _SIGNS.items() if all(re.search(sign, text) for sign in signs))
    return next(found, "coco")


def json_files(root: Path) -> list[Path]:
    """The JSON files in a folder, in ``annotations`` or ``labels`` in it, and in its split folders."""
    folders = [root]
    for folder in subfolders(root):
        if split_name(folder.name) or folder.name.lower() in ("annotations", "annotation", "labels", "json", "jsons"):
            folders += [
                folder,
                *(f for f in subfolders(folder) if split_name(f.name) or f.name.lower() == "annotations"),
            ]
    return [f for folder in folders for f in sorted(folder.glob("*.json")) if is_visible(f.name)]


def files_of(source: Path, kind: JsonKind) -> tuple[list[Path], tuple[str, ...]]:
    """The file that a source is, or those of one program in its folder; and a note of the files left out."""
    if source.is_file():
        return [source], ()
    kinds = {file: json_kind(file) for file in json_files(source)}
    others = [file for file, found in kinds.items() if found != kind]
    if not others:
        return list(kinds), ()
    note = (
        f"{len(others):,} of {len(kinds):,} JSON files in '{source}' are not of the format '{kind}' and are left out,"
        f" for example '{others[0]}'."
    )
    return [file for file, found in kinds.items() if found == kind], (note,)


def is_kind(root: Path, kind: JsonKind) -> bool:
    """Whether a folder has such files; the first few decide."""
    return any(json_kind(file) == kind for file in json_files(root)[:3])
