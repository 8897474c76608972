"""A trained model as an object: ``load``, ``predict``, ``features``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.annotations.mask_checks import two_sizes
from datamodules.common.errors import UserError
from datamodules.common.geometry import original_size
from datamodules.decoding.limits import limit_pixels
from datamodules.loaders import Record
from pipelines.api.base import Result
from pipelines.api.results import ClassificationResult, DetectionResult, SegmentationResult
from pipelines.api.sources import Source, is_stream, records_of
from pipelines.ensemble import Ensemble
from pipelines.explaining.attribution import Settings, methods_of
from pipelines.explaining.pictures import Explanation, Plan, explain_records
from pipelines.explaining.targets import Wanted, label_of
from pipelines.hardware import Precision
from pipelines.inference import Batch, Predictor, load_predictor
from pipelines.outputs.formats.coco import category_ids
from pipelines.outputs.names import output_names, safe_name
from tasks.embeddings import embed


def load(
    checkpoint: str | Path | Sequence[str | Path],
    device: str | torch.device = "auto",
    *,
    precision: Precision | None = None,
    trust: str | Sequence[str] = (),
    **changes: Any,
) -> Model:
    """Load a trained model.

    Args:
        checkpoint: A run's ``checkpoints/best.ckpt``, or a copy of it anywhere: nothing else of the run is needed.
            Several are fused: mean of probabilities of classes and pixels, weighted boxes fusion. They need one task,
            the same classes, and the same view of a picture (``image_size``, ``resize``, ...).
        device: ``auto`` is the GPU where there is one; or as torch calls it, ``cpu``, ``cuda:1``.
        precision: ``32-true``, ``16-mixed`` or ``bf16-mixed``; that of the training by default, as for ``predict``.
        trust: Packages of your own whose classes the checkpoint may name, see SECURITY.md.
        changes: Arguments that differ from those of the training: ``data={"tile": 512}``, ``model={"tta": ["hflip"]}``.

    Raises:
        UserError: If there is no such file or device, the file is damaged or names foreign classes, or several do not
            go together.
    """
    if not isinstance(checkpoint, str | Path) and not len(checkpoint):
        raise UserError("load was given an empty list: give a checkpoint, or several.")
    unknown = sorted(changes.keys() - {"model", "data"})
    if unknown:
        raise UserError(f"load has no argument {unknown[0]}; it takes device, precision, trust, model and data.")
    given = {f"{part}.{key}": value for part, values in changes.items() for key, value in values.items()}
    if "data.image_size" in given:
        given.setdefault("model.image_size", None)  # the model's follows
    trusted = [trust] if isinstance(trust, str) else trust
    predictor = load_predictor(
        checkpoint, device=device, precision=precision, trust=trusted, changes=list(given.items())
    )
    return Model(predictor)


class Model:
    """A trained model; ``load`` makes it."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def __repr__(self) -> str:
        return f"<Model: {type(self._first).__name__} of {len(self.class_names)} classes on {self.predictor.device}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes."""
        return tuple(self.predictor.data.class_names or (str(k) for k in range(int(self._first.num_classes or 0))))

    @overload
    def predict(
        self,
        source: Source,
        *,
        stream: Literal[False] = False,
        threshold: float | None = None,
        batch_size: int | None = None,
    ) -> list[Any]: ...

    @overload
    def predict(
        self,
        source: Source,
        *,
        stream: Literal[True],
        threshold: float | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Any]: ...

    def predict(
        self,
        source: Source,
        *,
        stream: bool = False,
        threshold: float | None = None,
        batch_size: int | None = None,
    ) -> list[Any] | Iterator[Any]:
        """Predict pictures, with the preprocessing, tiles and thresholds of the command ``predict``.

        Args:
            source: A file, a folder (with its sub-folders), a video, a pattern (``new/**/*.jpg``) or a list of files
                (.txt, .csv, .parquet); a Pillow image; an array (H, W), (H, W, C) or (N, H, W, C), RGB, uint8, uint16
                or float in [0, 1]; a tensor (C, H, W) or (B, C, H, W) of these; or a list or an iterator of any of
                these. Pictures are not resized or normalized before: that is done here.
            stream: Return an iterator that reads and predicts as results are taken, for many pictures or endless ones.
            threshold: Of detections: the score from which on an object counts, in place of the checkpoint's own.
            batch_size: Pictures a batch; as in ``test`` by default.

        Returns:
            One result a picture, in their order: a list also for one picture. The type is the task's:
            ``ClassificationResult``, ``DetectionResult`` (with masks where the model finds some) or
            ``SegmentationResult``.

        Raises:
            UserError: If there is no such file, or it cannot be read, naming it.
        """
        if threshold is not None and not self._first.finds_boxes:
            raise UserError(
                f"threshold is {threshold}, but a {type(self._first).__name__} finds no boxes: leave it out."
            )
        results = self._results(*self._records(source, batch_size), threshold, ahead=not is_stream(source))
        return results if stream else list(results)

    def features(self, source: Source, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Embeddings of pictures, for search, clusters or a classifier of your own: float32 (N, D).

        Of a classification what its last layer sees; of a detection and a segmentation the mean over the picture of
        the backbone's last map. Tiles are not used.

        Args:
            source: As for ``predict``.
            batch_size: As for ``predict``.

        Raises:
            UserError: As ``predict``; and of several checkpoints, whose embeddings have nothing in common.
        """
        task = self.predictor.task
        if isinstance(task, Ensemble):
            raise UserError("features are one model's: load one checkpoint.")
        records, size = self._records(source, batch_size)
        found = []
        for batch in self.predictor.batches(records, size, ahead=not is_stream(source)):
            with torch.inference_mode(), self.predictor.computing():
                found.append(embed(task, batch["image"].to(self.predictor.device)).float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    def explain(
        self,
        source: Source,
        *,
        method: str | Sequence[str] | None = None,
        target: str | None = None,
        at: Sequence[int] | None = None,
        boxes: int = 1,
        faithful: bool = True,
        **settings: Any,
    ) -> list[Explanation]:
        """Which pixels the model answers by: the command ``explain``, see docs/explain.md.

        Args:
            source: As for ``predict``.
            method: One or several; all that can explain the network without further packages by default.
            target: The class by its name or number; by default what the model says.
            at: A point x, y or a rectangle x1, y1, x2, y2 in original pixels: the box there, or these pixels of a mask.
            boxes: Of a detector's picture, the surest ones.
            faithful: Measure each method on each picture.
            settings: ``layer``, ``fill``, ``steps``, ``samples``, ``noise``, ``window`` and ``seed``, as flags of the
                command.

        Returns:
            One a target, in the pictures' order; ``explanation.methods["gradcam"].heat`` is float32 (H, W), in original
            pixels.

        Raises:
            UserError: As ``predict``; and of several checkpoints, or where a named method cannot explain the network.
        """
        unknown = sorted(settings.keys() - {field.name for field in fields(Settings)})
        if unknown:
            known = ", ".join(field.name for field in fields(Settings))
            raise UserError(
                f"explain has no argument {unknown[0]}; beside method, target, at and boxes it takes {known}."
            )
        names = self.class_names
        wanted = Wanted(label_of(target, names), at, boxes)
        methods = methods_of(method if method is None or isinstance(method, str) else ",".join(method))
        records = list(self._records(source, 1)[0])
        plan = Plan(methods, Settings(**settings), wanted, faithful)
        return list(explain_records(self.predictor, records, names, plan, skip_refused=method is None))

    @property
    def _first(self) -> Any:
        """The task; of several the first."""
        task = self.predictor.task
        return task.tasks[0] if isinstance(task, Ensemble) else task

    def _records(self, source: Source, batch_size: int | None) -> tuple[Iterable[Record], int]:
        """Records, and how many pictures a batch has."""
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
        data = self.predictor.data
        limit_pixels(data.max_pixels)
        records: Iterable[Record] = records_of(source, data.on_corrupt)
        size = batch_size or data.eval_batch
        if is_stream(source):
            return records, size
        records = list(records)
        files = [record for record in records if isinstance(record["image"], str)]
        differ = batch_size is None and getattr(data, "resize", None) == "native" and len(two_sizes(files)) > 1
        return records, 1 if differ else size  # as `test`, which takes pictures of several sizes one by one

    def _results(
        self, records: Iterable[Record], size: int, threshold: float | None, *, ahead: bool
    ) -> Iterator[Result]:
        given: dict[int, Any] = {}  # pictures in memory, until their result is made
        names = iter(output_names([r["path"] for r in records])) if isinstance(records, list) else None

        def noted() -> Iterator[Record]:
            for number, record in enumerate(records):
                given[number] = None if isinstance(record["image"], str) else record["image"]
                yield record

        for batch in self.predictor.batches(noted(), size, ahead=ahead):
            outputs = self._shown(self.predictor.predict(batch), threshold)
            for i, number in enumerate(batch["id"].tolist()):
                name = safe_name(batch["path"][i]) if names is None else next(names)
                yield self._result(batch, outputs, i, name, given.pop(number))

    def _shown(self, outputs: dict[str, Any], threshold: float | None) -> dict[str, Any]:
        """What ``predict`` writes of a batch's predictions; or the objects of a score from ``threshold`` on."""
        if threshold is None:
            return dict(self._first.shown(outputs))
        kept: dict[str, Any] = {key: [] for key in outputs}
        for i, scores in enumerate(outputs["scores"]):
            keep = scores >= threshold
            for key, values in outputs.items():
                value = values[i]
                chosen = value[keep] if torch.is_tensor(value) else [v for v, k in zip(value, keep, strict=True) if k]
                kept[key].append(chosen)
        return kept

    def _result(self, batch: Batch, outputs: dict[str, Any], i: int, name: str, image: Any) -> Result:
        data = self.predictor.data
        classes = self.class_names
        common: dict[str, Any] = {
            "path": batch["path"][i],
            "name": name,
            "size": original_size(batch["geometry"][i]),
            "class_names": classes,
            "category_ids": tuple(category_ids(classes, getattr(data, "class_ids", None))),
            "image": image,
            "colors": getattr(data, "class_colors", None),
        }
        if "probabilities" in outputs:
            multi_label = bool(self._first.multi_label)
            return ClassificationResult(
                **common, probabilities=outputs["probabilities"][i].numpy(), multi_label=multi_label
            )
        if "mask" in outputs:
            return SegmentationResult(**common, mask=outputs["mask"][i].numpy())
        arrays = {key: outputs[key][i].numpy() for key in ("boxes", "scores", "labels")}
        masks = tuple(outputs["masks"][i]) if "masks" in outputs else None
        return DetectionResult(**common, **arrays, run_lengths=masks)
