"""Which reader a source of images and masks is for."""

from __future__ import annotations

from pathlib import Path

from datamodules.annotations.records import Listing
from datamodules.common.errors import UserError
from datamodules.decoding.shards import is_shards
from datamodules.groups import is_pattern
from datamodules.readers.class_files import CLASSES_FILE, read_class_file
from datamodules.readers.coco import is_coco
from datamodules.readers.coco_masks import read_coco_masks
from datamodules.readers.lists import read_mask_list
from datamodules.readers.pairs import has_layout, read_pairs
from datamodules.readers.shards import read_shard_masks
from datamodules.readers.tables import LIST_SUFFIXES, SPLIT_FIELD, lists_of_splits
from datamodules.readers.voc_masks import is_voc, read_voc_masks

CLASS_FILES = (CLASSES_FILE, "class_names.txt")


def is_coco_source(source: str, *, by_pattern: bool) -> bool:
    """Whether a source is read by ``read_coco_masks``, without mask files."""
    path = Path(source)
    return path.suffix == ".json" or (path.is_dir() and not by_pattern and is_coco(path))


def read_mask_source(
    source: str,
    images: str | None,
    masks: str | None,
    class_names: list[str] | None,
    *,
    multi_label: bool,
    image_root: str | None = None,
    group: str | None = None,
) -> Listing:
    """Read a folder of images and masks, in whatever layout, tar shards, COCO's file, or a list.

    Args:
        source: ``data.source``.
        images: ``data.images``.
        masks: ``data.masks``.
        class_names: ``data.class_names``; it chooses among COCO's categories, and among folders of binary masks.
        multi_label: ``data.multi_label``.
        image_root: ``data.image_root``, for lists and COCO files.
        group: ``data.group``, which may be a column of a list.

    Returns:
        Records with ``mask``, see ``annotations.masks.decode_mask``; class names as far as the source gives some, also
        by a ``classes.txt``, one name a line.

    Raises:
        UserError: If the source, or a file that it names, does not exist.
        UserError: If its layout is not known, or pairs are not complete.
    """
    if is_shards(source):
        return _of_shards(source, images or masks, image_root)
    path = Path(source)
    if SPLIT_FIELD not in source and not path.exists():
        raise UserError(
            f"data.source '{source}' does not exist (looked in {Path.cwd()}). Put or link the images there, or set"
            " --data.source to a folder of images and masks, or a COCO .json file."
        )
    by_pattern = images is not None or masks is not None
    if is_coco_source(source, by_pattern=by_pattern):
        return read_coco_masks(path, class_names, multi_label=multi_label, image_root=image_root)
    if _is_list(source, by_pattern=by_pattern):
        if by_pattern:
            raise UserError(f"data.images is set, but data.source '{source}' is a list, which names its files.")
        listing = read_mask_list(source, image_root, None if group is None or is_pattern(group) else group)
        return listing._replace(class_names=_class_file(path if path.is_dir() else path.parent))
    if not path.is_dir():
        raise UserError(
            f"data.source '{source}' is neither a folder nor a COCO .json file, nor a .csv, .parquet or .txt list."
        )
    if image_root is not None:
        raise UserError(
            f"data.image_root is set, but data.source '{source}' is neither a list nor COCO's; leave it out."
        )
    if by_pattern:
        listing = _in_order(read_pairs(path, images, masks), class_names)
    else:
        listing = read_voc_masks(path) if is_voc(path) else read_pairs(path)
    return listing if listing.class_names else listing._replace(class_names=_class_file(path))


def _of_shards(source: str, pattern: str | None, image_root: str | None) -> Listing:
    if pattern is not None or image_root is not None:
        key = "image_root" if pattern is None else "images or data.masks"
        raise UserError(f"data.{key} is set, but data.source '{source}' is tar shards, which need none; leave it out.")
    return read_shard_masks(source)


def _is_list(source: str, *, by_pattern: bool) -> bool:
    """Whether a source is a list, or a folder of lists that has no layout of its own."""
    path = Path(source)
    if SPLIT_FIELD in source or path.suffix.lower() in LIST_SUFFIXES:
        return True
    return path.is_dir() and not by_pattern and bool(lists_of_splits(path)) and not (is_voc(path) or has_layout(path))


def _class_file(root: Path) -> list[str]:
    names = read_class_file(root, CLASS_FILES) or []
    return [name for name in names if name != "__ignore__"]  # labelme's name for unlabeled pixels


def _in_order(listing: Listing, names: list[str] | None) -> Listing:
    """Only the classes of ``names``, in that order, where there is one mask a class."""
    if names is None or not listing.class_names or names == listing.class_names:
        return listing
    unknown = [name for name in names if name not in listing.class_names]
    if unknown:
        raise UserError(
            f"data.class_names lists {unknown}, for which data.masks matches no file; it does for"
            f" {listing.class_names}."
        )
    places = [listing.class_names.index(name) for name in names]
    records = [{**record, "mask": [record["mask"][i] for i in places]} for record in listing.records]
    empty = [record["path"] for record in records if not any(record["mask"])]
    if empty:
        raise UserError(
            f"{len(empty)} image(s) have a mask of none of data.class_names {names}: {', '.join(empty[:5])}. Move them"
            " elsewhere, or add a black mask of one class."
        )
    return listing._replace(records=records, class_names=list(names))
