"""Which files of a folder are images, and where a file is that a list names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datamodules.common.errors import UserError, examples
from datamodules.decoding.contents import exists
from datamodules.decoding.video import is_video, list_frames

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".npy"),
)
#: What systems and their servers put into folders by themselves; AppleDouble files (``._x``) begin with a dot.
_SYSTEM = frozenset(
    {"@eadir", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler", "system volume information"}
    | {"__macosx", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
)
#: Suffixes of files that are no pictures and lie beside them in many sets.
_TEXTS = (
    *(".txt", ".xml", ".json", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".md", ".html", ".names", ".data"),
    *(".cache", ".py", ".ipynb", ".log", ".pdf", ".docx", ".mat", ".db"),
)


def is_visible(name: str) -> bool:
    """Whether a file or folder is neither hidden (``.name``) nor a system's own."""
    return not name.startswith(".") and name.lower() not in _SYSTEM


def is_image_name(name: str) -> bool:
    """Whether a file's name, without folders, has a suffix of ``IMAGE_SUFFIXES`` and is visible."""
    return name.lower().endswith(IMAGE_SUFFIXES) and is_visible(name)


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted."""
    return sorted(p for p in folder.iterdir() if is_visible(p.name) and p.is_dir())


def subfolder(folder: Path, names: Iterable[str]) -> Path | None:
    """The folder in a folder that has the first of these names, in any case; None where there is none."""
    by_name = {p.name.lower(): p for p in reversed(subfolders(folder))} if folder.is_dir() else {}
    return next((by_name[name] for name in names if name in by_name), None)


def find_file(name: str, roots: Iterable[str | Path]) -> str | None:
    """Where a file is that a list names, from the first of these folders that has it; None where none has.

    Backslashes, which Windows' programs write, are tried as slashes.
    """
    spellings = (name, name.replace("\\", "/")) if "\\" in name else (name,)
    places = (os.path.join(root, spelling) for root in roots for spelling in spellings)
    return next((place for place in places if exists(place)), None)


def only_folder(folder: Path) -> Path | None:
    """The folder in a folder that holds no image and no other folder."""
    inside = subfolders(folder)
    return inside[0] if len(inside) == 1 and not any(is_image_name(name) for name in os.listdir(folder)) else None


def only_images(folder: Path) -> bool:
    """Whether a folder holds images, or no folders."""
    return not subfolders(folder) or any(is_image_name(name) for name in os.listdir(folder))


class Found(NamedTuple):
    """What ``scan_images`` finds."""

    images: list[str]  # paths, sorted
    others: Counter[str]  # suffix -> number of files that are no images and no texts


def left_out(others: Counter[str], source: str | Path) -> list[str]:
    """What a reader says of files that were left out because of their suffix: one note, or none."""
    return [f"'{source}': {skipped_files(others)}"] if others else []


def list_images(folder: str | Path) -> Found:
    """Names of the images right in a folder, and what was left out there; see ``find_images``."""
    names = sorted(name for name in os.listdir(folder) if is_visible(name))
    images = [name for name in names if is_image_name(name)]
    rest = [name for name in names if not is_image_name(name) and os.path.isfile(os.path.join(folder, name))]
    return Found(images, count_others(rest))


def count_others(names: Iterable[str]) -> Counter[str]:
    """Suffix -> number, of files that are no images and no texts."""
    suffixes = (os.path.splitext(name)[1].lower() for name in names if not is_image_name(name))
    return Counter(suffix for suffix in suffixes if suffix not in _TEXTS)


def find_images(source: str | Path) -> list[str]:
    """List image files: the file itself, a video's frames, or all images in a folder and its sub-folders, sorted.

    Hidden files and folders and those of systems are skipped. Linked folders are followed, each real folder being
    visited once, so that loops end; a link to a file that is there already gives no second picture.

    Raises:
        UserError: If ``source`` does not exist, the folder holds no file with a suffix of ``IMAGE_SUFFIXES``, or the
            video cannot be decoded.
    """
    return scan_images(source).images


def scan_images(source: str | Path) -> Found:
    """``find_images``, and what was left out because of its suffix.

    Raises:
        UserError: As ``find_images``.
    """
    root = Path(source)
    if root.is_file():
        return Found(list_frames(root) if is_video(root) else [str(root)], Counter())
    if not root.is_dir():
        raise UserError(f"'{root}' does not exist (looked in {Path.cwd()}); give an image file or a folder.")
    found = walk_images(root)
    if not found.images:
        left_out = f" {skipped_files(found.others)}" if found.others else ""
        raise UserError(
            f"Folder '{root}' holds no image files (known suffixes: {', '.join(IMAGE_SUFFIXES)}).{left_out}"
        )
    return found


def skipped_files(others: Counter[str]) -> str:
    """A sentence about files that were left out."""
    kinds = examples([f"{count:,} {suffix or 'without a suffix'}" for suffix, count in others.most_common()], 5)
    return (
        f"{others.total():,} file(s) were left out because of their suffix ({kinds}). Pictures among them must be saved"
        " as JPEG or PNG."
    )


def walk_images(root: str | Path) -> Found:
    """Files below a folder, each real folder being visited once; see ``find_images``."""
    images: list[str] = []
    links: list[str] = []
    rest: list[str] = []
    seen: set[str] = set()
    folders, linked = [str(root)], list[str]()
    while folders or linked:  # real folders first, then the linked ones found among them
        folder = folders.pop() if folders else linked.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if not is_visible(entry.name):
                continue
            if entry.is_dir():
                (linked if entry.is_symlink() else folders).append(entry.path)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                (links if entry.is_symlink() else images).append(entry.path)
            else:
                rest.append(entry.name)
    return Found(sorted(images + _new(links, images)), count_others(rest))


def _new(links: list[str], images: list[str]) -> list[str]:
    """The links to files that are neither among the images nor behind an earlier link."""
    known = {_identity(path) for path in images} if links else set()
    new = []
    for path in links:
        identity = _identity(path)
        if identity not in known:
            new.append(path)
            known.add(identity)
    return new


def _identity(path: str) -> tuple[int, int] | str:
    """What tells one file from another, whatever their names; a broken link's own name."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    return found.st_dev, found.st_ino
