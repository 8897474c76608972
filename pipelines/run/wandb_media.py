"""What W&B shows beside numbers: overlaid pictures, tables with pictures, artifacts; other loggers get none of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from datamodules.common.batch import IGNORE
from datamodules.splits import split_digest
from pipelines.run.tracking import WandbRun

GRAY = 128
MAX_CLASSES = IGNORE - 1  # W&B's masks are 8-bit: the classes, then "no object", and 255 for what is ignored


class Overlaid(NamedTuple):
    """An image uint8 (H, W, C) with annotations in its pixels, as ``pipelines.outputs.drawing`` describes them.

    Boxes and masks become W&B's own overlays, which can be switched on and off for each class.
    """

    image: NDArray[Any]
    truth: Mapping[str, NDArray[Any]] | None = None
    prediction: Mapping[str, NDArray[Any]] | None = None
    caption: str = ""


def trackers(loggers: Sequence[Logger]) -> list[WandbLogger]:
    """Those of the loggers that are W&B's; none on other ranks than 0."""
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    return [logger for logger in loggers if is_first and isinstance(logger, WandbLogger)]


def log_image(loggers: Sequence[Logger], key: str, image: str | Path | NDArray[Any], step: int) -> None:
    """Show a picture in Weights & Biases; does nothing for other loggers.

    Args:
        loggers: The trainer's loggers.
        key: Name, as ``val/confusion_matrix``.
        image: PNG file, or uint8 (H, W, 3) or (H, W).
        step: Optimizer step.
    """

    def make() -> dict[str, Any]:
        import wandb

        return {key: wandb.Image(os.fspath(image) if isinstance(image, str | Path) else image)}

    _log_made(loggers, make, step)


def log_overlaid(
    loggers: Sequence[Logger], key: str, pictures: Sequence[Overlaid], class_names: Sequence[str], step: int
) -> None:
    """Show pictures whose boxes and masks can be switched on and off for each class.

    W&B keeps one size for pictures of a row, so that smaller ones are filled up at the right and below.

    Args:
        loggers: As above.
        key: Name, as ``val_overlays``.
        pictures: Images with what is true and what is predicted.
        class_names: K names.
        step: Optimizer step.
    """

    def make() -> dict[str, Any]:
        heights, widths = zip(*(picture.image.shape[:2] for picture in pictures), strict=True)
        filled = [_filled(picture, max(heights), max(widths)) for picture in pictures]
        return {key: [_native(picture, class_names) for picture in filled]}

    if pictures:
        _log_made(loggers, make, step)


def log_table(
    loggers: Sequence[Logger],
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int,
    class_names: Sequence[str] = (),
) -> None:
    """Show a table in Weights & Biases; does nothing for other loggers.

    Args:
        loggers: As above.
        key: Name, as ``test/predictions``.
        columns: Column names.
        rows: One list of plain values and ``Overlaid`` pictures per row.
        step: Optimizer step.
        class_names: Of the pictures.
    """

    def make() -> dict[str, Any]:
        import wandb

        data = [[_native(cell, class_names) if isinstance(cell, Overlaid) else cell for cell in row] for row in rows]
        return {key: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)}

    _log_made(loggers, make, step)


def log_data(loggers: Sequence[Logger], run_name: str, datamodule: Any) -> None:
    """Log which data a run sees, as an artifact of the type ``dataset``; where ``log_model`` asks for artifacts.

    It has the digest of the splits as an alias. W&B gives the same content the same version, so that the versions of
    the artifact are those of the data.

    Args:
        loggers: As above.
        run_name: Of the run; the artifact is ``data-NAME``.
        datamodule: The data; without records there is nothing to log.
    """
    records = getattr(datamodule, "records", None)
    asking = [logger for logger in trackers(loggers) if isinstance(logger, WandbRun)]
    asking = [logger for logger in asking if logger.settings.log_model != "none"]
    if not records or not asking:
        return
    digest = split_digest(records)
    images = {split: len(own) for split, own in records.items() if own and split != "predict"}
    facts = {"digest": digest, "images": images, "classes": list(datamodule.class_names)}

    def log(run: Any) -> None:
        import wandb

        name = re.sub(r"[^\w.-]", "-", f"data-{run_name}")
        artifact = wandb.Artifact(name, type="dataset", metadata=facts)
        with artifact.new_file("data.json", encoding="utf-8") as file:
            json.dump(facts, file, indent=1, ensure_ascii=False)
        run.log_artifact(artifact, aliases=["latest", digest])

    for logger in asking:
        logger.act(log)


