"""torchvision's built-in classification sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.annotations.records import Listing, Record, sort_classes
from datamodules.common.errors import UserError, did_you_mean

# Set -> (our split, torchvision's argument for it). None: the set has no splits.
_FLAG = (("train", {"train": True}), ("test", {"train": False}))
_TRAIN_TEST = (("train", {"split": "train"}), ("test", {"split": "test"}))
_TRAIN_VAL = (("train", {"split": "train"}), ("val", {"split": "val"}))
_THREE = (("train", {"split": "train"}), ("val", {"split": "val"}), ("test", {"split": "test"}))
_ALL: tuple[tuple[str | None, dict[str, Any]], ...] = ((None, {}),)
_SETS: dict[str, tuple[tuple[str | None, dict[str, Any]], ...]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"), _FLAG),
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB", "StanfordCars"), _TRAIN_TEST),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "RenderedSST2"), _THREE),
    **dict.fromkeys(("Imagenette", "ImageNet"), _TRAIN_VAL),
    **dict.fromkeys(("EuroSAT", "SUN397"), _ALL),
    "OxfordIIITPet": (("train", {"split": "trainval"}), ("test", {"split": "test"})),
    "Country211": (("train", {"split": "train"}), ("val", {"split": "valid"}), ("test", {"split": "test"})),
}


def read_torchvision(name: str, root: str | Path, download: bool = False) -> Listing:
    """Read a classification set that torchvision knows, by the name of its class (``CIFAR10``, ``Flowers102``, ...).

    Sets that torchvision keeps as arrays give uint8 (H, W, C) arrays, the others paths.

    Args:
        name: The set.
        root: Folder that holds it, torchvision's ``root``.
        download: Let torchvision download what is missing.

    Raises:
        UserError: If the set is not there, with how to get it.
        UserError: If the name is unknown.
    """
    if name not in _SETS:
        raise UserError(
            f"torchvision set '{name}' is not known here.{did_you_mean(name, _SETS)} Known: {', '.join(sorted(_SETS))}."
        )
    import torchvision.datasets

    make = getattr(torchvision.datasets, name)
    records: list[Record] = []
    names: list[str] | None = None
    for split, arguments in _SETS[name]:
        dataset = _make(name, make, root, split, arguments, download)
        images, labels = _contents(dataset)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            is_array = isinstance(image, np.ndarray)
            path = f"{name}#{split or 'all'}/{i}" if is_array else str(image)
            records.append({"image": image if is_array else path, "path": path, "label": int(label), "split": split})
        names = names or _class_names(dataset)
    present = sort_classes(str(r["label"]) for r in records)
    if names is None or len(names) <= int(present[-1]):
        names = [str(k) for k in range(int(present[-1]) + 1)]
    return Listing(records, names)


def _make(
    name: str, make: Callable[..., Any], root: str | Path, split: str | None, arguments: dict[str, Any], download: bool
) -> Any:
    """One split of torchvision's set."""
    if name != "ImageNet":  # whose files cannot be downloaded
        arguments = {**arguments, "download": download}
    try:
        return make(root=str(root), **arguments)
    except (RuntimeError, OSError) as error:
        which = f"{name} ({split})" if split else name
        raise UserError(
            f"torchvision's {which} is not complete under '{root}': {error} {_how_to_get(name, root)}"
        ) from error


def _how_to_get(name: str, root: str | Path) -> str:
    if name == "ImageNet":
        return "Put the files of image-net.org there."
    calls = "; ".join(f"{name}('{root}', {_arguments(arguments)}download=True)" for _, arguments in _SETS[name])
    return (
        "Put the files there, or let torchvision download them once:"
        f' python -c "from torchvision.datasets import {name}; {calls}"'
    )


def _arguments(arguments: dict[str, Any]) -> str:
    return "".join(f"{key}={value!r}, " for key, value in arguments.items())


def _contents(dataset: Any) -> tuple[Any, Any]:
    """Images (paths, or arrays (N, H, W, C)) and labels, from the attributes that torchvision's sets keep them in."""
    for samples in ("samples", "_samples"):
        if hasattr(dataset, samples):
            pairs = getattr(dataset, samples)
            return [p for p, _ in pairs], [label for _, label in pairs]
    for files in ("_image_files", "_images"):
        if hasattr(dataset, files):
            return getattr(dataset, files), dataset._labels
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return _channels_last(np.asarray(dataset.data)), np.asarray(labels)


def _channels_last(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(N, H, W) or (N, C, H, W), as SVHN and STL10 have them, as (N, H, W, C)."""
    if pixels.ndim == 3:
        return pixels[..., None]
    if pixels.shape[1] == 3 and pixels.shape[3] != 3:
        return np.ascontiguousarray(np.moveaxis(pixels, 1, 3))
    return pixels


def _class_names(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "classes", None)
    if names is None:
        return None
    return [" / ".join(n) if isinstance(n, tuple) else str(n) for n in names]  # ImageNet: tuples of synonyms
