"""Image folders: one folder per class, with or without split folders above."""

from __future__ import annotations

from pathlib import Path

from datamodules.annotations.records import Listing, Record, split_name
from datamodules.common.errors import UserError, did_you_mean
from datamodules.decoding.files import find_images, is_image_name, subfolders

_NO_SPLIT = ("unlabeled", "unlabelled")  # may stand beside the split folders, for semi-supervised training


def read_folder(root: str | Path) -> Listing:
    """Read ``root/SPLIT/CLASS/*`` or ``root/CLASS/*``, images at any depth below their class.

    Splits are ``train``, ``val`` (``valid``, ``validation``) and ``test``, in any case; without split folders each
    record's split is None. Classes are sorted by name, those of ``train`` where there is such a folder.

    Raises:
        UserError: If there is no such folder.
        UserError: If a class folder is empty, a class of ``val`` or ``test`` is not in ``train``, images lie outside
            class folders, or there are no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"Image folder '{root}' does not exist (looked in {Path.cwd()}).")
    folders = subfolders(root)
    splits = _splits(folders)
    if not splits:
        class_names = _class_names(root)
        return Listing(_read_classes(root, class_names, None), class_names)
    others = [f.name for f in folders if f not in splits.values() and f.name.lower() not in _NO_SPLIT]
    if others:
        raise UserError(
            f"'{root}' has split folders ({', '.join(f.name for f in splits.values())}) and others beside them:"
            f" {', '.join(others)}. Move the others elsewhere, or rename the split folders if they are classes."
        )
    if "train" in splits:
        class_names = _class_names(splits["train"])
    else:
        class_names = sorted({name for folder in splits.values() for name in _class_names(folder)})
    records: list[Record] = []
    for split in ("train", "val", "test"):
        if split in splits:
            _check_classes(splits[split], class_names, splits.get("train", root))
            records += _read_classes(splits[split], class_names, split)
    return Listing(records, class_names)


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


def _read_classes(folder: Path, class_names: list[str], split: str | None) -> list[Record]:
    records: list[Record] = []
    for label, name in enumerate(class_names):
        if not (folder / name).is_dir():
            continue
        try:
            paths = find_images(folder / name)
        except ValueError as error:
            raise UserError(f"Class folder '{folder / name}' holds no image files. Fill it or remove it.") from error
        records += [{"image": path, "path": path, "label": label, "split": split} for path in paths]
    return records
