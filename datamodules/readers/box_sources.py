"""Sources of boxes: one reader for all formats, and which format a source has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from datamodules.annotations.records import Listing
from datamodules.common.errors import UserError
from datamodules.decoding.files import only_folder
from datamodules.decoding.shards import is_shards
from datamodules.readers.box_csv import is_box_table, read_box_csv
from datamodules.readers.coco import is_coco, read_coco, read_coco_folder
from datamodules.readers.createml import read_createml
from datamodules.readers.cvat import is_cvat, read_cvat
from datamodules.readers.json_files import is_kind, json_kind
from datamodules.readers.labelme import read_labelme
from datamodules.readers.labelstudio import read_labelstudio
from datamodules.readers.shards import read_shard_boxes
from datamodules.readers.tables import SPLIT_FIELD, lists_of_splits
from datamodules.readers.via import read_via
from datamodules.readers.voc_boxes import Difficult, read_voc_boxes
from datamodules.readers.voc_layouts import has_xmls
from datamodules.readers.yolo_sets import is_yolo
from datamodules.readers.yolo_text import read_yolo

Format = Literal["coco", "voc", "yolo", "labelme", "createml", "via", "labelstudio", "cvat", "csv", "webdataset"]
WITHOUT_ROOT = ("voc", "yolo", "webdataset")  # whose files say themselves where the images are
_ROBOFLOW_CSV = "_annotations.csv"


def _is_csv(folder: Path) -> bool:
    return any(folder.glob(f"*/{_ROBOFLOW_CSV}")) or any(map(is_box_table, lists_of_splits(folder).values()))


_SIGNS: dict[Format, Callable[[Path], bool]] = {
    "coco": is_coco,
    "voc": lambda folder: has_xmls(folder) and not is_cvat(folder / "annotations.xml"),
    "yolo": is_yolo,
    "labelme": partial(is_kind, kind="labelme"),
    "createml": partial(is_kind, kind="createml"),
    "via": partial(is_kind, kind="via"),
    "labelstudio": partial(is_kind, kind="labelstudio"),
    "cvat": lambda folder: is_cvat(folder / "annotations.xml"),
    "csv": _is_csv,
}
_PROGRAMS: dict[Format, Callable[[Path, list[str] | None, str | Path | None], Listing]] = {
    "labelme": read_labelme,
    "createml": read_createml,
    "via": read_via,
    "labelstudio": read_labelstudio,
    "cvat": read_cvat,
}


def read_boxes(
    source: str | Path,
    format: Format | None = None,
    *,
    image_root: str | Path | None = None,
    class_names: list[str] | None = None,
    voc_one_based: bool = True,
    voc_difficult: Difficult = "ignore",
) -> Listing:
    """Read boxes, and masks where there are any, in any format that is known.

    Args:
        source: A file or a folder of one of the formats; see the reader of each.
        format: Which it is; by default what ``source`` looks like.
        image_root: Where file names start; VOC and YOLO have none.
        class_names: All classes in the order of their ids; COCO files name them.
        voc_one_based: Whether VOC's coordinates count pixels from 1.
        voc_difficult: What ``difficult`` objects of VOC become.

    Returns:
        The records (see ``read_coco``) and class names.

    Raises:
        UserError: If something is missing.
        UserError: If ``source`` looks like no format or several, an argument does not belong to its format, or the
            data are not as the reader of the format wants them.
    """
    if format is None:
        format = find_format(source)
    elif format not in get_args(Format):
        raise UserError(f"The format is '{format}'; it must be {', '.join(get_args(Format))}, or left out.")
    if image_root is not None and format in WITHOUT_ROOT:
        raise UserError(f"image_root is set, but '{source}' is read as {format}, which needs none.")
    if class_names is not None and format == "coco":
        raise UserError(f"class_names is set, but '{source}' is read as coco, which names its categories itself.")
    if format == "webdataset":
        return read_shard_boxes(str(source), class_names)
    source = find_folder(source)
    if format == "voc":
        return read_voc_boxes(source, class_names, one_based=voc_one_based, difficult=voc_difficult)
    if format == "yolo":
        return read_yolo(source, class_names)
    if format == "coco":
        return read_coco_folder(source, image_root) if source.is_dir() else read_coco(source, image_root)
    if format == "csv":
        is_roboflow = source.is_dir() and any(source.glob(f"*/{_ROBOFLOW_CSV}"))
        return read_box_csv(source / SPLIT_FIELD / _ROBOFLOW_CSV if is_roboflow else source, class_names, image_root)
    return _PROGRAMS[format](source, class_names, image_root)


def find_folder(source: str | Path) -> Path:
    """The source, or the folder in it that looks like a format: archives often come with one folder too many."""
    source = folder = Path(source)
    while folder.is_dir():
        if any(is_one(folder) for is_one in _SIGNS.values()):
            return folder
        inner = only_folder(folder)
        if inner is None:
            break
        folder = inner
    return source


def find_format(source: str | Path) -> Format:
    """Tell by the files which format this is.

    Raises:
        UserError: If there is no such file or folder.
        UserError: If it looks like none, or like several.
    """
    if is_shards(str(source)):
        return "webdataset"
    source = find_folder(source)
    if SPLIT_FIELD not in str(source) and not source.exists():
        raise UserError(
            f"data.source '{source}' does not exist (looked in {Path.cwd()}). Put or link the images there, or set"
            " --data.source to a folder in the layout of COCO, VOC or YOLO, a COCO .json or a YOLO .yaml file."
        )
    if not source.is_dir():
        return _format_of_file(source)
    found: list[Format] = [name for name, is_one in _SIGNS.items() if is_one(source)]
    if len(found) != 1:
        like = f"like {' and '.join(found)} at once" if found else "like none of coco, voc and yolo"
        raise UserError(
            f"'{source}' looks {like}. Say which it is (data.format, or convert's --format), or give the JSON or YAML"
            " file itself. COCO has annotations/*.json, VOC has Annotations/*.xml or XML files beside the images, YOLO"
            " has labels/*.txt."
        )
    return found[0]


def _format_of_file(file: Path) -> Format:
    known: dict[str, Format] = {".yaml": "yolo", ".yml": "yolo", ".data": "yolo", ".csv": "csv", ".parquet": "csv"}
    suffix = file.suffix.lower()
    if suffix == ".json":
        return json_kind(file)
    if suffix == ".xml" and is_cvat(file):
        return "cvat"
    if suffix not in known:
        raise UserError(
            f"'{file}' is neither a folder, nor a COCO file (.json), nor a YOLO data set (.yaml), nor a list of boxes"
            " (.csv). VOC's XML files are read by their folder."
        )
    return known[suffix]
