"""The families by name: a new one is a file of that name here, and its name in `Name`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

from datamodules.common.errors import UserError
from tasks.detection.detectors.arguments import BackboneArguments, DetectorArguments
from tasks.detection.detectors.protocol import Family

Name = Literal["box_regression", "faster_rcnn", "fcos", "mask_rcnn", "retinanet", "rtdetr", "yolo"]
#: Arguments that are the task's own, and so not of ``model.detector_args``.
OURS = {"backbone", "num_classes", "class_weights", *(field.name for field in fields(BackboneArguments))} - {"name"}


def family_of(name: Name) -> Family:
    """What the file of that name offers."""
    family: Family = import_module(f"{__package__}.{name}").FAMILY
    return family


def detector_arguments(name: Name, given: Mapping[str, Any]) -> DetectorArguments:
    """A family's arguments, ``model.detector_args``.

    Raises:
        UserError: An argument that the family does not have, with the nearest that it has; one that is the task's; a
            value that makes no sense. Each by its key.
    """
    arguments = family_of(name).arguments
    known = [field.name for field in fields(arguments)]
    for key in given:
        if key in OURS:
            raise UserError(f"model.detector_args.{key} is not the detector's: set model.{key}.")
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}."
            raise UserError(f"model.detector_args.{key} is no argument of '{name}'; {hint}")
    return arguments(**given)
