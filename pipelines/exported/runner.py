"""Runs an exported model: from a picture to classes, boxes or masks in original pixels.

    python NAME_runner.py PICTURE ...                 one JSON line a picture
    from NAME_runner import Model; Model("NAME.json")("picture.jpg")

This file and NAME.json belong to the exported file NAME.onnx, NAME.xml or NAME.pt2 beside them. It needs numpy, cv2
(opencv-python-headless) and the file's runtime: onnxruntime, openvino, or torch with torchvision.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]
Run = Callable[[Array], dict[str, Array]]

INTERPOLATIONS = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST_EXACT,
}
STRIP = 256  # rows of a picture that are decided at once
LEAST_SIDE = 1e-2  # pixels; boxes with a shorter side lie outside of the picture


class Model:
    """An exported model with all that it needs around it; a call takes a picture and returns what is found.

    Args:
        metadata: NAME.json.
        threads: Of the runtime; 0 lets it choose.
    """

    def __init__(self, metadata: str | Path, threads: int = 0) -> None:
        self.about: dict[str, Any] = json.loads(Path(metadata).read_text(encoding="utf-8"))
        self.class_names: list[str] = self.about["class_names"]
        self.run = open_model(Path(metadata).with_name(self.about["file"]), self.about["format"], threads)

    def __call__(self, source: str | Path | Array, sure_only: bool = True) -> dict[str, Any]:
        """What is found on a picture.

        Args:
            source: A file, or uint8 (H, W, C) in the order of colors that the metadata name.
            sure_only: Leave out objects whose score is below their class's threshold.

        Returns:
            Of a classifier `label` and `probabilities` by class; of a segmentation `mask` uint8 (H, W), or (K, H, W)
            where a pixel may have several classes; of a detector lists `classes`, `scores`, `boxes` (x1 y1 x2 y2) and,
            where it has masks, `masks`, bool (H, W) each.
        """
        image = source if isinstance(source, np.ndarray) else self.read(source)
        canvas, geometry = self.prepare(image)
        outputs = self.run(self.batch([canvas]))
        return self.finish({name: value[0] for name, value in outputs.items()}, geometry, sure_only)

    def read(self, path: str | Path) -> Array:
        """The pixels of a file, turned as EXIF says: uint8 (H, W, C)."""
        data = np.fromfile(path, np.uint8)
        is_jpeg = bytes(data[:2]) == b"\xff\xd8"
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB if is_jpeg else cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError(f"{path} cannot be decoded")
        pixels = pixels if is_jpeg else _plain_colors(pixels)
        if self.about["input"]["channels"] == 1:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        return pixels

    def prepare(self, image: Array) -> tuple[Array, Array]:
        """A picture (H, W, C) on the canvas (h, w, C), and its geometry float32 (6,).

        The geometry is height, width, scale_x, scale_y, offset_x, offset_y: `x_canvas = x * scale_x + offset_x`.
        """
        rule, shape = self.about["resize"], (image.shape[0], image.shape[1])
        height, width, top, left, canvas = placement(shape, rule)
        scaled = resize(image, (height, width), INTERPOLATIONS[rule["interpolation"]])
        geometry = np.array([*shape, width / shape[1], height / shape[0], left, top], np.float32)
        return place(scaled, top, left, canvas, rule["fill"]), geometry

    def batch(self, canvases: Sequence[Array]) -> Array:
        """What the model takes: (B, C, h, w), uint8, or float32 in [0, 1] where the metadata say so."""
        stacked = np.ascontiguousarray(np.stack(canvases).transpose(0, 3, 1, 2))
        if self.about["input"]["dtype"] == "float32" and stacked.dtype == np.uint8:
            return stacked.astype(np.float32) / np.float32(255)
        return stacked

    def finish(self, outputs: dict[str, Array], geometry: Array, sure_only: bool = True) -> dict[str, Any]:
        """One picture's outputs to what is found, in original pixels; see the call."""
        if "probabilities" in outputs:
            return self._classes(outputs["probabilities"])
        if "scores" in outputs and "boxes" not in outputs:
            return {"mask": labels_in_original(outputs["scores"], geometry, self.about["multi_label"])}
        return self._objects(outputs, geometry, sure_only)

    def _classes(self, probabilities: Array) -> dict[str, Any]:
        values = dict(zip(self.class_names, probabilities.tolist(), strict=True))
        best: Any = max(values, key=lambda name: values[name])
        if self.about["multi_label"]:
            best = [name for name, value in values.items() if value >= 0.5]
        return {"label": best, "probabilities": values}

    def _objects(self, outputs: dict[str, Array], geometry: Array, sure_only: bool) -> dict[str, Any]:
        limits = self.about["thresholds"]
        kept = np.flatnonzero(outputs["labels"] >= 0)
        if limits["suppression"] == "outside":
            kept = suppress(outputs["boxes"], outputs["scores"], outputs["labels"], kept, limits)
        boxes = (outputs["boxes"][kept] - geometry[[4, 5, 4, 5]]) / geometry[[2, 3, 2, 3]]
        boxes = boxes.clip(0, geometry[[1, 0, 1, 0]])
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
        if sure_only:
            keep &= outputs["scores"][kept] >= np.array(limits["per_class"], np.float32)[outputs["labels"][kept]]
        kept, boxes = kept[keep], boxes[keep]
        found: dict[str, Any] = {
            "classes": [self.class_names[k] for k in outputs["labels"][kept]],
            "scores": outputs["scores"][kept].tolist(),
            "boxes": boxes.tolist(),
        }
        if "masks" in outputs:
            size = round(float(geometry[0])), round(float(geometry[1]))
            pairs = zip(outputs["masks"][kept], boxes.tolist(), strict=True)
            found["masks"] = [paste(grid, box, *size) for grid, box in pairs]
        return found


