"""Writes an exported file, the metadata that describe it, and the runner that needs nothing else."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.common.files import atomic_path, write_json, write_text
from pipelines import __version__
from pipelines.ensemble import members_of
from pipelines.export.graph import (
    Dynamic,
    Shape,
    Stages,
    exported_program,
    first_line,
    is_inner,
    task_for_export,
    write_onnx,
)
from pipelines.exported import runner
from pipelines.exported.metadata import REFUSED, metadata_path
from pipelines.run.checkpoints import carried_text
from tasks.base import Task

Format = Literal["onnx", "torch_export", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]
#: What each format needs besides torch, and what the extra of that name installs.
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
CALIBRATION_IMAGES = 128
#: Height and width that a graph of open sizes is traced with, at least: a map of one pixel would stay one for ever.
#: https://docs.pytorch.org/docs/stable/export.html (sizes 0 and 1 are always specialized)
LEAST_EXAMPLE = 512


@dataclass(frozen=True)
class Settings:
    """How a model is exported.

    Attributes:
        format: Of the file.
        precision: Of weights and activations.
        dynamic: What may differ from call to call: ``batch``, ``size``.
        nms: Whether boxes are suppressed in the graph or by the runner.
    """

    format: Format = "onnx"
    precision: Precision = "fp32"
    dynamic: Sequence[Dynamic] = ()
    nms: Literal["inside", "outside"] = "inside"

    def check(self, task: Task) -> None:
        """Refuse what does not go together, before anything is computed.

        Raises:
            UserError: Naming the flag.
        """
        if task.finds_boxes and len(members_of(task)) > 1:
            raise UserError("--ckpt_path names several detectors: export one checkpoint; test and predict fuse boxes.")
        unknown = [name for name in self.dynamic if name not in get_args(Dynamic)]
        if unknown:
            raise UserError(f"--dynamic is '{','.join(self.dynamic)}'; it takes batch, size, or batch,size.")
        if self.nms == "outside" and not task.finds_boxes:
            raise UserError(
                f"--nms is 'outside', but a {type(members_of(task)[0]).__name__} finds no boxes: leave it out."
            )
        if self.format == "torch_export" and self.precision == "int8":
            raise UserError("--precision is 'int8', which --format torch_export has not: use onnx or openvino.")
        needed: tuple[str, ...] = NEEDS.get(self.format, ())
        needed = (*needed, "onnxruntime") if self.precision != "fp32" and needed else needed
        for package in needed:
            if not _version(package):
                raise UserError(
                    f"--format {self.format} needs the package {package}: pip install"
                    f" 'vision-pipelines[{'onnx,openvino' if self.format == 'openvino' else 'onnx'}]'."
                )


def shape_of(task: Task, data: DataModule, dynamic: Sequence[Dynamic]) -> Shape:
    """The images that a graph takes: those of evaluation.

    Raises:
        UserError: If pictures come in their own sizes, and the graph would take one.
    """
    transform = data.make_transform(train=False)
    size = transform.size or data.canvas()
    is_open = "size" in dynamic
    if transform.resize == "native" and not is_open:
        raise UserError(
            "data.resize is 'native', so that pictures come in their own sizes: export with --dynamic size, or give"
            " --data.resize letterbox."
        )
    return Shape(
        channels=int(task.in_chans or 3),
        height=None if is_open else size[0],
        width=None if is_open else size[1],
        batch=None if "batch" in dynamic else 1,
        dtype=getattr(data, "dtype", "uint8"),
        example=(_example(size[0]), _example(size[1])) if is_open else (size[0], size[1]),
    )


def _example(side: int) -> int:
    """A side to trace open sizes with, which padding adds to: a graph traced without would keep that as a rule."""
    side = max(side, LEAST_EXAMPLE)
    return side + 8 if side % 32 == 0 else side


def write_export(
    task: Task, data: DataModule, checkpoints: Sequence[Path], target: Path, settings: Settings
) -> dict[str, Any]:
    """Write ``NAME.onnx`` (or ``.xml``, ``.pt2``), ``NAME.json`` and ``NAME_runner.py``.

    Args:
        task: With the weights of the checkpoint, or of several.
        data: Set up, where 8 bits are to be calibrated on its training images.
        checkpoints: For their digests and the config that the first carries.
        target: The file; its folder is made.
        settings: How.

    Returns:
        The metadata.

    Raises:
        UserError: If the network cannot be exported.
    """
    shape = shape_of(task, data, settings.dynamic)
    if task.finds_boxes:
        task.suppresses_inside = settings.nms == "inside"  # type: ignore[assignment]
    stages = task_for_export(task)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f"{target.stem}{REFUSED}{target.suffix}").unlink(missing_ok=True)
    write = _write_torch if settings.format == "torch_export" else _write_onnx_or_openvino
    exporter, inner = write(stages, shape, target, settings, data)
    about = {
        **_about_model(task, data, shape, settings),
        "file": target.name,
        "exporter": exporter,
        "outputs": _outputs(stages, shape),
        "inner": inner,
        "checkpoints": [{"file": path.name, "sha256": _digest(path)} for path in checkpoints],
        "versions": _versions(),
        "config": carried_text(checkpoints[0]),
        "task_state": task.state(),
        "verified": None,
    }
    write_json(metadata_path(target), about)
    write_text(target.with_name(f"{target.stem}_runner.py"), Path(runner.__file__).read_text(encoding="utf-8"))
    return about


def _write_torch(
    stages: Stages, shape: Shape, target: Path, settings: Settings, data: DataModule
) -> tuple[str, list[str]]:
    if settings.precision == "fp16":
        stages.task.half()
    try:
        program = exported_program(stages, shape)
        with atomic_path(target) as path:
            # It may refuse what it has traced: `math.ceil` of an open size, for one, has no place in a file.
            torch.export.save(program, str(path))
    except OSError:
        raise
    except Exception as error:
        advice = " Leave --dynamic size out, or take --format onnx." if "size" in settings.dynamic else ""
        raise UserError(f"this network cannot be exported by torch.export: {first_line(error)}.{advice}") from error
    with torch.no_grad():
        return "torch.export", [name for name in stages(shape.images()) if is_inner(name)]


def _write_onnx_or_openvino(
    stages: Stages, shape: Shape, target: Path, settings: Settings, data: DataModule
) -> tuple[str, list[str]]:
    from pipelines.export.onnx_file import hide_inner, to_fp16, to_int8

    with TemporaryDirectory(dir=target.parent, prefix=".export") as folder:
        path = Path(folder, target.stem + ".onnx")
        exporter, _ = write_onnx(stages, shape, path)
        inner = hide_inner(path)
        if settings.precision == "int8":
            to_int8(path, calibration_images(data, shape))
        elif settings.precision == "fp16" and settings.format == "onnx":
            to_fp16(path)
        if settings.format == "openvino":
            _write_openvino(path, Path(folder, target.name), settings)
            os.replace(path.with_suffix(".bin"), target.with_suffix(".bin"))
        os.replace(Path(folder, target.name), target)
    return str(exporter), inner


def _write_openvino(path: Path, target: Path, settings: Settings) -> None:
    import openvino

    model = openvino.convert_model(str(path))
    openvino.save_model(model, str(target), compress_to_fp16=settings.precision == "fp16")


def calibration_images(data: DataModule, shape: Shape) -> list[NDArray[Any]]:
    """Training images without augmentation, as the graph takes them."""
    found: list[NDArray[Any]] = []
    size = shape.batch or 8
    for batch in data.train_features_dataloader():
        images = np.ascontiguousarray(batch["image"].numpy())
        found += [images[first : first + size] for first in range(0, len(images) - size + 1, size)]
        if len(found) * size >= CALIBRATION_IMAGES:
            break
    if not found:
        raise UserError("--precision is 'int8', but there are no training images to calibrate on.")
    return found[: max(1, CALIBRATION_IMAGES // size)]


# Metadata.


def _about_model(task: Task, data: DataModule, shape: Shape, settings: Settings) -> dict[str, Any]:
    """What the runner needs to know."""
    transform = data.make_transform(train=False)
    names = getattr(data, "class_names", None) or [str(k) for k in range(int(task.num_classes or 0))]
    return {
        "format": settings.format,
        "precision": settings.precision,
        "task": type(members_of(task)[0]).__name__,
        "class_names": list(names),
        "multi_label": bool(getattr(task, "multi_label", False)),
        "input": {
            "name": "image",
            "dtype": shape.dtype,
            "layout": "(batch, channels, height, width)",
            "colors": {1: "gray", 3: "RGB"}.get(shape.channels, "as in the file"),
            "channels": shape.channels,
            "height": shape.height,
            "width": shape.width,
            "batch": shape.batch,
            "normalization": "inside the graph",
        },
        "resize": {
            "rule": transform.resize,
            "height": (transform.size or shape.example)[0],
            "width": (transform.size or shape.example)[1],
            "crop_pct": transform.crop_pct,
            "interpolation": getattr(data, "interpolation", "bilinear"),
            "fill": transform.fill,
        },
        "thresholds": _thresholds(task, settings),
    }


def _thresholds(task: Task, settings: Settings) -> dict[str, Any] | None:
    if not task.finds_boxes:
        return None
    values = {key: getattr(task, key) for key in ("min_score", "nms_iou", "max_detections")}
    return {**values, "suppression": settings.nms, "per_class": task.thresholds().tolist()}  # type: ignore[operator]


def _outputs(stages: Stages, shape: Shape) -> list[dict[str, Any]]:
    with torch.no_grad():
        values = stages(shape.images())
    return [
        {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        for name, value in values.items()
        if not is_inner(name)
    ]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    names: Iterable[str] = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")
    found = {name: _version(name) for name in names}
    return {"python": platform.python_version(), "pipelines": __version__, **{k: v for k, v in found.items() if v}}


def file_size(about: dict[str, Any], target: Path) -> int:
    """Bytes of an exported file, the weights beside it included."""
    weights = target.with_suffix(".bin") if about["format"] == "openvino" else None
    return target.stat().st_size + (weights.stat().st_size if weights else 0)
