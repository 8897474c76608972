"""Images and labels as arrays in one ``.npz`` file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

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
    class), (N, K) of 0 and 1 (multi-label), or (N, K) floats (soft labels). Records hold views of the arrays.

    Raises:
        UserError: If there is no such file, keys, shapes or values are not as above, or the file holds Python objects.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"Array file '{file}' does not exist (looked in {Path.cwd()}).")
    arrays = _load(file)
    parts = _parts(file, arrays)
    for part in parts:
        _check_part(file, arrays, part)
    names = arrays.get("class_names")
    labels_of, class_names = _labels(
        file,
        {part.labels: arrays[part.labels] for part in parts},
        None if names is None else [str(n) for n in names.ravel()],
    )
    records: list[Record] = []
    for part in parts:
        pixels = arrays[part.images]
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        is_whole = part.images == "images"
        splits = _splits(file, arrays.get("split"), len(pixels)) if is_whole else [part.split] * len(pixels)
        prefix = f"{file}#" if is_whole else f"{file}#{part.images}/"
        records += [
            {"image": pixels[i], "path": f"{prefix}{i}", "label": label, "split": splits[i]}
            for i, label in enumerate(labels_of[part.labels])
        ]
    return Listing(records, class_names)


class _Part(NamedTuple):
    """Keys of images that belong together, and of their labels."""

    images: str
    labels: str
    split: str | None


def _parts(file: Path, arrays: dict[str, Array]) -> list[_Part]:
    parts = [_Part("images", "labels", None)] if "images" in arrays else []
    for images, labels in _LAYOUTS:
        for word in ("train", "val", "valid", "test"):
            if images.format(word) in arrays:
                parts.append(_Part(images.format(word), labels.format(word), split_name(word)))
    if not parts:
        raise UserError(
            f"'{file}' holds no images under a known key: expected images and labels, x_train and y_train, or"
            f" train_images and train_labels. It has: {', '.join(arrays)}."
        )
    return parts


def _check_part(file: Path, arrays: dict[str, Array], part: _Part) -> None:
    images, labels = part.images, part.labels
    if labels not in arrays:
        raise UserError(f"'{file}' has '{images}' but no '{labels}'. It has: {', '.join(arrays)}.")
    _check_images(arrays[images], f"{file}, '{images}'")
    if len(arrays[images]) != len(arrays[labels]):
        raise UserError(
            f"'{file}' has {len(arrays[images])} images in '{images}' and {len(arrays[labels])} in '{labels}'."
        )


def _load(file: Path) -> dict[str, Array]:
    try:
        _refuse_bomb(file)
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except UserError:
        raise
    except (ValueError, OSError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = "it holds Python objects, which are not read; save plain arrays" if "pickle" in str(error) else error
        raise UserError(f"'{file}' cannot be read as .npz arrays: {reason}.") from error


def _refuse_bomb(file: Path) -> None:
    """A file of a few kilobytes can unpack to more than there is memory."""
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"'{file}' would unpack to {size / 2**30:.1f} GiB, but the machine has {memory / 2**30:.1f} GiB of memory:"
            " save the images as files, or fewer of them."
        )


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
    file: Path, arrays: dict[str, Array], given: list[str] | None
) -> tuple[dict[str, list[int] | list[list[float]]], list[str]]:
    """Labels of each key, as ints or as lists of K floats, and the class names; ``given`` are those of the file."""
    single: dict[str, list[str]] = {}
    multiple: dict[str, list[list[float]]] = {}
    for key, array in arrays.items():
        if array.ndim == 2 and array.shape[1] > 1:
            multiple[key] = _fractions(array, f"{file}, '{key}'")
        else:
            single[key] = _words(array, f"{file}, '{key}'")
    if single and multiple:
        raise UserError(
            f"'{file}' mixes one label an image ({', '.join(single)}) and multi-label ({', '.join(multiple)})."
        )
    if multiple:
        return dict(multiple), _names_of_columns(file, multiple, given)
    has_names = any(array.dtype.kind == "U" for array in arrays.values())
    return _numbered(file, single, given, has_names=has_names)


def _fractions(array: Array, where: str) -> list[list[float]]:
    """(N, K) labels as floats in 0..1."""
    values = array.astype(np.float64)
    if not (values.min() >= 0 and values.max() <= 1):
        raise UserError(
            f"{where}: values in [{values.min():g}, {values.max():g}]; multi-label classes are 0 or 1, soft labels lie"
            " in [0, 1]."
        )
    rows: list[list[float]] = values.tolist()
    return rows


def _words(array: Array, where: str) -> list[str]:
    """(N,) or (N, 1) labels as text."""
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuUb":
        raise UserError(f"{where}: shape {array.shape} of {array.dtype}; (N,) integers or names, or (N, K) is needed.")
    if array.dtype.kind == "U":
        return [str(value) for value in array.ravel()]
    return [str(int(value)) for value in array.ravel()]


def _names_of_columns(file: Path, multiple: dict[str, list[list[float]]], given: list[str] | None) -> list[str]:
    widths = {len(row) for rows in multiple.values() for row in rows}
    if len(widths) > 1 or (given is not None and widths != {len(given)}):
        expected = f"; class_names has {len(given)}" if given is not None else ""
        raise UserError(f"'{file}' has labels of different widths: {sorted(widths)}{expected}.")
    return given or [str(k) for k in range(widths.pop())]


def _numbered(
    file: Path, single: dict[str, list[str]], given: list[str] | None, *, has_names: bool
) -> tuple[dict[str, list[int] | list[list[float]]], list[str]]:
    """Class numbers; integers are positions in ``given``, where the file has names."""
    found = {value for values in single.values() for value in values}
    names = given or sort_classes(found)
    if given is not None and not has_names:
        numbers = {str(k): k for k in range(len(names))}
    else:
        numbers = {name: k for k, name in enumerate(names)}
    unknown = sorted(found - set(numbers))
    if unknown:
        raise UserError(f"'{file}' has the label {unknown[0]}, but class_names has {len(names)} names: {names}.")
    return {key: [numbers[value] for value in values] for key, values in single.items()}, names


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
