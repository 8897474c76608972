"""Where Pascal VOC's XML files and their images lie, in VOC's own folders and in those of other people."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from datamodules.annotations.records import split_name
from datamodules.common.errors import UserError
from datamodules.decoding.files import find_file, is_visible, left_out, list_images, subfolder, subfolders
from datamodules.readers.pairing import without_annotations
from datamodules.readers.text import parse_xml, read_lines

#: What the folders are called, in any case.
XML_FOLDERS = ("annotations", "annotation", "xmls", "xml", "annots", "annot", "labels")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pngimages", "jpgimages", "pictures")

_Pair = tuple[Path, str, str | None]  # XML, image, split


class _Folders(NamedTuple):
    """Two folders that belong together."""

    xmls: Path
    images: Path | None


def find_pairs(root: Path) -> tuple[list[_Pair], list[str]]:
    """(XML, image, split) of each image of a folder, and what was left out.

    Raises:
        UserError: If an image, an XML file or a line of a list has no partner, or there is nothing.
    """
    folders = _folders(root)
    if folders is not None:
        return _devkit(root, folders)
    found: list[_Pair] = []
    notes: list[str] = []
    for folder in subfolders(root):
        split, own = split_name(folder.name), _folders(folder)
        if split is not None and own is not None:
            pairs, left = _devkit(folder, own, with_lists=False)
            found += [(xml, image, split) for xml, image, _ in pairs]
            notes += left
    return (found, notes) if found else _beside(root)


def has_xmls(root: Path) -> bool:
    """Whether a folder has VOC's files in one of the layouts."""
    places = [root, *(folder for folder in subfolders(root) if split_name(folder.name))]
    return any(_folders(place) is not None or _xmls(place) for place in places)


def _folders(root: Path) -> _Folders | None:
    """The folders of XML files and of images in a folder."""
    xmls = subfolder(root, XML_FOLDERS)
    if xmls is None:
        return None
    if not _xmls(xmls):
        xmls = subfolder(xmls, XML_FOLDERS)  # annotations/xmls
    return _Folders(xmls, subfolder(root, IMAGE_FOLDERS)) if xmls is not None and _xmls(xmls) else None


def _xmls(folder: Path) -> dict[str, Path]:
    """The XML files in a folder, by their names without the suffix."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".xml") and is_visible(name))
    return {name[:-4]: folder / name for name in names}


def _devkit(root: Path, folders: _Folders, *, with_lists: bool = True) -> tuple[list[_Pair], list[str]]:
    """VOC's own layout, and the usual variants of it."""
    xmls, folder = folders
    if folder is None:
        raise UserError(f"'{root}' has {xmls.name}, but no folder JPEGImages (or images) with the images.")
    there, files = list_images(folder), _xmls(xmls)
    images = _by_stem(there.images)
    lists = _lists(root) if with_lists else {}
    splits = _listed(xmls, lists, files) if lists else dict.fromkeys(files)
    if not splits:
        raise UserError(f"'{root}' names no images: fill ImageSets/Main/train.txt, or put XML files into {xmls.name}.")
    out = []
    for stem, split in splits.items():
        if stem not in files:
            raise UserError(f"'{xmls / stem}.xml' does not exist, but a list in ImageSets/Main names '{stem}'.")
        out.append((files[stem], _image_of(files[stem], stem, images, folder), split))
    return out, _without_xml(folder, images, files, {image for _, image, _ in out}) + left_out(there.others, folder)


def _without_xml(folder: Path, images: dict[str, list[str]], xmls: dict[str, Path], used: set[str]) -> list[str]:
    """A sentence about images that no XML file is of, where there are any."""
    paths = [os.path.join(folder, name) for stem, names in images.items() if stem not in xmls for name in names]
    alone = [path for path in paths if path not in used]
    return without_annotations(alone, sum(map(len, images.values())), folder, "XML")


def _lists(root: Path) -> dict[str, Path]:
    """The lists of the splits, from ``ImageSets/Main``."""
    sets = subfolder(root, ["imagesets"])
    main = (subfolder(sets, ["main"]) or sets) if sets is not None else None
    if main is None:
        return {}
    files = {name: main / f"{name}.txt" for name in ("train", "val", "test", "trainval")}
    return {name: file for name, file in files.items() if file.is_file()}


def _listed(xmls: Path, lists: dict[str, Path], files: dict[str, Path]) -> dict[str, str | None]:
    """Stem -> split of what the lists name; None for what only ``trainval`` names, which comes last."""
    splits: dict[str, str | None] = {}
    for name, file in lists.items():
        for line, text in enumerate(read_lines(file), 1):
            if not text:
                continue
            stem = text if text in files else text.split()[0]  # lists of one class have a flag behind
            if name == "trainval":
                splits.setdefault(stem, None)
                continue
            other = splits.setdefault(stem, name)
            if other != name:
                raise UserError(f"{file}, line {line}: '{stem}' is in {other}.txt, too; remove it from one of them.")
            if stem not in files:
                raise UserError(
                    f"{file}, line {line}: there is no '{xmls / stem}.xml'. Write one (without objects, if nothing is"
                    " on the image), or remove the line."
                )
    return splits


def _beside(root: Path) -> tuple[list[_Pair], list[str]]:
    """XML files that lie beside their images."""
    folders: dict[Path, str | None] = {root: None}
    folders |= {folder: split_name(folder.name) for folder in subfolders(root) if split_name(folder.name)}
    out: list[_Pair] = []
    others: Counter[str] = Counter()
    for folder, split in folders.items():
        found, xmls = list_images(folder), _xmls(folder)
        images = _by_stem(found.images)
        others.update(found.others if xmls else ())
        out += [(xml, _image_of(xml, stem, images, folder), split) for stem, xml in xmls.items()]
        if xmls and (alone := sorted(images.keys() - xmls.keys())):
            raise UserError(
                f"{len(alone)} image(s) in '{folder}' have no XML file, for example '{images[alone[0]][0]}'. Write one"
                " without objects if nothing is on the image, or remove it."
            )
    if not out:
        raise UserError(
            f"'{root}' holds no VOC data: expected Annotations/*.xml and JPEGImages, or XML files beside the images."
        )
    return out, left_out(others, root)


def _by_stem(names: list[str]) -> dict[str, list[str]]:
    """Stem -> image files of that name."""
    images: dict[str, list[str]] = {}
    for name in names:
        images.setdefault(os.path.splitext(name)[0], []).append(name)
    return images


def _image_of(xml: Path, stem: str, images: dict[str, list[str]], folder: Path) -> str:
    names = images.get(stem, [])
    if len(names) == 1:
        return os.path.join(folder, names[0])
    filename = (parse_xml(xml).findtext("filename") or "").strip()
    found = find_file(filename, [folder]) if filename and (not names or filename in names) else None
    if found is not None:
        return found
    if names:
        raise UserError(f"'{xml}' could belong to {' or '.join(names)} in '{folder}'; rename one.")
    raise UserError(f"'{xml}': there is no image '{stem}' (.jpg, .png, ...) in '{folder}'.")
