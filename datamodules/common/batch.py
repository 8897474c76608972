"""The batch: a plain dict, and the values in it that mean "nothing here".

B images, C channels, H x W pixels, K classes, M boxes of the image that has most of them:

========== ================================= ====================================================================
key        dtype and shape                   meaning
========== ================================= ====================================================================
image      uint8 (B, C, H, W), channels_last not normalized; float32 in [0, 1] where ``dtype: float32`` is asked
label      int64 (B,) or float32 (B, K)      class, or multi-label / soft labels
mask       uint8 (B, H, W), 255 = ignore     class of each pixel; (B, K, H, W) of 0, 1, 255 for multi-label masks
soft_mask  float16 (B, K, H, W), optional    class probabilities of each pixel, beside ``mask``
boxes      float32 (B, M, 4)                 x1 y1 x2 y2, pixel edges of the batch image; zeros behind an image's last
labels     int64 (B, M)                      class of each box, -1 where there is none
masks      int16 (B, L, H, W)                number of the object (its box's place, from 1) at each pixel, 0 for none
iscrowd    uint8 (B, M)                      boxes of groups, which evaluation ignores
weight     float32 (B,), optional            scales each image's loss, in every task
geometry   float32 (B, 6)                    original height, width, scale_x, scale_y, offset_x, offset_y
target     list of B dicts, evaluation only  the annotations above as they are in the original picture
tiles      list of B int64 (T, 4), optional  y1 x1 y2 x2 of the windows that a large picture is evaluated by
path, id   list of B str, int64 (B,)         where a sample came from
========== ================================= ====================================================================

Objects of one layer of ``masks`` do not overlap; most data sets need one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

#: One image and what belongs to it, before samples are stacked; see ``datamodules.transforms.pipeline``.
Sample: TypeAlias = dict[str, Any]

#: Pixels of a mask that no annotation covers, or that the annotator left open: no loss, no metric.
IGNORE = 255
#: Class of a place in ``labels`` where an image has no box.
NO_LABEL = -1
#: Number in ``masks`` of a pixel that belongs to no object.
NO_OBJECT = 0
#: Value, 0 to 255, of pixels of the canvas outside the picture.
FILL = 114

#: Annotations; evaluation also keeps them as they are in the original picture (``target``).
ANNOTATIONS = ("mask", "boxes", "labels", "masks", "iscrowd", "area")
#: Annotations with one entry a box, beside ``boxes``.
PER_BOX = ("labels", "iscrowd", "area")


@dataclass(frozen=True)
class Padding:
    """What fills an annotation up to the largest number in the batch, and the batch's type."""

    value: int
    dtype: str


#: Annotations whose number differs between images.
PADDED = {
    "boxes": Padding(0, "float32"),
    "labels": Padding(NO_LABEL, "int64"),
    "iscrowd": Padding(0, "uint8"),
    "masks": Padding(NO_OBJECT, "int16"),
}


def windows(batch: Mapping[str, Any]) -> Iterator[tuple[list[int], list[tuple[int, int]], Any]]:
    """The images of a batch as the network sees them, (n, C, h, w), large ones by tiles.

    With each their places in the batch and their corners y, x.
    """
    images = batch["image"]
    if "tiles" not in batch:
        yield list(range(len(images))), [(0, 0)] * len(images), images
        return
    for i, tiles in enumerate(batch["tiles"]):
        for y1, x1, y2, x2 in tiles.tolist():
            yield [i], [(y1, x1)], images[i : i + 1, :, y1:y2, x1:x2]
