"""Image folders: one folder per class, with or without split folders above."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from datamodules.annotations.records import Listing, Record, split_name
from datamodules.common.errors import UserError, did_you_mean
from datamodules.decoding.files import (
    is_image_name,
    left_out,
    only_folder,
    only_images,
    skipped_files,
    subfolders,
    walk_images,
)

_NO_SPLIT = ("unlabeled", "unlabelled")  # may stand beside the split folders, for semi-supervised training


def read_folder(root: str | Path) -> Listing:
    """Read ``root/SPLIT/CLASS/*`` or ``root/CLASS/*``, images at any depth below their class.

    Splits are ``train``, ``val`` (``valid``, ``validation``) and ``test``, in any case and as ``Training``,
    ``seg_test``, ``val_set`` and the like; without split folders each record's split is None. Classes are sorted by
    name, those of ``train`` where there is such a folder. A folder with nothing but one folder of folders in it is
    passed through. Hidden folders and those of systems are skipped.

    Raises:
        UserError: If there is no such folder.
        UserError: If a class folder is empty or has splits in it, a class of ``val`` or ``test`` is not in ``train``,
            images lie outside class folders, or there are no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"Image folder '{root}' does not exist (looked in {Path.cwd()}).")
    top = _inner(root, splits=True)
    folders = subfolders(top)
    splits = {split: _inner(folder) for split, folder in _splits(folders).items()}
    if splits:
        _refuse_others(top, folders, splits)
    class_names = _all_classes(top, splits)
    others: Counter[str] = Counter()
    records: list[Record] = []
    parts: dict[str | None, Path] = {s: splits[s] for s in ("train", "val", "test") if s in splits} or {None: top}
    for split, folder in parts.items():
        _check_classes(folder, class_names, splits.get("train", top))
        records += _read_classes(folder, class_names, split, others)
    notes = [f"Classes are the folders in '{top}', the only folder in '{root}'."] if top != root else []
    return Listing(records, class_names, notes=(*notes, *left_out(others, root)))


def _refuse_others(top: Path, folders: list[Path], splits: dict[str, Path]) -> None:
    """Refuse folders beside those of splits."""
    others = [f.name for f in folders if split_name(f.name) is None and f.name.lower() not in _NO_SPLIT]
    if others:
        raise UserError(
            f"'{top}' has split folders ({', '.join(f.name for f in splits.values())}) and others beside them:"
            f" {', '.join(others)}. Move the others elsewhere, or rename the split folders if they are classes."
        )


def _all_classes(top: Path, splits: dict[str, Path]) -> list[str]:
    """The classes of the training images, or of all where no folder is that of training."""
    if "train" in splits or not splits:
        return _class_names(splits.get("train", top))
    return sorted({name for folder in splits.values() for name in _class_names(folder)})


def has_class_folders(root: Path) -> bool:
    """Whether a folder has split folders with folders of classes in them."""
    return any(subfolders(folder) for folder in _splits(subfolders(root)).values())


def _inner(folder: Path, *, splits: bool = False) -> Path:
    """The folder, or the one in it where that is all there is, and has folders in it (and is no split)."""
    while True:
        inner = only_folder(folder)
        if inner is None or only_images(inner) or (splits and split_name(inner.name)):
            return folder
        folder = inner


def _splits(folders: list[Path]) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for folder in folders:
        split = split_name(folder.name)
        if split in splits:
            raise UserError(f"'{splits[split]}' and '{folder}' are both the {split} split; merge or rename one.")
        if split is not None:
            splits[split] = folder
    return splits


def _check_classes(folder: Path, class_names: list[str], train: Path) -> None:
    """Refuse classes that there are no training images of."""
    for name in _class_names(folder):
        if name not in class_names:
            raise UserError(
                f"Class '{name}' is in '{folder}' but not in '{train}'.{did_you_mean(name, class_names)} Add training"
                " images of it, or remove the folder."
            )


def _class_names(folder: Path) -> list[str]:
    names = [p.name for p in subfolders(folder)]
    loose = sorted(p.name for p in folder.iterdir() if is_image_name(p.name))
    if loose:
        raise UserError(
            f"'{folder}' holds {len(loose)} image(s) outside class folders, for example '{loose[0]}'. Put each image"
            f" into a folder named after its class: {folder / 'CLASS' / loose[0]}."
        )
    if not names:
        raise UserError(f"'{folder}' holds no images: expected one folder per class in it, with the images inside.")
    return names


def _read_classes(folder: Path, class_names: list[str], split: str | None, others: Counter[str]) -> list[Record]:
    """The records of a folder of classes; files left out because of their suffix are added to ``others``."""
    records: list[Record] = []
    for label, name in enumerate(class_names):
        if not (folder / name).is_dir():
            continue
        _refuse_splits_below(folder, name)
        found = walk_images(folder / name)
        if not found.images:
            left_out = f" {skipped_files(found.others)}" if found.others else ""
            raise UserError(f"Class folder '{folder / name}' holds no image files. Fill it or remove it.{left_out}")
        others.update(found.others)
        records += [{"image": path, "path": path, "label": label, "split": split} for path in found.images]
    return records


def _refuse_splits_below(folder: Path, name: str) -> None:
    """Refuse ``CLASS/train`` and ``CLASS/val``: the images of both would be mixed, and split again."""
    below = [f.name for f in subfolders(folder / name) if split_name(f.name)]
    if len({split_name(word) for word in below}) > 1:
        raise UserError(
            f"Class folder '{folder / name}' has the splits {', '.join(below)} in it: put the splits above the classes,"
            f" {folder / below[0] / name}."
        )
