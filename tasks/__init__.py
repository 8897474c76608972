"""What is learned: the tasks. They never import ``datamodules``: the two meet in the batch."""

from tasks.classification import Classification
from tasks.detection import Detection
from tasks.noisy_student import NoisyStudent
from tasks.optim import Optim
from tasks.segmentation import Segmentation

__all__ = ["Classification", "Detection", "NoisyStudent", "Optim", "Segmentation"]