def open_model(path: Path, kind: str, threads: int = 0) -> Run:
    """A function of a batch that returns the outputs by name, float32 or int64."""
    if kind == "onnx":
        return _open_onnx(path, threads)
    return _open_openvino(path, threads) if kind == "openvino" else _open_torch(path, threads)


def _open_onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names, given = [output.name for output in session.get_outputs()], session.get_inputs()[0].name
    return lambda batch: dict(zip(names, session.run(names, {given: batch}), strict=True))


def _open_openvino(path: Path, threads: int) -> Run:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    names = [output.get_any_name() for output in model.outputs]
    return lambda batch: {name: np.array(value) for name, value in zip(names, model(batch).values(), strict=True)}


def _open_torch(path: Path, threads: int) -> Run:
    import torch
    import torchvision  # noqa: F401 - its operators are in the file

    if threads:
        torch.set_num_threads(threads)
    model = torch.export.load(str(path)).module()

    @torch.inference_mode()
    def run(batch: Array) -> dict[str, Array]:
        return {name: value.numpy() for name, value in model(torch.from_numpy(batch)).items()}

    return run


# Onto the canvas.


def _plain_colors(pixels: Array) -> Array:
    """What cv2 decoded unchanged, as uint8 (H, W, 3) RGB; transparency is laid over white."""
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB))
    if pixels.shape[2] == 4:
        color, alpha = pixels[..., :3].astype(np.uint32), pixels[..., 3:].astype(np.uint32)
        pixels = ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., ::-1])


def placement(shape: tuple[int, int], rule: dict[str, Any]) -> tuple[int, int, int, int, tuple[int, int]]:
    """Height and width that a picture is resized to, top and left of it on the canvas, and the canvas."""
    if rule["rule"] == "native":
        return *shape, 0, 0, shape
    canvas = rule["height"], rule["width"]
    if rule["rule"] == "stretch" or shape == canvas:
        return *canvas, 0, 0, canvas
    ratios = canvas[0] / shape[0], canvas[1] / shape[1]
    if rule["rule"] == "letterbox":
        height, width = (max(1, min(c, round(s * min(ratios)))) for c, s in zip(canvas, shape, strict=True))
    else:
        scale = max(ratios) / rule["crop_pct"]
        height, width = (max(c, round(s * scale)) for c, s in zip(canvas, shape, strict=True))
    return height, width, (canvas[0] - height) // 2, (canvas[1] - width) // 2, canvas


def resize(image: Array, size: tuple[int, int], interpolation: int) -> Array:
    """Resize to height and width; the mean over the area where a side shrinks by more than 2."""
    if image.shape[:2] == size:
        return image
    shrink = max(image.shape[0] / size[0], image.shape[1] / size[1])
    if shrink > 2 and interpolation in (cv2.INTER_LINEAR, cv2.INTER_CUBIC):
        interpolation = cv2.INTER_AREA
    resized = cv2.resize(image, size[::-1], interpolation=interpolation)
    if interpolation == cv2.INTER_CUBIC and resized.dtype == np.float32:
        resized = resized.clip(0, 1)
    return np.asarray(resized).reshape(*size, image.shape[2])


