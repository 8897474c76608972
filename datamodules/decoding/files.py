"""Which files of a folder are images."""

from __future__ import annotations

import os
from pathlib import Path

from datamodules.common.errors import UserError
from datamodules.decoding.video import is_video, list_frames

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".npy"),
)


def is_image_name(name: str) -> bool:
    """Whether a file's name, without folders, has a suffix of ``IMAGE_SUFFIXES`` and is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def find_images(source: str | Path) -> list[str]:
    """List image files: the file itself, a video's frames, or all images in a folder and its sub-folders, sorted.

    Files and folders whose names start with a dot are skipped. Linked folders are followed, each real folder being
    visited once, so that loops end.

    Raises:
        UserError: If ``source`` does not exist, the folder holds no file with a suffix of ``IMAGE_SUFFIXES``, or the
            video cannot be decoded.
    """
    root = Path(source)
    if root.is_file():
        return list_frames(root) if is_video(root) else [str(root)]
    if not root.is_dir():
        raise UserError(f"'{root}' does not exist (looked in {Path.cwd()}); give an image file or a folder.")
    found = _walk(root)
    if not found:
        raise UserError(f"Folder '{root}' holds no image files (known suffixes: {', '.join(IMAGE_SUFFIXES)}).")
    return sorted(found)


def _walk(root: Path) -> list[str]:
    """Image files below a folder, each real folder being visited once."""
    found: list[str] = []
    seen: set[str] = set()
    pending = [str(root)]
    while pending:  # real folders first, then the linked ones found among them
        for folder, folders, files in os.walk(pending.pop(0)):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            found += [os.path.join(folder, f) for f in files if is_image_name(f)]
            visible = sorted(f for f in folders if not f.startswith("."))
            folders[:] = [f for f in visible if not os.path.islink(os.path.join(folder, f))]
            pending += [os.path.join(folder, f) for f in visible if f not in folders]
    return found
