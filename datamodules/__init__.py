"""What is fed: the datamodules. They never import ``tasks``: the two meet in the batch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.augment import Augment
    from datamodules.classification import ClassificationData
    from datamodules.segmentation import SegmentationData

__all__ = ["Augment", "ClassificationData", "SegmentationData"]
_MODULES = {"Augment": "augment", "ClassificationData": "classification", "SegmentationData": "segmentation"}


def __getattr__(name: str) -> Any:
    """Import on first use: a spawned worker imports this package for its loader, and must not wait for Lightning."""
    if name not in _MODULES:
        raise AttributeError(f"module 'datamodules' has no attribute '{name}'")
    return getattr(importlib.import_module(f"datamodules.{_MODULES[name]}"), name)
