"""Sections of a report about segmented images."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.outputs import page
from pipelines.outputs.drawing import error_picture, overlay
from pipelines.outputs.palettes import class_palette
from pipelines.outputs.sheets import Picture
from pipelines.report import parts, pixels
from pipelines.report.measured import Measured
from pipelines.report.regions import FOUND, KINDS, TOLERANCE, Errors, errors_of
from pipelines.report.scoring import FEW, scored

SHOWN = 8
MAX_MATRIX = 25
SIZES = 4
SIDE = 200


def sections(measured: Measured, said: str) -> list[tuple[str, str]]:
    """Title and HTML of each section; ``said`` of the temperature."""
    before = pixels.confidences(measured)
    after = pixels.confidences(measured, measured.temperature) if measured.temperature != 1 else None
    losses = [pixels.loss(measured, t) for t in (1.0, measured.temperature)]
    found = {i: errors_of(*both) for i in range(len(measured)) if (both := pixels.maps(measured, i)) is not None}
    sampled = f"{len(before[0]):,} pixels all over the images. {said}"
    return [
        ("Classes", _classes(measured)),
        ("Confusions", _confusions(measured)),
        ("Calibration", parts.calibration(measured, before, after, sampled, losses) if len(before[0]) else ""),
        ("Thresholds", _thresholds(measured)),
        ("Kinds of errors", _kinds(measured, found)),
        ("Size of the regions", _sizes(found)),
        ("Properties of the pictures", parts.properties(measured, pixels.scorer, pixels.MAIN)),
        ("Mistakes", _mistakes(measured)),
    ]


def described(measured: Measured) -> str:
    """How the pixels are shared among the classes."""
    true = pixels.tables(measured)[2].sum(0)
    order = np.argsort(-true, kind="stable")[:12]
    total = max(1, int(true.sum()))
    return ", ".join(f"{page.escaped(measured.class_names[k])}: {true[k] / total:.1%}" for k in order.tolist())


def _classes(measured: Measured) -> str:
    hits, found, true = (table.sum(0) for table in pixels.tables(measured))
    images = (pixels.tables(measured)[2] > 0).sum(0)
    iou = scored(measured, pixels.class_scorer(measured), FEW)
    rows = []
    for k, name in enumerate(measured.class_names):
        precision, recall = (f"{hits[k] / total[k]:.4f}" if total[k] else "" for total in (found, true))
        score = parts.with_interval(iou[str(k)]) if found[k] + true[k] else "does not occur"
        rows.append([page.escaped(name), f"{images[k]:,}", f"{true[k]:,}", precision, recall, score])
    return page.table(["class", "images", "pixels", "precision", "recall", "IoU [95 %]"], rows)


def _confusions(measured: Measured) -> str:
    matrix, names = pixels.confusion(measured), measured.class_names
    return page.matrix(matrix, names) if len(names) <= MAX_MATRIX else ""


def _thresholds(measured: Measured) -> str:
    """What is gained where pixels below a probability are left open."""
    confidence, right, _ = pixels.confidences(measured, measured.temperature)
    words = "accuracy of the pixels that are taken", "fraction of the pixels"
    return parts.thresholds(confidence, right, *words) if len(confidence) else ""


def _kinds(measured: Measured, found: dict[int, Errors]) -> str:
    if not found:
        return ""
    shares = np.array([[one.kinds[kind] for kind in KINDS] for one in found.values()])
    some = measured.take(np.array(list(found)))
    each = scored(some, lambda counts: {k: counts @ shares[:, i] / counts.sum(1) for i, k in enumerate(KINDS)}, FEW)
    rows = [
        [kind, f"{each[kind]['mean']:.2%}", f"{each[kind]['low']:.2%} to {each[kind]['high']:.2%}", what]
        for kind, what in KINDS.items()
    ]
    intro = (
        f"<p>Mean fraction of an image's annotated pixels, in maps of at most {pixels.MAP_SIDE} pixels a side; the"
        f" tolerance is {TOLERANCE:.2%} of the diagonal. A region is a connected part of one class; it is found where"
        f" {FOUND:.0%} of it is right.</p>"
    )
    return intro + page.table(["kind", "pixels", "95 %", "a wrong pixel where"], rows, texts=(0, 3))


def _sizes(found: dict[int, Errors]) -> str:
    regions = [(region, image) for image, one in found.items() for region in one.regions]
    if len(regions) < 10 * SIZES:
        return ""
    area = np.array([region.area for region, _ in regions])
    is_found = np.array([region.right >= FOUND for region, _ in regions])
    right = np.array([region.right for region, _ in regions])
    edges = np.unique(np.quantile(area, np.linspace(0, 1, SIZES + 1)))
    number = np.clip(np.searchsorted(edges, area, side="right") - 1, 0, len(edges) - 2)
    rows = []
    for part in range(len(edges) - 1):
        mine = number == part
        ends = f"{edges[part]:.3%} to {edges[part + 1]:.3%}"
        rows.append([ends, f"{mine.sum():,}", f"{is_found[mine].mean():.1%}", f"{right[mine].mean():.1%}"])
    head = ["size, of the image", "true regions", "found", "mean fraction that is right"]
    return page.table(head, rows)


def _mistakes(measured: Measured) -> str:
    iou = pixels.image_ious(measured)
    worst = np.argsort(np.where(np.isnan(iou), 2.0, iou), kind="stable")[:SHOWN].tolist()
    confidence, right, image = pixels.confidences(measured, measured.temperature)
    loss = np.bincount(image[~right], weights=confidence[~right], minlength=len(measured))
    sure = [i for i in np.argsort(-loss, kind="stable").tolist() if i not in worst and loss[i] > 0][:SHOWN]
    intro = "Picture, truth, prediction; wrong pixels in red."
    return parts.mistakes("The worst images", intro, [_figure(measured, i, iou) for i in worst]) + parts.mistakes(
        "The most confident mistakes",
        "Images whose wrong pixels are surest.",
        [_figure(measured, i, iou) for i in sure],
    )


def _figure(measured: Measured, image: int, iou: NDArray[np.float64]) -> tuple[str, str]:
    caption = f"mean IoU {iou[image]:.3f}<br>{page.escaped(measured.names[image])}"
    return "".join(parts.thumbnail(tile, SIDE) for tile in tiles(measured, image)), caption


def tiles(measured: Measured, image: int) -> list[Picture | None]:
    """The picture, and where they are known its truth, prediction and errors, of one size."""
    shown, both = parts.original(measured, image), pixels.maps(measured, image)
    if both is None:
        return [shown]
    truth, found = both
    height, width = truth.shape
    small = np.full((height, width, 3), 128, np.uint8) if shown is None else cv2.resize(shown, (width, height))
    palette = class_palette(measured.class_names, None)
    return [small, overlay(small, truth, palette), overlay(small, found, palette), error_picture(small, truth, found)]


def image_scores(measured: Measured) -> NDArray[np.float64]:
    """How good each image's answer is, (N,): the mean IoU of its own classes."""
    return pixels.image_ious(measured)


def pictures(one: Measured, other: Measured, image: int) -> str:
    """An image, its truth and the predictions of two models."""
    first, second = tiles(one, image), tiles(other, image)
    return "".join(parts.thumbnail(tile, SIDE) for tile in (*first[:3], *second[2:3]))


def answer(measured: Measured, image: int) -> str:
    """How good a model's answer is."""
    return f"mean IoU {pixels.image_ious(measured.take([image]))[0]:.3f}"