def place(image: Array, top: int, left: int, canvas: tuple[int, int], fill: int) -> Array:
    """Crop or fill to the canvas."""
    part = image[max(-top, 0) :, max(-left, 0) :][: canvas[0], : canvas[1]]
    value = fill if image.dtype == np.uint8 else fill / 255
    top, left = max(top, 0), max(left, 0)
    bottom, right = canvas[0] - top - part.shape[0], canvas[1] - left - part.shape[1]
    return np.pad(part, ((top, bottom), (left, right), (0, 0)), constant_values=value)


# Back to original pixels.


def suppress(boxes: Array, scores: Array, labels: Array, kept: Array, limits: dict[str, Any]) -> Array:
    """Of two boxes of a class that overlap more than `nms_iou` the lower is dropped; places, the best first."""
    order = kept[np.argsort(-scores[kept], kind="stable")]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    chosen: list[int] = []
    while len(order) and len(chosen) < limits["max_detections"]:
        best, order = order[0], order[1:]
        chosen.append(int(best))
        shared = np.minimum(boxes[order, 2:], boxes[best, 2:]) - np.maximum(boxes[order, :2], boxes[best, :2])
        overlap = shared.clip(0).prod(1)
        iou = overlap / (areas[order] + areas[best] - overlap)
        order = order[(iou <= limits["nms_iou"]) | (labels[order] != labels[best])]
    return np.array(chosen, np.int64)


def labels_in_original(scores: Array, geometry: Array, multi_label: bool) -> Array:
    """Enlarge scores (K, h, w) linearly to the original picture, then decide: uint8 (H, W), or (K, H, W)."""
    height, width, scale_x, scale_y, left, top = (float(value) for value in geometry)
    rows = between(round(height), scale_y, top, scores.shape[1])
    columns = between(round(width), scale_x, left, scores.shape[2])
    strips = []
    for first in range(0, round(height), STRIP):  # so that memory does not grow with the picture
        part = _enlarged(scores, 1, *(values[first : first + STRIP] for values in rows))
        part = _enlarged(part, 2, *columns)
        labels = part > 0.5 if multi_label or len(part) == 1 else part.argmax(0)[None]
        strips.append(labels.astype(np.uint8))
    whole = np.concatenate(strips, 1)
    return whole if multi_label else whole[0]


def _enlarged(scores: Array, axis: int, before: Array, after: Array, part: Array) -> Array:
    first, second = scores.take(before, axis), scores.take(after, axis)
    enlarged: Array = first + (second - first) * part.reshape([-1 if i == axis else 1 for i in range(3)])
    return enlarged


def between(size: int, scale: float, offset: float, limit: int) -> tuple[Array, Array, Array]:
    """For each original pixel the two canvas pixels around its center, and the second one's part."""
    place = (np.arange(size) + 0.5) * scale + offset - 0.5
    low = max(0.0, offset)
    high = min(limit, offset + round(size * scale)) - 1.0  # not mixed with what is filled around the picture
    place = place.clip(low, max(low, high))
    before = np.floor(place).astype(np.int64)
    return before, (before + 1).clip(max=limit - 1), (place - before).astype(np.float32)


def paste(grid: Array, box: Sequence[float], height: int, width: int) -> Array:
    """An object's mask, bool (height, width), from probabilities (m, m) on a grid that fills its box."""
    x1, y1, x2, y2 = box
    mask = np.zeros((height, width), bool)
    top, rows = _weights(y1, y2, height, len(grid))
    left, columns = _weights(x1, x2, width, len(grid))
    mask[top : top + len(rows), left : left + len(columns)] = rows @ grid @ columns.T >= 0.5
    return mask


def _weights(low: float, high: float, side: int, cells: int) -> tuple[int, Array]:
    """The first pixel whose center lies in the box, and each pixel's weights (n, cells) of the grid's cells."""
    first, last = max(0, math.ceil(low - 0.5)), min(side, math.floor(high - 0.5) + 1)
    place = (np.arange(first, last) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    return first, np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


if __name__ == "__main__":
    model = Model(__file__.removesuffix("_runner.py") + ".json")
    for picture in sys.argv[1:]:
        print(json.dumps({"picture": picture, **model(picture)}, default=lambda array: array.astype(int).tolist()))
