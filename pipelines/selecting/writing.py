"""The chosen pictures as a list, as data to correct, and as tasks of labeling tools."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datamodules.common.files import atomic_path, write_text
from datamodules.decoding.images import read_image
from pipelines.outputs.formats.coco import to_xywh, write_coco
from pipelines.outputs.formats.labeling import Annotated, cvat_labels, label_config, write_cvat, write_labelstudio
from pipelines.outputs.names import safe_name
from pipelines.outputs.sheets import save_png
from pipelines.report.measured import short_names


def write_selection(
    folder: Path,
    chosen: Sequence[Annotated],
    columns: Mapping[str, Sequence[float]],
    class_names: Sequence[str],
    *,
    kind: str,
    several: bool,
    url: str,
    copy: bool,
    class_ids: Sequence[int] | None = None,
) -> Path:
    """Write ``selected.csv`` and, with the model's predictions, what labeling tools take.

    Args:
        folder: Made if it is missing.
        chosen: In the order of their ranks.
        columns: What is known of each.
        class_names: K.
        kind: ``tags``, ``boxes`` or ``masks``.
        several: Whether a picture has several tags.
        url: See ``write_labelstudio``.
        copy: Copy the pictures to ``images/``; the list and the tasks then name the copies.
        class_ids: Of COCO's categories.

    Returns:
        The list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = _names([one.path for one in chosen])
    if copy:
        chosen = [
            replace(one, path=str(_copied(one.path, folder / "images" / n)))
            for one, n in zip(chosen, names, strict=True)
        ]
    _write_list(folder / "selected.csv", chosen, columns, tagged=kind == "tags")
    write_cvat(folder / "cvat.xml", chosen, names)
    write_text(folder / "cvat_labels.json", cvat_labels(class_names, kind))
    write_labelstudio(folder / "label_studio.json", chosen, names, url)
    write_text(folder / "label_studio.xml", label_config(class_names, kind, several))
    if kind != "tags":
        _write_coco(folder / "coco.json", chosen, names, class_names, class_ids)
    return folder / "selected.csv"


def _names(paths: Sequence[str]) -> list[str]:
    """Below their common folder; of a picture in an archive or a video as a PNG file."""
    return [
        safe_name(name) + ("" if Path(path).is_file() else ".png")
        for name, path in zip(short_names(list(paths)), paths, strict=True)
    ]


def _copied(path: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(path).is_file():
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
        return target
    return save_png(read_image(path), target)


def _write_list(path: Path, chosen: Sequence[Annotated], columns: Mapping[str, Sequence[float]], tagged: bool) -> None:
    """``path`` is absolute, and ``label`` the model's guess, so that the corrected list is a ``--data.source``."""
    head = ["path", *(["label"] if tagged else []), "rank", *columns]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(head)
        for i, one in enumerate(chosen):
            label = [";".join(tag for tag, _ in one.tags)] if tagged else []
            place = str(Path(one.path).resolve()) if Path(one.path).is_file() else one.path
            rows.writerow([place, *label, i + 1, *(f"{column[i]:.6g}" for column in columns.values())])


def _write_coco(
    path: Path,
    chosen: Sequence[Annotated],
    names: Sequence[str],
    class_names: Sequence[str],
    class_ids: Sequence[int] | None,
) -> None:
    with write_coco(path, class_names, class_ids) as file:
        for number, (one, name) in enumerate(zip(chosen, names, strict=True), 1):
            file.add_image(number, name, one.size)
            for thing in one.things:
                label = list(class_names).index(thing.name)
                file.add_object(number, label, to_xywh(thing.box), score=thing.score, mask=thing.mask)
