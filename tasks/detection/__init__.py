"""Detection: boxes, and masks of instances."""

from tasks.detection.task import Detection

__all__ = ["Detection"]
