"""RandAugment and TrivialAugment-Wide from albumentations operations, on one magnitude table.

RandAugment: Cubuk et al. 2020, arXiv 1909.13719. TrivialAugment: Mueller and Hutter 2021, arXiv 2103.10158.
albumentations 2.0.8 has neither. Both move boxes and masks with the picture.

The scale of magnitudes is that of the RandAugment paper and of the TPU code that noisy student used: 10 is
AutoAugment's strongest setting, the scale goes on above it, and `MAGNITUDE_MAX` = 30 is its end here. So the published
magnitudes (9 for ResNet-50, 17 and 28 for EfficientNet-B5 and B7, 27 in noisy student) are used as they are. timm
clamps at 10 unless told otherwise, and torchvision's 30 is this table's 10.

Every operation does nothing (or next to nothing) at 0 and grows linearly to the value at 30:

| operation | at 0 | RandAugment at 10 | at 30 | TrivialAugment-Wide at 30 |
| --- | --- | --- | --- | --- |
| rotate, degrees | 0 | 30 either way | 90 | 135 |
| shear_x, shear_y, tangent | 0 | 0.3 either way | 0.9 | 0.99 |
| translate_x, translate_y, fraction of the side | 0 | 1/6 either way | 1/2 | 1/7 |
| color, contrast, brightness, sharpness, factor | 1 | 1.9 or 0.7 | 3.7 or 0.1 | 1.99 or 0.01 |
| solarize, threshold of 256 | 256 | 171 | 0 | 0 |
| posterize, bits kept | 8 | 6 | 1 | 2 |
| identity, autocontrast, equalize | no magnitude | | | |

Where the TPU code cannot be followed literally: its enhancing factor 0.1 + 0.18 M is weakest at M = 5 and never goes
down, and its solarize and posterize get weaker as M grows. Here up is AutoAugment's 1.9 at 10 and goes on linearly,
down reaches AutoAugment's 0.1 at 30 (below 0 there is nothing), and solarize and posterize, which have an end, are
spread over the whole scale. Its 100 pixels of translation at 10 are 1/6 of the 600 pixels of EfficientNet-B7;
TrivialAugment's 32 pixels are 1/7 of 224.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no network request at import

import albumentations as A
import cv2
import numpy as np

from datamodules.common.errors import UserError

if TYPE_CHECKING:
    import random

    from numpy.typing import NDArray

MAGNITUDE_MAX = 30


class Scale(NamedTuple):
    """Value of an operation at magnitude 0, and its values at 30, one of which is drawn: a way up and a way down."""

    zero: float = 0.0
    rand: tuple[float, ...] = ()
    wide: tuple[float, ...] = ()


_ROTATE = Scale(0, (-90, 90), (-135, 135))
_SHEAR = Scale(0, (-0.9, 0.9), (-0.99, 0.99))
_TRANSLATE = Scale(0, (-1 / 2, 1 / 2), (-1 / 7, 1 / 7))
_FACTOR = Scale(1, (0.1, 3.7), (0.01, 1.99))

#: The magnitude table; see the module's docstring for units and sources.
MAGNITUDES: dict[str, Scale] = {
    "identity": Scale(),
    "autocontrast": Scale(),
    "equalize": Scale(),
    "rotate": _ROTATE,
    "solarize": Scale(256, (0,), (0,)),
    "color": _FACTOR,
    "posterize": Scale(8, (1,), (2,)),
    "contrast": _FACTOR,
    "brightness": _FACTOR,
    "sharpness": _FACTOR,
    "shear_x": _SHEAR,
    "shear_y": _SHEAR,
    "translate_x": _TRANSLATE,
    "translate_y": _TRANSLATE,
}
_NEEDS_RGB = frozenset({"color"})
_NEEDS_RGB_OR_GRAY = frozenset({"equalize", "contrast", "brightness"})


def operation_names(channels: int) -> tuple[str, ...]:
    """Names in the table that mean something for images of so many channels."""
    if channels == 3:
        return tuple(MAGNITUDES)
    left_out = _NEEDS_RGB if channels == 1 else _NEEDS_RGB | _NEEDS_RGB_OR_GRAY
    return tuple(name for name in MAGNITUDES if name not in left_out)


def magnitude_values(name: str, magnitude: float, wide: bool = False) -> tuple[float, ...]:
    """Values that operation `name` takes at `magnitude`: one, two (either way, drawn at random), or none.

    Args:
        name: A key of `MAGNITUDES`.
        magnitude: 0 to `MAGNITUDE_MAX`.
        wide: TrivialAugment-Wide's column instead of RandAugment's.

    Raises:
        UserError: The magnitude is out of range.
    """
    check_magnitude(magnitude)
    scale = MAGNITUDES[name]
    values = (
        scale.zero + (limit - scale.zero) * magnitude / MAGNITUDE_MAX for limit in (scale.wide if wide else scale.rand)
    )
    return tuple(float(round(value)) if name == "posterize" else value for value in values)


def check_magnitude(magnitude: float, key: str = "magnitude") -> None:
    """Refuse a magnitude outside the table; `key` names the setting in the message."""
    if not 0 <= magnitude <= MAGNITUDE_MAX:
        raise UserError(
            f"{key} is {magnitude}; allowed are 0 to {MAGNITUDE_MAX} (10 is AutoAugment's strongest,"
            " noisy student used 27)"
        )


@lru_cache(maxsize=4096)  # 14 operations x 31 magnitudes x 2 ways x a few fills; making one costs about 0.2 ms
def operation(name: str, value: float, fill: float) -> A.BasicTransform:
    """The albumentations transform that does `name` with exactly `value`; without randomness of its own.

    Args:
        name: A key of `MAGNITUDES`.
        value: One of `magnitude_values`; ignored by operations that have no magnitude.
        fill: Pixel value where the picture was moved away; masks get 0 there.
    """
    if name == "autocontrast":
        return A.AutoContrast(method="pil", p=1)
    if name == "equalize":
        return A.Equalize(mode="pil", p=1)
    if name == "solarize" and value < 256:  # albumentations inverts 255 even at a threshold of 1
        return A.Solarize(threshold_range=(value / 256, value / 256), p=1)
    if name == "posterize" and value < 8:
        return A.Posterize(num_bits=max(1, int(value)), p=1)
    if name in ("color", "contrast", "brightness"):
        factors = {"saturation": (1.0, 1.0), "contrast": (1.0, 1.0), "brightness": (1.0, 1.0)}
        factors["saturation" if name == "color" else name] = (value, value)
        return A.ColorJitter(factors["brightness"], factors["contrast"], factors["saturation"], hue=(0, 0), p=1)
    if name == "sharpness":
        return Sharpness(value)
    if MAGNITUDES[name] in (_ROTATE, _SHEAR, _TRANSLATE):
        return A.Affine(**_motion(name, value), fill=fill, p=1)
    return A.NoOp(p=1)


def _motion(name: str, value: float) -> dict[str, Any]:
    """The argument of ``A.Affine`` for a rotation, shear or translation."""
    if name == "rotate":
        return {"rotate": (value, value)}
    if name.startswith("shear"):
        value = math.degrees(math.atan(value))
    both = {"x": (0.0, 0.0), "y": (0.0, 0.0), name[-1]: (value, value)}
    return {"shear" if name.startswith("shear") else "translate_percent": both}


class Sharpness(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped for mypy
    """Pillow's sharpness enhancement: smoothed + factor * (image - smoothed); 0 smooths, 1 changes nothing.

    albumentations' Sharpen only sharpens, and by another kernel.
    """

    def __init__(self, factor: float) -> None:
        """Take the factor, 0 or more."""
        super().__init__(p=1)
        self.factor = factor

    def apply(self, img: NDArray[Any], **params: object) -> NDArray[Any]:
        """Filter (H, W, C), uint8 or float32, borders reflected."""
        kernel = np.full((3, 3), (1 - self.factor) / 13, dtype=np.float32)
        kernel[1, 1] = (5 + 8 * self.factor) / 13
        out: NDArray[Any] = cv2.filter2D(img, -1, kernel)
        if out.dtype == np.float32:
            np.clip(out, 0, 1, out=out)
        return out.reshape(img.shape)


class RandAugment(A.BaseCompose):  # type: ignore[misc]
    """RandAugment: `num_ops` operations drawn with replacement, all at `magnitude`, the way up or down at random.

    An albumentations composition, to be used inside `A.Compose`; keeps the picture's shape and dtype, moves boxes and
    masks. Operations that mean nothing for the picture's number of channels are not drawn.
    """

    def __init__(self, num_ops: int = 2, magnitude: float = 9, *, fill: float = 0) -> None:
        """Set up.

        Args:
            num_ops: Operations a picture, 1 or more (N in the paper).
            magnitude: 0 to `MAGNITUDE_MAX` (M in the paper).
            fill: Pixel value where the picture was moved away; masks get 0 there.

        Raises:
            UserError: The magnitude or the number of operations is out of range.
        """
        check_magnitude(magnitude)
        if num_ops < 1:
            raise UserError(f"RandAugment needs at least 1 operation a picture, got {num_ops}")
        super().__init__([A.NoOp()], p=1)  # NoOp declares every target; the operations are drawn at each call
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.fill = fill

    def draw(self, channels: int) -> list[tuple[str, float]]:
        """Draw the operations for one picture: names and values."""
        names = operation_names(channels)
        chosen = [names[self.py_random.randrange(len(names))] for _ in range(self.num_ops)]
        return [(name, self._value(magnitude_values(name, self.magnitude))) for name in chosen]

    def _value(self, values: tuple[float, ...]) -> float:
        return values[self.py_random.randrange(len(values))] if values else 0.0

    def __call__(self, *args: object, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        """Apply to the targets of `A.Compose`: image, mask, masks, bboxes."""
        for name, value in self.draw(data["image"].shape[-1]):
            data = operation(name, value, self.fill)(**data)
        return data

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        """Take the randomness of the surrounding `A.Compose`."""
        self.random_generator = random_generator
        self.py_random = py_random


class TrivialAugmentWide(RandAugment):
    """TrivialAugment-Wide: one operation, its magnitude drawn uniformly from 0, 1, ... 30 of the wide column."""

    def __init__(self, *, fill: float = 0) -> None:
        """Set up; `fill` as for RandAugment."""
        super().__init__(num_ops=1, magnitude=MAGNITUDE_MAX, fill=fill)

    def draw(self, channels: int) -> list[tuple[str, float]]:
        """Draw the operation for one picture: name and value."""
        names = operation_names(channels)
        name = names[self.py_random.randrange(len(names))]
        return [(name, self._value(magnitude_values(name, self.py_random.randint(0, MAGNITUDE_MAX), wide=True)))]
