"""Networks that timm lacks, registered with its `register_model`: importing this package makes them known."""

from __future__ import annotations

from tasks.networks import cifar_resnet, lenet5

__all__ = ["cifar_resnet", "lenet5"]
