"""Labels of a data set that a checkpoint contradicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from datamodules.checking.findings import Finding
from datamodules.checking.labels import label_findings
from datamodules.common.errors import UserError
from pipelines.preparation import prepare
from pipelines.run.checkpoints import open_checkpoint
from pipelines.run.compatibility import check_fits
from pipelines.run.directory import find_checkpoint
from pipelines.trainer import Trainer
from tasks import Classification


def find_label_errors(trainer: Trainer, model: Any, data: Any, ckpt_path: str) -> list[Finding]:
    """Predict every image without augmentation, each split by itself, and compare with the labels.

    Raises:
        UserError: If there is no such checkpoint, it does not fit, or the labels are not one class an image.
    """
    if not isinstance(model, Classification):
        raise UserError("--ckpt_path: check looks for label errors of classification only; leave it out.")
    checkpoint = find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path)
    prepare(trainer, model, data, "probe", weights_follow=True)
    if model.multi_label:
        raise UserError("--ckpt_path: check looks for label errors where an image has one class; leave it out.")
    check_fits(checkpoint, model)
    model.load_state_dict(open_checkpoint(checkpoint)["state_dict"])
    device = trainer.strategy.root_device
    model.to(device).eval()
    found = []
    for split, loader in (("train", data.train_features_dataloader), ("val", data.val_dataloader)):
        found += _of_split(model, loader(), split, list(data.class_names), device)
    if data.records["test"]:
        found += _of_split(model, data.test_dataloader(), "test", list(data.class_names), device)
    return found


@torch.inference_mode()
def _of_split(model: Any, loader: Any, split: str, names: list[str], device: torch.device) -> list[Finding]:
    probabilities, labels, paths = [], [], []
    for batch in loader:
        probabilities.append(model.predict({"image": batch["image"].to(device)})["probabilities"].float().cpu().numpy())
        labels.append(batch["label"].numpy())
        paths += batch["path"]
    if not paths:
        return []
    every = np.concatenate(labels)
    if every.ndim != 1 or not np.issubdtype(every.dtype, np.integer):
        raise UserError("--ckpt_path: check looks for label errors where an image has one class; leave it out.")
    return label_findings(np.concatenate(probabilities), every, paths, split, names)
