"""The embedded data: scikit-learn's real handwritten digits, single and as scenes for the other tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, overload

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.annotations.records import Listing, Record
from datamodules.common.errors import UserError

Split = Literal["train", "val", "test"]

_SPLITS = ("train", "val", "test")
_INDEX_FILE = Path(__file__).with_name("digits_split.json")
MAX_DIGITS = 6
_VISIBLE = 0.35  # opacity from which a pixel counts as the digit's
_MAX_COVERED = 0.15  # fraction of a digit that others may cover, or that may lie on others
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def read_digits() -> Listing:
    """The 1,797 digits of scikit-learn as uint8 (8, 8, 1), 0 (paper) to 255 (ink).

    Source: UCI "Optical Recognition of Handwritten Digits" (test part), 0..16 scaled to 0..255. The split (1,258 / 180
    / 359) is stratified, fixed, and stored as indices in ``digits_split.json``. Classes are ``0`` to ``9``.
    """
    images, labels, splits = _digits()
    records: list[Record] = [
        {"image": image, "path": f"digits#{i}", "label": label, "split": split}
        for i, (image, label, split) in enumerate(zip(images, labels, splits, strict=True))
    ]
    return Listing(records, [str(k) for k in range(10)])


def digit_scenes(num: int, size: int = 128, seed: int = 0, split: Split = "train") -> DigitScenes:
    """``num`` scenes of ``size`` x ``size`` pixels, each made when it is asked for; see ``digit_scene``."""
    return DigitScenes(num, size, seed, split)


class DigitScenes(Sequence[Record]):
    """Digit scenes 0..num-1 of one seed and split; a few bytes, whatever their number."""

    def __init__(self, num: int, size: int = 128, seed: int = 0, split: Split = "train") -> None:
        if num < 1:
            raise UserError(f"The number of digit scenes is {num}; it must be at least 1.")
        _check(size, split)
        self.num, self.size, self.seed, self.split = num, size, seed, split

    def __len__(self) -> int:
        return self.num

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Scene ``index``, the same one each time."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.num))]
        if not -self.num <= index < self.num:
            raise IndexError(f"digit scene {index} of {self.num}")
        return digit_scene(index % self.num, self.seed, self.split, self.size)


def digit_scene(index: int, seed: int = 0, split: Split = "train", size: int = 128, most: int = MAX_DIGITS) -> Record:
    """One picture with 1 to ``most`` digits on a textured background, annotated for every task.

    Only digits of ``split`` are used. Each is 3 to 6 times its 8 pixels high at ``size`` 128 (in proportion at other
    sizes), of random color, darker or brighter than what is behind it; at most 15 % of a digit is covered or
    lies on others. The scene is a function of the arguments alone.

    Returns:
        A record: ``image`` uint8 (H, W, 3) RGB; ``boxes`` float32 (N, 4), x1 y1 x2 y2 pixel edges, tight around the
        visible pixels; ``labels`` int64 (N,), the digits 0..9; ``masks`` int16 (1, H, W), object number 1..N of each
        visible pixel, 0 for none (one layer: visible pixels do not overlap); ``mask`` uint8 (H, W), 0 for background,
        digit + 1 else; ``label`` int, the digit with most visible pixels; ``path``, ``split``.

    Raises:
        UserError: If ``size`` is below 32 or ``split`` is unknown.
    """
    _check(size, split)
    rng = np.random.default_rng([seed, _SPLITS.index(split), index, size])
    glyphs, classes, _ = _digits()
    choice = _numbers(split)
    canvas = _background(rng, size)
    owner = np.zeros((size, size), np.int16)
    labels: list[int] = []
    areas: list[int] = []  # pixels of each digit
    now: list[int] = []  # those of them that are still visible
    places: list[tuple[slice, slice]] = []
    for _ in range(int(rng.integers(1, most + 1))):
        source = int(choice[rng.integers(len(choice))])
        side = max(12, round(8 * float(rng.uniform(3, 6)) * size / 128))
        glyph = glyphs[source][..., 0].astype(np.float32) / 255
        opacity = np.clip(cv2.resize(glyph, (side, side), interpolation=cv2.INTER_CUBIC) * 1.15, 0, 1)
        visible = opacity >= _VISIBLE
        area = int(visible.sum())
        for _ in range(20):
            y, x = rng.integers(0, size - side + 1, 2).tolist()
            place = slice(y, y + side), slice(x, x + side)
            region = owner[place]
            _, *covered = np.bincount(region[visible], minlength=len(labels) + 1).tolist()
            left = [n - gone for n, gone in zip(now, covered, strict=True)]
            if sum(covered) <= _MAX_COVERED * area and all(
                n >= (1 - _MAX_COVERED) * full for n, full in zip(left, areas, strict=True)
            ):
                break
        else:
            continue  # no room left for this one
        labels.append(classes[source])
        areas.append(area)
        now = [*left, area]
        places.append(place)
        patch = canvas[place]
        color = _ink(rng, patch[visible & (region == 0)].mean(axis=0))
        region[visible] = len(labels)
        patch += opacity[..., None] * (color - patch)
    canvas += rng.normal(0, float(rng.uniform(1, 7)), canvas.shape).astype(np.float32)  # camera noise
    boxes = np.empty((len(labels), 4), np.float32)
    for n, (down, across) in enumerate(places):
        x, y, width, height = cv2.boundingRect((owner[down, across] == n + 1).view(np.uint8))
        boxes[n] = x, y, x + width, y + height
        boxes[n] += across.start, down.start, across.start, down.start
    classes_of = np.array(labels, np.int64)
    return {
        "image": np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        "boxes": boxes,
        "labels": classes_of,
        "masks": owner[None],
        "mask": np.concatenate([[0], classes_of + 1]).astype(np.uint8)[owner],
        "label": labels[int(np.argmax(now))],
        "path": f"digit_scenes#{seed}/{split}/{index}",
        "split": split,
    }


@cache
def _digits() -> tuple[npt.NDArray[np.uint8], list[int], list[str]]:
    """Images uint8 (1797, 8, 8, 1), labels and splits."""
    # The file that sklearn.datasets.load_digits reads. To import scikit-learn takes seconds in each worker, and fails
    # there once W&B runs, whose import hook refuses forked processes.
    spec = find_spec("sklearn")
    assert spec is not None
    table = np.loadtxt(Path(str(spec.origin)).parent / "datasets/data/digits.csv.gz", delimiter=",")
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = [int(v) for v in table[:, -1]]
    splits = ["train"] * len(labels)
    for split, indices in json.loads(_INDEX_FILE.read_text()).items():
        for i in indices:
            splits[i] = split
    return images, labels, splits


@cache
def _numbers(split: Split) -> npt.NDArray[np.int64]:
    """The digits of a split: listing them for each scene took a fifth of its time."""
    return np.array([i for i, s in enumerate(_digits()[2]) if s == split], np.int64)


def _check(size: int, split: str) -> None:
    if size < 32:
        raise UserError(f"The size of digit scenes is {size}; it must be at least 32 pixels.")
    if split not in _SPLITS:
        raise UserError(f"The split of digit scenes is '{split}'; it must be train, val or test.")


def _background(rng: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """Colored clouds: float32 (size, size, 3), about 0..255."""
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = rng.uniform(30, 225, 3)
    for cells, strength in ((3, 25.0), (9, 12.0), (33, 8.0)):
        clouds = rng.normal(0, float(rng.uniform(0.2, 1)) * strength, (cells, cells, 3)).astype(np.float32)
        canvas += cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(canvas, 0, 255, out=canvas)


def _ink(rng: np.random.Generator, behind: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A color that differs from the mean color behind it by 60 grey levels or more in brightness."""
    luma = float(behind @ _LUMA)
    brighter = luma < 70 or (luma < 185 and bool(rng.random() < 0.5))
    low, high = (luma + 60, 255.0) if brighter else (0.0, luma - 60)
    target = float(rng.uniform(low, high))
    color = rng.uniform(0, 255, 3).astype(np.float32)
    # Blend towards black or white until the brightness is right; the hue stays.
    have = float(color @ _LUMA)
    end = 0.0 if have > target else 255.0
    part = (have - target) / (have - end) if have != end else 0.0
    return np.asarray(color + (end - color) * part, np.float32)
