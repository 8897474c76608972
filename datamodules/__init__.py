"""What is fed: the datamodules. They never import ``tasks``: the two meet in the batch."""

from datamodules.classification import ClassificationData
from datamodules.transforms import Augment

__all__ = ["Augment", "ClassificationData"]
