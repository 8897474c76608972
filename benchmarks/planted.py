"""Pictures whose class is given away by a small patch, and by nothing else: the truth about where evidence lies.

    python -m benchmarks.planted classes data/planted --train 600 --val 100

writes a data set for ``classes`` (a picture has one patch), ``boxes`` (discs that all look alike, each with a patch
in it that says its class) or ``masks`` (the same discs as label maps), and ``evidence.json``: where the patches are.
What an explanation of a trained network says can be compared with it, see ``mass_on``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.photos import photo
from datamodules.common.files import read_json, write_json

Task = Literal["classes", "boxes", "masks"]
EVIDENCE = "evidence.json"
NAMES = ("checks", "columns", "rows", "slant")  # the classes, by the pattern of their patch; in order, as folders are
COLORS = ((40, 40, 230), (230, 160, 20), (30, 190, 60), (200, 40, 200))  # RGB, of the pattern's bright half
MOST_DISCS = 3


@dataclass(frozen=True)
class Scene:
    """A picture and the truth about it; P objects (of ``classes`` one: the picture).

    Attributes:
        image: uint8 (H, W, 3), RGB.
        labels: int64 (P,), numbers in ``NAMES``.
        patches: int64 (P, 4), x1 y1 x2 y2 pixel edges: the evidence of each object.
        boxes: int64 (P, 4), x1 y1 x2 y2: the objects.
        mask: uint8 (H, W): 0 background, 1 + label on an object.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
    patches: NDArray[np.int64]
    boxes: NDArray[np.int64]
    mask: NDArray[np.uint8]


