"""Files of pseudo-labels of pixels: index PNGs with maps of confidence beside them, and a list of the pairs.

``labels.parquet`` has the columns ``path`` and ``mask``, which ``SegmentationData`` reads, and ``confidence_map``,
``confidence`` (the map's mean) and ``digest`` (of the PNGs). The PNGs are in the folder of the list's name. Where soft
labels were asked for, the column ``soft_mask`` names them, too; see ``datamodules.annotations.soft_masks``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.mask_files import load_mask
from datamodules.annotations.soft_masks import write_soft_mask
from pipelines.noisy_student.kinds.base import Chunks
from pipelines.noisy_student.kinds.tables import write_table
from pipelines.noisy_student.paths import listed, resolved
from pipelines.outputs.label_maps import label_png
from pipelines.outputs.palettes import Palette

MASKS, MAPS, SOFT = "masks", "confidence", "soft"
PNGS = "pngs"  # folder of all of them while they are made
STEPS = 255  # a confidence of 1 in a map

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class PixelFiles:
    """A list's columns: images, masks, maps of confidence and soft masks, where it has some; all absolute paths."""

    paths: list[str]
    masks: list[str]
    maps: list[str]
    soft: list[str] | None

    @property
    def folder(self) -> Path:
        """What all masks lie below."""
        return Path(os.path.commonpath([os.path.dirname(mask) for mask in self.masks]))


def write_pngs(folder: Path, name: str, palette: Palette, labels: Mask, levels: Mask, second: Any) -> dict[str, Any]:
    """Write the PNGs of one image.

    Args:
        folder: Where the folders of PNGs are.
        name: Of the files.
        palette: Colors of the classes.
        labels: uint8 (H, W), classes.
        levels: uint8 (H, W), confidences in ``STEPS``.
        second: uint8 (2, H, W), the next class and its confidence; None without soft labels.

    Returns:
        What the list says of it: ``name``, mean ``confidence``, and ``digest`` of the pixels.
    """
    mask_file, map_file, soft_file = (folder / kind / f"{name}.png" for kind in (MASKS, MAPS, SOFT))
    label_png(labels, palette, mask_file)
    map_file.parent.mkdir(parents=True, exist_ok=True)
    map_file.write_bytes(cv2.imencode(".png", levels)[1].tobytes())
    digest = hashlib.sha256(labels.tobytes() + levels.tobytes())
    if second is not None:
        planes = np.concatenate([labels[None], levels[None], second])
        write_soft_mask(planes, soft_file)
        digest.update(planes.tobytes())
    return {"name": name, "confidence": float(levels.mean()) / STEPS, "digest": digest.hexdigest()[:32]}


def merge_pixels(output: Path, pool: Chunks, rows: Sequence[dict[str, Any]], digest: str) -> None:
    """Move the PNGs of all chunks into the list's folder, and write the list.

    Args:
        output: The list.
        pool: The images and the folder of the chunks.
        rows: Of each image what ``write_pngs`` says.
        digest: Kept in the list.
    """
    folder = output.with_suffix("")
    if (pool.parts / PNGS).is_dir():  # else a merge was killed behind this move
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(pool.parts / PNGS, folder)
    columns = {
        "path": [listed(record["path"], output) for record in pool.records],
        "split": ["train"] * len(rows),
        "mask": [f"{folder.name}/{MASKS}/{row['name']}.png" for row in rows],
        "confidence_map": [f"{folder.name}/{MAPS}/{row['name']}.png" for row in rows],
        "confidence": [row["confidence"] for row in rows],
        "digest": [row["digest"] for row in rows],
    }
    if (folder / SOFT).is_dir():
        columns["soft_mask"] = [f"{folder.name}/{SOFT}/{row['name']}.png" for row in rows]
    write_table(columns, output, {"digest": digest})


def read_pixels(file: Path) -> PixelFiles:
    """Read what ``merge_pixels`` wrote, corrected by hand or not."""
    import pyarrow.parquet as pq

    table = pq.read_table(file).to_pydict()

    def files(column: str) -> list[str]:
        return [resolved(name, file) for name in table[column]]

    return PixelFiles(
        paths=files("path"),
        masks=files("mask"),
        maps=files("confidence_map" if "confidence_map" in table else "mask"),
        soft=files("soft_mask") if "soft_mask" in table else None,
    )


def read_mask(path: str) -> Mask:
    """Classes or confidences, uint8 (H, W)."""
    return load_mask(path).pixels.astype(np.uint8, copy=False)
