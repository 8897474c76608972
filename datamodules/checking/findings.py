"""What a check finds, and the kinds that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Kind(NamedTuple):
    """How bad a kind of finding is, and what it means, as a phrase."""

    severity: Severity
    meaning: str


#: An error spoils training or its scores, a warning should be looked at, a note is good to know.
KINDS: dict[str, Kind] = {
    "refused": Kind("error", "fit would end with this message"),
    "reader": Kind("warning", "what the reader left out or changed"),
    # Images.
    "unreadable": Kind("error", "no image, truncated or damaged, too large, or of other channels"),
    "suffix": Kind("note", "the file's contents are of another format than its name says"),
    "rotated": Kind("note", "turned by its EXIF orientation; boxes and masks must be drawn on the turned picture"),
    "depth": Kind("note", "16-bit or float pixels, read as 8-bit unless data.dtype is float32"),
    "transparent": Kind("note", "transparent pixels, which become white"),
    "gray": Kind("note", "a few gray pictures among colored ones, or the other way round"),
    "small-image": Kind("warning", "a side of less than 16 pixels, where most have twice as many"),
    "long-image": Kind("warning", "more than five times as long as wide"),
    "dark": Kind("warning", "nearly black"),
    "bright": Kind("warning", "nearly white"),
    "uniform": Kind("warning", "one color"),
    # Boxes.
    "image-size": Kind("error", "annotated for another size than the file has"),
    "fractions": Kind("error", "boxes look like fractions of the image, but are read as pixels"),
    "box-not-finite": Kind("error", "a coordinate is NaN or infinite"),
    "box-class": Kind("error", "a box of no known class"),
    "box-inverted": Kind("error", "x2 < x1 or y2 < y1"),
    "box-empty": Kind("error", "a box without area"),
    "box-outside": Kind("error", "a box outside the image"),
    "box-beyond": Kind("error", "a box that extends beyond the image"),
    "box-tiny": Kind("warning", "a side of less than 3 pixels"),
    "box-vanishing": Kind("warning", "a side of less than 2 pixels once the picture is resized"),
    "box-huge": Kind("note", "a box of 95 % of its picture or more"),
    "box-border": Kind("note", "boxes that touch the border: the object may be cut off"),
    "box-twice": Kind("warning", "two boxes of one class on one object"),
    "box-two-classes": Kind("warning", "boxes of two classes on one object"),
    "box-shape": Kind("warning", "a shape that its class has nowhere else"),
    "no-objects": Kind("note", "pictures without an object"),
    "many-objects": Kind("warning", "more objects in a picture than model.max_detections"),
    # Masks.
    "object-mask": Kind("error", "an object's mask that cannot be drawn, or has no pixel"),
    "mask-unreadable": Kind("error", "a mask file that cannot be read"),
    "mask-values": Kind("error", "values in a mask that are no class"),
    "mask-size": Kind("error", "a mask of another size than its image"),
    "mask-ignored": Kind("warning", "a mask whose pixels are all ignored"),
    "mask-one-class": Kind("note", "masks that hold one class only"),
    "mask-islands": Kind("note", "tiny islands in a mask, of 4 pixels or fewer"),
    # Classes.
    "class-empty": Kind("warning", "a class of which there is nothing"),
    "class-untrained": Kind("error", "a class that is evaluated and not in the training split"),
    "class-unseen": Kind("warning", "a class that is trained and not in another split"),
    "class-rare": Kind(
        "warning", "fewer than 5 in the training split, or below a hundredth of the most frequent class"
    ),
    # Splits.
    "duplicate-split": Kind("error", "the same file, byte for byte, in two splits"),
    "duplicate-pool": Kind("error", "an evaluated picture that is in the unlabeled pool"),
    "contradiction": Kind("error", "the same file with different labels"),
    "duplicate": Kind("warning", "the same file more than once in one split, or in training and pool"),
    "near-split": Kind("warning", "an evaluated picture that is nearly the same elsewhere"),
    "near": Kind("note", "nearly the same picture in one split, or in training and pool"),
    "group-split": Kind("error", "a group (patient, scene, video) in two splits"),
    # Labels.
    "label": Kind("warning", "a label that the checkpoint contradicts"),
    "label-overlooked": Kind("warning", "an object without a box, of which the checkpoint is sure"),
    "label-place": Kind("warning", "a box that the checkpoint has in another place"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: Of ``KINDS``.
        message: What it is, with values; without the path.
        path: Of the image or mask; empty for what concerns the whole set.
        split: Of the image.
        box: x1 y1 x2 y2 in pixels of the image as shown, where a part of it is meant.
        others: Further images, such as the copies of this one.
    """

    kind: str
    message: str
    path: str = ""
    split: str | None = None
    box: tuple[float, float, float, float] | None = None
    others: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        """``error``, ``warning`` or ``note``."""
        return KINDS[self.kind].severity


def ranked(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """The findings of each kind, the worst kinds first."""
    order = sorted(KINDS, key=lambda kind: SEVERITIES.index(KINDS[kind].severity))
    groups = {kind: [found for found in findings if found.kind == kind] for kind in order}
    return {kind: found for kind, found in groups.items() if found}
