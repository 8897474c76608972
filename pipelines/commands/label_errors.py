"""Labels of a data set that a checkpoint contradicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datamodules.checking.findings import Finding
from datamodules.checking.label_boxes import Pair, box_label_findings
from datamodules.checking.label_masks import Confidence, doubtful_regions, label_quality
from datamodules.checking.labels import label_findings
from datamodules.common.errors import UserError
from datamodules.common.geometry import boxes_to_original
from pipelines.preparation import prepare
from pipelines.run.checkpoints import open_checkpoint
from pipelines.run.compatibility import check_fits
from pipelines.run.directory import find_checkpoint
from pipelines.trainer import Trainer
from tasks import Classification, Detection, Segmentation

_Loader = Callable[[], Any]
_LEAVE_OUT = "--ckpt_path: check looks for label errors where {}; leave it out."


def find_label_errors(trainer: Trainer, model: Any, data: Any, ckpt_path: str) -> list[Finding]:
    """Predict every image without augmentation, each split by itself, and compare with the labels.

    Raises:
        UserError: If there is no such checkpoint, it does not fit, or an image or a pixel has not one class.
    """
    kinds = {Classification: _of_classes, Detection: _of_boxes, Segmentation: _of_pixels}
    of_split = next((compare for kind, compare in kinds.items() if isinstance(model, kind)), None)
    if of_split is None:
        raise UserError(_LEAVE_OUT.format("a task is trained by itself"))
    checkpoint = find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path)
    prepare(trainer, model, data, "probe", weights_follow=True)
    if getattr(model, "multi_label", False):
        raise UserError(_LEAVE_OUT.format("an image or a pixel has one class"))
    check_fits(checkpoint, model)
    model.load_state_dict(open_checkpoint(checkpoint)["state_dict"])
    model.to(trainer.strategy.root_device).eval()
    loaders: dict[str, _Loader] = {"train": data.train_features_dataloader, "val": data.val_dataloader}
    if data.records["test"]:
        loaders["test"] = data.test_dataloader
    names = list(data.class_names)
    with torch.inference_mode():
        return [found for split, loader in loaders.items() for found in of_split(model, loader, split, names)]


def _on_device(model: Any, loader: _Loader) -> Iterator[dict[str, Any]]:
    for batch in loader():
        yield {**batch, "image": batch["image"].to(model.device)}


def _of_classes(model: Any, loader: _Loader, split: str, names: list[str]) -> list[Finding]:
    probabilities, labels, paths = [], [], []
    for batch in _on_device(model, loader):
        probabilities.append(model.predict({"image": batch["image"]})["probabilities"].float().cpu().numpy())
        labels.append(batch["label"].numpy())
        paths += batch["path"]
    if not paths:
        return []
    every = np.concatenate(labels)
    if every.ndim != 1 or not np.issubdtype(every.dtype, np.integer):
        raise UserError(_LEAVE_OUT.format("an image has one class"))
    return label_findings(np.concatenate(probabilities), every, paths, split, names)


def _of_boxes(model: Any, loader: _Loader, split: str, names: list[str]) -> list[Finding]:
    pairs = []
    for batch in _on_device(model, loader):
        found = model.predict(batch)
        for i, (path, truth) in enumerate(zip(batch["path"], batch["target"], strict=True)):
            given = (np.asarray(truth[key]) for key in ("boxes", "labels", "iscrowd"))
            predicted = (found[key][i].cpu().numpy() for key in ("boxes", "labels", "scores"))
            pairs.append(Pair(path, *given, *predicted))
    return box_label_findings(pairs, split, names)


def _of_pixels(model: Any, loader: _Loader, split: str, names: list[str]) -> list[Finding]:
    """Two passes over the pictures: what is usual for a class must be known before a pixel can be doubtful."""
    confidence = Confidence(len(names))
    for _, probabilities, labels, _ in _pixels(model, loader):
        confidence.add(probabilities, labels)
    usual = confidence.usual()
    found = []
    for path, probabilities, labels, geometry in _pixels(model, loader):
        regions = doubtful_regions(probabilities, labels, usual)
        if regions:
            first, quality = regions[0], label_quality(probabilities, labels)
            more = f" and {len(regions) - 1} more region(s)" if len(regions) > 1 else ""
            message = (
                f"{first.part:.1%} of the pixels labeled {names[first.label]}, predicted {names[first.other]}{more};"
                f" the mask's quality is {quality:.2f}"
            )
            x1, y1, x2, y2 = boxes_to_original(np.array([first.box], np.float32), geometry)[0].tolist()
            found.append((quality, Finding("label", message, path, split, (x1, y1, x2, y2))))
    return [finding for _, finding in sorted(found, key=lambda one: one[0])]


def _pixels(model: Any, loader: _Loader) -> Iterator[tuple[str, Any, Any, npt.NDArray[np.float32]]]:
    """Of each picture on its canvas: path, probabilities (K, H, W), labels (H, W), geometry (6,)."""
    for batch in _on_device(model, loader):
        if "tiles" in batch:
            raise UserError("--ckpt_path: check looks for label errors on whole pictures: leave data.tile out.")
        scores = model.scores(batch["image"]).float().cpu()
        if scores.shape[1] == 1:
            scores = torch.cat([1 - scores, scores], 1)
        for i, path in enumerate(batch["path"]):
            labels = batch["mask"][i].numpy().astype(np.int64)
            yield path, scores[i].numpy(), labels, batch["geometry"][i].numpy()
