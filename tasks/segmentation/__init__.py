"""Semantic segmentation: a class, or several, for each pixel."""

from tasks.segmentation.task import Segmentation

__all__ = ["Segmentation"]
