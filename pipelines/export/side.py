"""The export's side of a comparison: pictures through the runner alone, and what it finds as the task's predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.annotations.records import Record
from datamodules.common import rle
from datamodules.common.errors import UserError
from datamodules.decoding.video import is_frame
from pipelines.ensemble import members_of
from pipelines.export.onnx_file import with_inner
from pipelines.exported.metadata import metadata_path, read_metadata
from pipelines.exported.runner import Model, Run
from pipelines.exported.runtime import open_exported
from tasks.base import Task

Array = NDArray[Any]


class Export:
    """An exported file with the runner's own steps around it.

    Args:
        path: The file.
        task: The checkpoint's, whose classes count.
        class_names: Of the checkpoint, in its order.
        read: What the datamodule decodes a record with, for pictures that are no plain files.
    """

    def __init__(self, path: Path, task: Task, class_names: Sequence[str], read: Callable[[Record], Record]) -> None:
        self.path, self.task, self.read = path, task, read
        self.about = read_metadata(path, refused=True)
        self.class_names = list(class_names)
        self._check()
        open_exported(path, self.about["format"])  # says which package is missing
        self.model = Model(metadata_path(path))
        own = self.model.class_names
        #: The checkpoint's class of each of the export's.
        self.order = [self.class_names.index(name) for name in own]

    def _check(self) -> None:
        own, theirs = self.about["class_names"], self.class_names
        if sorted(own) != sorted(theirs):
            raise UserError(f"{self.path} has the classes {own}, but the checkpoint has {theirs}.")
        kind = type(members_of(self.task)[0]).__name__
        if self.about["task"] != kind:
            raise UserError(f"{self.path} is a {self.about['task']}, but the checkpoint is a {kind}.")

    def decoded(self, record: Record) -> Array:
        """The picture as the runner reads it, (H, W, C)."""
        image = record["image"]
        is_plain = isinstance(image, str) and not is_frame(image) and not image.endswith((".npy", ".tif", ".tiff"))
        if is_plain and self.about["input"]["dtype"] == "uint8" and self.about["input"]["channels"] in (1, 3):
            return np.asarray(self.model.read(image))
        return np.asarray(self.read(record)["image"])

    def found(self, records: Sequence[Record]) -> dict[str, Any]:
        """Predictions of pictures, in the form of ``Task.predict``."""
        prepared = [self.model.prepare(self.decoded(record)) for record in records]
        step = self.about["input"]["batch"] or len(prepared)
        results = []
        for first in range(0, len(prepared), step):
            part = prepared[first : first + step]
            outputs = self.model.run(self.model.batch([canvas for canvas, _ in part]))
            for i, (_, geometry) in enumerate(part):
                one = {name: value[i] for name, value in outputs.items()}
                results.append(self.model.finish(one, geometry, sure_only=False))
        return self.predictions(results)

    def predictions(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """What the runner gives, with the checkpoint's numbers of its class names."""
        if "probabilities" in results[0]:
            rows = [[result["probabilities"][name] for name in self.class_names] for result in results]
            values = torch.tensor(rows, dtype=torch.float32)
            is_multi = self.about["multi_label"]
            logits = values.logit(1e-7) if is_multi else values.clamp_min(1e-12).log()
            return {"logits": logits, "probabilities": values}
        if "mask" in results[0]:
            return {"mask": [self._label_map(result["mask"]) for result in results]}
        index = {name: k for k, name in enumerate(self.class_names)}
        predictions: dict[str, Any] = {
            "boxes": [torch.tensor(r["boxes"], dtype=torch.float32).reshape(-1, 4) for r in results],
            "scores": [torch.tensor(r["scores"], dtype=torch.float32) for r in results],
            "labels": [torch.tensor([index[name] for name in r["classes"]], dtype=torch.int64) for r in results],
        }
        if "masks" in results[0]:
            predictions["masks"] = [
                rle.of_masks(torch.from_numpy(np.stack(r["masks"]))) if r["masks"] else [] for r in results
            ]
        return predictions

    def _label_map(self, mask: Array) -> Tensor:
        if self.about["multi_label"]:
            whole = np.empty_like(mask)
            whole[self.order] = mask
            return torch.from_numpy(whole)
        table = np.arange(256, dtype=np.uint8)
        table[: len(self.order)] = self.order
        return torch.from_numpy(table[mask])


def run_with_inner(path: Path, about: dict[str, Any]) -> Run:
    """A function of a batch that returns the inner values of a graph, too, by their names in ``pipelines.export``."""
    names = about["inner"]
    if about["format"] == "torch_export":
        return open_exported(path, "torch_export")
    if about["format"] == "openvino":
        return _openvino_with_inner(path, names)
    with TemporaryDirectory() as folder:
        copy = Path(folder, "inner.onnx")
        with_inner(path, copy, names)
        return open_exported(copy, "onnx")


def _openvino_with_inner(path: Path, names: Sequence[str]) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    known = {name for op in model.get_ops() for output in op.outputs() for name in output.get_names()}
    model.add_outputs([name for name in names if name in known])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(batch: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for output, value in compiled(batch).items():
            found.update(dict.fromkeys(output.get_names(), np.array(value)))
        return found

    return run