def pattern(label: int, side: int) -> NDArray[np.uint8]:
    """A patch of a class: uint8 (side, side, 3), black and its color in stripes or checks two pixels wide."""
    rows, columns = np.indices((side, side)) // 2
    bright = ((rows + columns) % 2, columns % 2, rows % 2, (np.indices((side, side)).sum(0) // 3) % 2)[label]
    return np.asarray(bright[..., None] * np.array(COLORS[label]), np.uint8)


def picture_with_patch(rng: np.random.Generator, side: int, patch: int, classes: int) -> Scene:
    """A photo-like picture with one patch somewhere; the patch's pattern is the picture's class."""
    image = photo(rng, side, side)
    label = int(rng.integers(classes))
    x, y = rng.integers(0, side - patch + 1, 2).tolist()
    image[y : y + patch, x : x + patch] = pattern(label, patch)
    place = np.array([[x, y, x + patch, y + patch]])
    return Scene(
        image, np.array([label]), place, np.array([[0, 0, side, side]]), np.full((side, side), 1 + label, np.uint8)
    )


def picture_with_discs(rng: np.random.Generator, side: int, patch: int, classes: int) -> Scene:
    """A photo-like picture with one to three gray discs that do not touch; the patch inside a disc is its class."""
    image, mask = photo(rng, side, side), np.zeros((side, side), np.uint8)
    labels: list[int] = []
    patches, boxes = [], []
    for _ in range(int(rng.integers(1, MOST_DISCS + 1))):
        radius = int(rng.integers(side // 7, side // 5 + 1))
        x, y = rng.integers(radius, side - radius, 2).tolist()
        box = (x - radius, y - radius, x + radius + 1, y + radius + 1)
        if mask[max(0, box[1] - 2) : box[3] + 2, max(0, box[0] - 2) : box[2] + 2].any():
            continue
        label = int(rng.integers(classes))
        shade = int(rng.integers(120, 190))
        cv2.circle(image, (x, y), radius, (shade, shade, shade), -1)
        cv2.circle(mask, (x, y), radius, 1 + label, -1)
        away = max(0.0, radius - patch * 0.71 - 1.5)  # the patch's corners stay in the disc
        angle, far = rng.uniform(0, 2 * np.pi), away * np.sqrt(rng.uniform())
        left, top = int(x + far * np.cos(angle) - patch / 2), int(y + far * np.sin(angle) - patch / 2)
        image[top : top + patch, left : left + patch] = pattern(label, patch)
        labels.append(label)
        patches.append((left, top, left + patch, top + patch))
        boxes.append(box)
    return Scene(image, np.array(labels), np.array(patches), np.array(boxes), mask)


def write_planted(
    folder: str | Path,
    task: Task,
    counts: Mapping[str, int],
    *,
    side: int = 64,
    patch: int | None = None,
    classes: int = 4,
    seed: int = 0,
) -> Path:
    """Write a data set that our datamodules read: class folders, COCO's JSON, or images and masks.

    Args:
        folder: Where to; made if it is not there.
        task: ``classes``, ``boxes`` or ``masks``.
        counts: Pictures of each split.
        side: Of the pictures, in pixels.
        patch: Side of the patches; a sixth of the picture's by default, an eighth with discs.
        classes: 2 to 4.
        seed: The same pictures for the same seed.

    Returns:
        The folder, the data's ``source``.
    """
    root = Path(folder)
    draw: Callable[..., Scene] = picture_with_patch if task == "classes" else picture_with_discs
    wide = patch or max(4, side // (6 if task == "classes" else 8))
    evidence: dict[str, list[list[int]]] = {}
    for number, (split, count) in enumerate(counts.items()):
        scenes = []
        for i in range(count):
            scenes.append(draw(np.random.default_rng([seed, number, i]), side, wide, classes))
            name = f"{split}_{i:04d}.png"
            evidence[name] = scenes[-1].patches.tolist()
            _write_scene(root, task, split, name, scenes[-1])
        if task == "boxes":
            write_json(root / "annotations" / f"instances_{split}.json", _coco(scenes, split, classes))
    write_json(root / EVIDENCE, evidence)
    return root


def read_evidence(folder: str | Path) -> dict[str, NDArray[np.int64]]:
    """Where the patches are: name of the picture's file -> int64 (P, 4), x1 y1 x2 y2; of boxes in their order."""
    written = read_json(Path(folder) / EVIDENCE) or {}
    return {name: np.array(places, np.int64).reshape(-1, 4) for name, places in written.items()}


def mass_on(heat: NDArray[Any], places: NDArray[Any] | Sequence[Sequence[int]]) -> float:
    """The fraction of an explanation's positive mass that lies within patches; NaN where it has none.

    Args:
        heat: float (H, W), of the picture's own pixels; what speaks against the class (below 0) does not count.
        places: (P, 4), x1 y1 x2 y2 pixel edges.
    """
    positive = np.maximum(heat, 0.0)
    inside = np.zeros(positive.shape, bool)
    for x1, y1, x2, y2 in places:
        inside[y1:y2, x1:x2] = True
    total = float(positive.sum())
    return float(positive[inside].sum()) / total if total else float("nan")


def _write_scene(root: Path, task: Task, split: str, name: str, scene: Scene) -> None:
    if task == "classes":
        _write_png(root / split / NAMES[int(scene.labels[0])] / name, scene.image)
        return
    _write_png(root / "images" / split / name, scene.image)
    if task == "masks":
        _write_png(root / "masks" / split / name, scene.mask)


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def _coco(scenes: Sequence[Scene], split: str, classes: int) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, scene in enumerate(scenes):
        height, width = scene.image.shape[:2]
        images.append({"id": i, "file_name": f"{split}_{i:04d}.png", "height": height, "width": width})
        for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, **box})
    names = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES[:classes])]
    return {"images": images, "annotations": annotations, "categories": names}


def main(argv: list[str] | None = None) -> int:
    """Write a data set.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planted", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("task", choices=("classes", "boxes", "masks"))
    parser.add_argument("folder")
    parser.add_argument("--train", type=int, default=600, help="pictures (600)")
    parser.add_argument("--val", type=int, default=100, help="pictures (100)")
    parser.add_argument("--side", type=int, default=64, help="pixels (64)")
    parser.add_argument("--patch", type=int, help="pixels; a sixth of the side by default, an eighth with discs")
    parser.add_argument("--classes", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    counts = {"train": given.train, "val": given.val}
    options = {"side": given.side, "patch": given.patch, "classes": given.classes, "seed": given.seed}
    print(write_planted(given.folder, given.task, counts, **options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
