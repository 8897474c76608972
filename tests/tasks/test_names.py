"""Names that old checkpoints rely on: an optimizer's state is matched by a parameter's position, weights by their name.

The hashes are those of commit 93d963b. Where one of them changes, checkpoints of before no longer load or, worse, load
into other parameters: keep the names and their order, or translate old checkpoints.
"""

from __future__ import annotations

import hashlib

import pytest
import torch

from tasks import Classification, Detection, NoisyStudent, Segmentation
from tasks.base import Task

SIZES = {"num_classes": 3, "in_chans": 3, "image_size": 64}


def classifier() -> Classification:
    return Classification("test_resnet", **SIZES, class_weights=[1.0, 2.0, 3.0])


def detector(family: str) -> Detection:
    return Detection(family, "test_resnet", **SIZES)


def segmenter(architecture: str, backbone: str = "test_resnet", **arguments) -> Segmentation:
    return Segmentation(architecture, backbone, **SIZES, **arguments)


TASKS = {
    "classification": classifier,
    "lenet5": lambda: Classification("lenet5", **SIZES),
    "cifar_resnet20": lambda: Classification("cifar_resnet20", **SIZES),
    "box_regression": lambda: detector("box_regression"),
    "faster_rcnn": lambda: detector("faster_rcnn"),
    "fcos": lambda: detector("fcos"),
    "mask_rcnn": lambda: detector("mask_rcnn"),
    "retinanet": lambda: detector("retinanet"),
    "rtdetr": lambda: Detection("rtdetr", "test_resnet", **SIZES, detector_args={"queries": 20}),
    "yolo": lambda: detector("yolo"),
    "unet": lambda: segmenter("unet", aux_weight=0.5, class_weights=[1.0, 2.0, 3.0]),
    "unet on full-size maps": lambda: segmenter("unet", "cifar_resnet20"),
    "deeplabv3plus": lambda: segmenter("deeplabv3plus"),
    "unet on a ViT": lambda: segmenter("unet", "test_vit"),
    "dpt": lambda: segmenter("dpt", "test_vit"),
    "segnet": lambda: segmenter("segnet", "vgg11_bn"),
    "student": lambda: NoisyStudent(classifier()),
    "student of masks": lambda: NoisyStudent(segmenter("fpn")),
}
# Of the parameters' names in order, and of the checkpoint's keys in order.
HASHES = {
    "classification": ("5faee590f019", "69e8ad6506df"),
    "lenet5": ("23564156e5f5", "aeacd7e13d81"),
    "cifar_resnet20": ("bb517cdb9bb0", "cdc9c8fe3cdc"),
    "box_regression": ("90ae90bcaeb1", "10665407a568"),
    "faster_rcnn": ("6cd33d518931", "5f9925b57ab8"),
    "fcos": ("54903f9599fd", "559c87b542be"),
    "mask_rcnn": ("931843d11123", "13dc6a0cbaaa"),
    "retinanet": ("f5201fea62f7", "964f303241a7"),
    "rtdetr": ("f836cb9259fa", "d9e76965503f"),
    "yolo": ("1431832ed243", "a1c9b0fdb052"),
    "unet": ("46985bef380f", "51c774f0050a"),
    "unet on full-size maps": ("5ba9582abcfb", "88e5ca5eb111"),
    "deeplabv3plus": ("4b3a3087b118", "ffaeda399c9d"),
    "unet on a ViT": ("01047d410b61", "2e4f3bf3d4fa"),
    "dpt": ("cdd9b5ab96c5", "54d8b3f6158b"),
    "segnet": ("2d19c49ae285", "10a54ea5fbd1"),
    "student": ("5faee590f019", "69e8ad6506df"),
    "student of masks": ("26c2b093b0a2", "3652026a1e24"),
}


def digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def hashes(task: Task) -> tuple[str, str]:
    task.configure_model()
    network = task.student.network if isinstance(task, NoisyStudent) else task.network
    return digest([name for name, _ in network.named_parameters()]), digest(list(task.state_dict()))


@pytest.mark.parametrize("name", TASKS)
def test_names_and_order_of_parameters_and_checkpoints(name):
    torch.manual_seed(0)
    assert hashes(TASKS[name]()) == HASHES[name]
