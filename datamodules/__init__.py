"""What is fed: the datamodules. They never import ``tasks``: the two meet in the batch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.classification import ClassificationData
    from datamodules.detection import DetectionData
    from datamodules.segmentation import SegmentationData
    from datamodules.semisupervised import SemiSupervised
    from datamodules.transforms.augment import Augment, DetectionAugment

__all__ = ["Augment", "ClassificationData", "DetectionAugment", "DetectionData", "SegmentationData", "SemiSupervised"]
_MODULES = {
    "Augment": "transforms.augment",
    "ClassificationData": "classification",
    "DetectionAugment": "transforms.augment",
    "DetectionData": "detection",
    "SegmentationData": "segmentation",
    "SemiSupervised": "semisupervised",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a spawned worker imports this package for its loader, and must not wait for Lightning."""
    if name not in _MODULES:
        raise AttributeError(f"module 'datamodules' has no attribute '{name}'")
    return getattr(importlib.import_module(f"datamodules.{_MODULES[name]}"), name)