def _log_made(loggers: Sequence[Logger], make: Callable[[], dict[str, Any]], step: int) -> None:
    for logger in trackers(loggers):
        if isinstance(logger, WandbRun):
            logger.log_made(make, step)
        else:  # the user's own
            logger.log_metrics(make(), step)


def _filled(picture: Overlaid, height: int, width: int) -> Overlaid:
    """The picture on a canvas of that size, gray where it has nothing; masks are ignored or empty there."""
    rows, columns = height - picture.image.shape[0], width - picture.image.shape[1]

    def fill(annotation: Mapping[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]] | None:
        if annotation is None:
            return None
        outside = {"mask": IGNORE, "masks": 0}
        return {
            key: np.pad(v, [(0, 0)] * (v.ndim - 2) + [(0, rows), (0, columns)], constant_values=outside[key])
            if key in outside
            else v
            for key, v in annotation.items()
        }

    image = np.pad(picture.image, [(0, rows), (0, columns), (0, 0)], constant_values=GRAY)
    return Overlaid(image, fill(picture.truth), fill(picture.prediction), picture.caption)


def _native(picture: Overlaid, class_names: Sequence[str]) -> Any:
    """W&B's image with W&B's overlays."""
    import wandb

    boxes: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for name, annotation in (("ground_truth", picture.truth), ("predictions", picture.prediction)):
        if annotation and "boxes" in annotation:
            boxes[name] = _boxes(annotation, class_names)
        if annotation and len(class_names) <= MAX_CLASSES:
            masks |= _masks(name, annotation, class_names)
    image = picture.image[..., 0] if picture.image.shape[-1] == 1 else picture.image
    classes = [{"id": number, "name": label} for number, label in _labels(class_names).items()]
    has_overlays = bool(boxes or masks)
    return wandb.Image(
        image,
        caption=picture.caption or None,
        boxes=boxes or None,
        masks=masks or None,
        classes=classes if has_overlays else None,
    )


def _labels(class_names: Sequence[str]) -> dict[int, str]:
    """What the numbers in a mask mean."""
    return {**dict(enumerate(class_names)), len(class_names): "no object", IGNORE: "ignored"}


def _boxes(annotation: Mapping[str, NDArray[Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Boxes in absolute pixels; those with a label below 0 are padding."""
    boxes = annotation["boxes"]
    labels = annotation.get("labels", np.zeros(len(boxes), np.int64))
    scores = annotation.get("scores")
    found = []
    for i, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        if label < 0:
            continue
        name = class_names[label] if label < len(class_names) else str(label)
        entry: dict[str, Any] = {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
            "domain": "pixel",
            "class_id": label,
            "box_caption": name,
        }
        if scores is not None:
            score = float(scores[i])
            entry |= {"scores": {"score": score}, "box_caption": f"{name} {score:.2f}"}
        found.append(entry)
    return {"box_data": found, "class_labels": dict(enumerate(class_names))}


def _masks(name: str, annotation: Mapping[str, NDArray[Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Label maps uint8 (H, W); of classes that may overlap, one each."""
    labels, nothing = _labels(class_names), len(class_names)
    if "mask" in annotation:
        mask = annotation["mask"]
        if mask.ndim == 2:
            return {name: {"mask_data": mask.astype(np.uint8), "class_labels": labels}}
        planes = [np.where(plane == IGNORE, IGNORE, np.where(plane == 1, k, nothing)) for k, plane in enumerate(mask)]
        named = {f"{name}_{k}": plane.astype(np.uint8) for k, plane in enumerate(planes)}
        return {key: {"mask_data": plane, "class_labels": labels} for key, plane in named.items()}
    if "masks" in annotation and "labels" in annotation:
        return {name: {"mask_data": label_map(annotation, nothing), "class_labels": labels}}
    return {}


def label_map(annotation: Mapping[str, NDArray[Any]], nothing: int) -> NDArray[np.uint8]:
    """The classes of objects as one map uint8 (H, W); the better object lies on top, ``nothing`` is where none is."""
    masks, labels = annotation["masks"], annotation["labels"]
    result = np.full(masks.shape[-2:], nothing, np.uint8)
    scores = annotation.get("scores", -np.arange(len(labels)))
    for i in np.argsort(scores, kind="stable"):
        area = (masks == i + 1).any(0) if masks.dtype == np.int16 else masks[i] != 0
        if labels[i] >= 0:
            result[area] = labels[i]
    return result
