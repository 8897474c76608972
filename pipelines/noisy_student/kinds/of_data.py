"""Which kind of annotation a datamodule has: one line each."""

from __future__ import annotations

from datamodules.base import DataModule
from datamodules.classification import ClassificationData
from datamodules.detection import DetectionData
from datamodules.segmentation import SegmentationData
from pipelines.noisy_student.kinds.base import Kind
from pipelines.noisy_student.kinds.boxes import BOXES
from pipelines.noisy_student.kinds.images import IMAGES
from pipelines.noisy_student.kinds.pixels import PIXELS

KINDS: dict[type[DataModule], Kind] = {
    ClassificationData: IMAGES,
    DetectionData: BOXES,
    SegmentationData: PIXELS,
}


def kind_of(data: DataModule | type[DataModule]) -> Kind:
    """The kind of a datamodule, or of its class; images where it is none of them."""
    cls = data if isinstance(data, type) else type(data)
    return next((kind for base, kind in KINDS.items() if issubclass(cls, base)), IMAGES)
