"""Soft labels of pixels through the transforms: planes that move with the mask become class probabilities."""

from __future__ import annotations

from typing import Any

from datamodules.annotations.soft_masks import probabilities
from datamodules.transforms.pipeline import Transform


class SoftMaskTransform(Transform):
    """A transform whose result has ``soft_mask`` float16 (K, H, W) in place of planes in ``masks``."""

    def __init__(self, *args: Any, num_classes: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_classes = num_classes

    def __call__(self, sample: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """Transform one sample; see ``Transform``."""
        out = super().__call__(sample, seed)
        planes = out.pop("masks", None)
        if planes is not None:
            out["soft_mask"] = probabilities(out["mask"], planes, self.num_classes)
        return out
