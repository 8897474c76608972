"""Images and labels as arrays in one ``.npz`` file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Listing, Record, sort_classes, split_name
from datamodules.common.errors import UserError

Array = npt.NDArray[Any]

_LAYOUTS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))  # Keras; MedMNIST


def read_arrays(file: str | Path) -> Listing:
    """Read a ``.npz`` file.

    Keys: ``images``, ``labels`` and optionally ``split`` (words, one an image); or ``x_train``, ``y_train`` and the
    same with ``val`` and ``test``; or ``train_images``, ``train_labels`` and the same (MedMNIST). ``class_names`` may
    stand beside any of them, and then integer labels are positions in it.

    Images are (N, H, W) or (N, H, W, C), uint8 or float in [0, 1]. Labels are (N,) or (N, 1) integers or names (one
    class), (N, K) of 0 and 1 (several classes), or (N, K) floats (soft labels). Records hold views of the arrays.

    Raises:
        UserError: If there is no such file.
        UserError: If keys, shapes or values are not as above, or the file holds Python objects.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"Array file '{file}' does not exist (looked in {Path.cwd()}).")
    arrays = _load(file)
    parts: list[tuple[str, str, str | None]] = [("images", "labels", None)] if "images" in arrays else []
    for images, labels in _LAYOUTS:
        for word in ("train", "val", "valid", "test"):
            if images.format(word) in arrays:
                parts.append((images.format(word), labels.format(word), split_name(word)))
    if not parts:
        raise UserError(
            f"'{file}' holds no images under a known key: expected images and labels, x_train and y_train, or"
            f" train_images and train_labels. It has: {', '.join(arrays)}."
        )
    for images, labels, _ in parts:
        if labels not in arrays:
            raise UserError(f"'{file}' has '{images}' but no '{labels}'. It has: {', '.join(arrays)}.")
        _check_images(arrays[images], f"{file}, '{images}'")
        if len(arrays[images]) != len(arrays[labels]):
            raise UserError(
                f"'{file}' has {len(arrays[images])} images in '{images}' and {len(arrays[labels])} in '{labels}'."
            )
    labels_of, class_names = _labels(file, {key: arrays[key] for _, key, _ in parts}, arrays.get("class_names"))
    records: list[Record] = []
    for images, labels, split in parts:
        pixels = arrays[images]
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        splits = [split] * len(pixels) if images != "images" else _splits(file, arrays.get("split"), len(pixels))
        prefix = f"{file}#" if images == "images" else f"{file}#{images}/"
        records += [
            {"image": pixels[i], "path": f"{prefix}{i}", "label": label, "split": splits[i]}
            for i, label in enumerate(labels_of[labels])
        ]
    return Listing(records, class_names)


def _load(file: Path) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = "it holds Python objects, which are not read; save plain arrays" if "pickle" in str(error) else error
        raise UserError(f"'{file}' cannot be read as .npz arrays: {reason}.") from error


def _check_images(images: Array, where: str) -> None:
    if images.ndim not in (3, 4) or images.size == 0:
        raise UserError(f"{where} has the shape {images.shape}; (N, H, W) or (N, H, W, C) is needed.")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 2, 3, 4):
        raise UserError(
            f"{where} has the shape {images.shape}, channels first; write it as (N, H, W, C), for example with"
            " numpy.moveaxis(images, 1, 3)."
        )
    if images.dtype.kind == "f":
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise UserError(f"{where} has float values in [{low:g}, {high:g}]; they must lie in [0, 1].")
    elif images.dtype != np.uint8:
        raise UserError(f"{where} is of type {images.dtype}; uint8 or float in [0, 1] is needed.")


def _labels(
    file: Path, arrays: dict[str, Array], names: Array | None
) -> tuple[dict[str, list[int] | list[list[float]]], list[str]]:
    """Labels of each key, as ints or as lists of K floats, and the class names."""
    given = None if names is None else [str(n) for n in names.ravel()]
    single: dict[str, list[str]] = {}
    several: dict[str, list[list[float]]] = {}
    for key, array in arrays.items():
        if array.ndim == 2 and array.shape[1] > 1:
            values = array.astype(np.float64)
            if not (values.min() >= 0 and values.max() <= 1):
                raise UserError(
                    f"{file}, '{key}': values in [{values.min():g}, {values.max():g}]; several labels an image are 0 or"
                    " 1, soft labels lie in [0, 1]."
                )
            several[key] = values.tolist()
        elif array.ndim in (1, 2) and array.dtype.kind in "iuUb":
            single[key] = [str(int(v)) if array.dtype.kind != "U" else str(v) for v in array.ravel()]
        else:
            raise UserError(
                f"{file}, '{key}': shape {array.shape} of {array.dtype}; (N,) integers or names, or (N, K) is needed."
            )
    if single and several:
        raise UserError(f"'{file}' mixes one label an image ({', '.join(single)}) and several ({', '.join(several)}).")
    if several:
        widths = {len(row) for rows in several.values() for row in rows}
        if len(widths) > 1 or (given is not None and widths != {len(given)}):
            expected = f"; class_names has {len(given)}" if given is not None else ""
            raise UserError(f"'{file}' has labels of different widths: {sorted(widths)}{expected}.")
        return dict(several), given or [str(k) for k in range(widths.pop())]
    values_found = {value for values in single.values() for value in values}
    if given is not None and all(a.dtype.kind != "U" for a in arrays.values()):
        ids = {str(k): k for k in range(len(given))}
    else:
        given = given or sort_classes(values_found)
        ids = {name: k for k, name in enumerate(given)}
    unknown = sorted(values_found - set(ids))
    if unknown:
        raise UserError(f"'{file}' has the label {unknown[0]}, but class_names has {len(given)} names: {given}.")
    return {key: [ids[value] for value in values] for key, values in single.items()}, given


def _splits(file: Path, words: Array | None, count: int) -> list[str | None]:
    if words is None:
        return [None] * count
    if len(words) != count:
        raise UserError(f"'{file}' has {count} images and {len(words)} entries in 'split'.")
    splits = []
    for i, word in enumerate(words.ravel()):
        split = split_name(str(word)) if str(word) else None
        if str(word) and split is None:
            raise UserError(f"{file}, 'split', entry {i}: '{word}' must be train, val or test, or empty.")
        splits.append(split)
    return splits
