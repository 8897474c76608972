"""Damaged files for every reader: nothing but our own errors may come out.

    python -m benchmarks.fuzz_readers [INPUTS] [SEED] [KIND ...]

A good file of each format is changed by hypothesis, in its values, its text or its bytes, and read. It prints the
number of inputs and, where another kind of exception came out, its traceback and the smallest input that gives it, and
ends with 1 if there was one. It needs the extra `dev`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image

from datamodules.annotations.masks import MaskFormat, binary_format, index_format, read_mask
from datamodules.annotations.soft_masks import read_soft_mask
from datamodules.common.errors import UserError
from datamodules.readers.box_sources import read_boxes
from datamodules.readers.lists import read_list
from datamodules.readers.mask_sources import read_mask_source

# What is put in place of a value, or into a text. Hypothesis adds values of its own.
VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 2, 0.5, 1e300, -1e300, 2**63, 2**70, float("nan"), float("inf")),
    *("", "1", "1.0", "x", "é", "\ud800", "no", "null", "\\", "../..", "\x00", "[1, 2]", "9" * 400, "9" * 5000),
    *([], [[]], [1], [1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]], {}, {"a": 1}, {"size": [40, 48], "counts": "9"}),
]
WORDS = [
    *("", " ", "0", "1", "-1", "nan", "inf", "1e999", "1_0", "9" * 400, "9" * 5000, ";", ",", "|", "[", "]", "'", '"'),
    *("\t", "\r", "\n", "\x00", "\\", "/", ":", "no", "~", "%", "&x", "*x", "- ", "{", "}", "!!", "<x>", "<!--", "&a;"),
]
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 6, 20, 16], "area": 320, "iscrowd": 0}
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 40}],
    "categories": [{"id": 1, "name": "disc", "supercategory": "none"}],
    "annotations": [
        {**BOX, "segmentation": [[8, 6, 28, 6, 28, 22]]},
        {**BOX, "id": 2, "segmentation": {"size": [40, 48], "counts": [0, 5, 1915]}},
        {**BOX, "id": 3, "segmentation": {"size": [40, 48], "counts": "f0a1"}},
    ],
}
SHAPE = {"label": "a", "points": [[1, 2], [3, 4], [9, 9]], "shape_type": "polygon", "group_id": 1}
LABELME = {"shapes": [SHAPE], "imagePath": "a.png", "imageHeight": 40, "imageWidth": 48}
RECTANGLE = {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}
REGIONS = [{"shape_attributes": RECTANGLE, "region_attributes": {"class": "a"}}]
VIA = {"a": {"filename": "a.png", "regions": REGIONS}}
COORDINATES = {"x": 9, "y": 9, "width": 4, "height": 5}
CREATEML = [{"image": "a.png", "annotations": [{"label": "a", "coordinates": COORDINATES}]}]
VALUE = {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 5, "rectanglelabels": ["a"]}
RESULT = {"value": VALUE, "original_width": 48, "original_height": 40}
STUDIO = [{"data": {"image": "/x/a.png"}, "annotations": [{"result": [RESULT]}]}]
VOC = (
    "<?xml version='1.0' encoding='utf-8'?><annotation><size><width>48</width><height>40</height></size><object>"
    "<name>a</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    "</object></annotation>"
)
CVAT = (
    "<annotations><image id='0' name='a.png' width='48' height='40'>"
    "<box label='a' xtl='1' ytl='2' xbr='9' ybr='8' rotation='5'/><polygon label='a' points='1,2;3,4;9,9'/>"
    "<mask label='a' rle='2, 1, 3' left='3' top='5' width='3' height='2'/></image></annotations>"
)
YAML = "path: .\ntrain: images\nval: l.txt\nkpt_shape: [1, 2]\nnc: 2\nnames: [disc, no]\n"
DARKNET = "classes = 1\ntrain = l.txt\nnames = obj.names\nbackup = b\n"
YOLO = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.9 0.1 0.5 0.9\n"
CSV = {
    "label": "path,label,split,weight\na.png,cat,train,1\n",
    "labels": 'path,labels\na.png,"[""cat"", ""dog""]"\n',
    "probabilities": "path,probabilities\na.png,0.5;0.5\n",
    "classes": "path,p_cat,p_dog\na.png,0.5,0.5\n",
}
ROWS = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,48,40,a,1,2,9,8\n"

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=4), t, max_size=3))
values = st.sampled_from(VALUES).map(copy.deepcopy) | trees
words = st.sampled_from(WORDS) | st.text(max_size=4)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (object or list, key) of a tree."""
    found: list[tuple[Any, Any]] = []
    todo = [data]
    while todo:
        node = todo.pop()
        if isinstance(node, dict | list):
            pairs = list(node.items() if isinstance(node, dict) else enumerate(node))
            found += [(node, key) for key, _ in pairs]
            todo += [value for _, value in pairs]
    return found


@st.composite
def changed_json(draw: Any, good: Any) -> bytes:
    """One to three values changed or taken out; now and then the text."""
    data = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        there = places(data)
        if not there:
            break
        node, key = there[draw(st.integers(0, len(there) - 1))]
        if draw(st.integers(0, 4)):
            node[key] = draw(values)
        else:
            del node[key]
    text = json.dumps(data)
    return draw(changed_text(text)) if draw(st.integers(0, 9)) == 0 else text.encode()


@st.composite
def changed_text(draw: Any, good: str) -> bytes:
    """Words put in, letters taken out; now and then another encoding, or damaged bytes."""
    text = good
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(words) + text[at + draw(st.integers(0, 6)) :]
    kind = draw(st.integers(0, 19))
    encoding = {0: "utf-16", 1: "utf-8-sig", 2: "utf-16-le"}.get(kind, "utf-8")
    data = text.encode(encoding, "replace")
    return draw(changed_bytes(data)) if kind == 3 else data


@st.composite
def changed_bytes(draw: Any, good: bytes) -> bytes:
    """One to three bytes changed; now and then the end cut off."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 4)) == 0 else data)


def png(pixels: Any, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


class Case(NamedTuple):
    """A reader, in a folder of its own."""

    name: str
    file: str  # what is changed
    inputs: st.SearchStrategy[bytes]
    read: Callable[[Path], Any]  # of the folder
    others: dict[str, str] = {}  # files beside it  # noqa: RUF012 - never changed


def of_json(kind: Any, good: Any) -> Case:
    """Read as the format, or as what it looks like."""

    def read(folder: Path) -> Any:
        file = folder / "a.json"
        return read_boxes(file, kind if file.stat().st_size % 3 else None)

    return Case(kind, "a.json", changed_json(good), read)


def of_csv(kind: str, good: str) -> Case:
    return Case(f"csv of {kind}", "l.csv", changed_text(good), lambda folder: read_list(folder / "l.csv"))


def read_masks(source: Path) -> Any:
    return read_mask_source(str(source), None, None, None, multi_label=False)


def of_mask(kind: str, good: bytes, fmt: MaskFormat) -> Case:
    return Case(f"{kind} mask", "m.png", changed_bytes(good), lambda folder: read_mask(folder / "m.png", fmt))


def cases() -> list[Case]:
    """All readers."""
    mask = (np.arange(40 * 48).reshape(40, 48) % 3).astype(np.uint8)
    index, yolo = index_format(["a", "b", "c"], None, [255]), {"a.txt": YOLO, "l.txt": "a.png\n"}
    plain = YAML.replace("kpt_shape: [1, 2]\n", "").replace("images", "l.txt").replace("val: l.txt\n", "")
    formats = [("coco", COCO), ("labelme", LABELME), ("via", VIA), ("createml", CREATEML), ("labelstudio", STUDIO)]
    return [
        *(of_json(kind, good) for kind, good in formats),
        Case("coco masks", "a.json", changed_json(COCO), lambda folder: read_masks(folder / "a.json")),
        Case("voc", "a.xml", changed_text(VOC), lambda folder: read_boxes(folder, "voc")),
        Case("cvat", "a.xml", changed_text(CVAT), lambda folder: read_boxes(folder / "a.xml", "cvat")),
        Case("yolo labels", "a.txt", changed_text(YOLO), read_boxes, {"data.yaml": plain, **yolo}),
        Case("yolo list", "l.txt", changed_text("./a.png\n"), read_boxes, {"data.yaml": plain, **yolo}),
        Case("yaml", "data.yaml", changed_text(plain), read_boxes, yolo),
        Case("yaml with key points", "data.yaml", changed_text(YAML), read_boxes, yolo),
        Case("darknet", "obj.data", changed_text(DARKNET), read_boxes, {"obj.names": "a\nb\n", **yolo}),
        Case("class names", "classes.txt", changed_text("a\nb\n"), lambda folder: read_boxes(folder, "yolo"), yolo),
        *(of_csv(kind, good) for kind, good in CSV.items()),
        Case("text list", "l.txt", changed_text("a.png cat\n"), lambda folder: read_list(folder / "l.txt")),
        Case("mask list", "m.csv", changed_text("path,mask\na.png,a.png\n"), lambda f: read_masks(f / "m.csv")),
        Case("box csv", "b.csv", changed_text(ROWS), lambda folder: read_boxes(folder / "b.csv")),
        of_mask("index", png(mask), index),
        of_mask("palette", png(mask, "P"), index),
        of_mask("gray RGB", png(np.stack([mask] * 3, 2)), index),
        of_mask("binary", png((mask > 0).astype(np.uint8) * 255), binary_format()),
        Case("soft mask", "s.png", changed_bytes(png(np.stack([mask] * 4, 2))), lambda f: read_soft_mask(f / "s.png")),
    ]  # fmt: skip


def run(case: Case, folder: Path, inputs: int, seed: int, count: Counter[str]) -> Exception | None:
    """Read so many changed files; what came out that is no error of ours."""
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png(np.zeros((40, 48, 3), np.uint8)))
    for name, content in case.others.items():
        (folder / name).write_text(content)
    quiet: Any = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": False}

    @seeded(seed)
    @settings(max_examples=inputs, phases=[Phase.generate, Phase.shrink], **quiet)
    @given(data=case.inputs)
    def test(data: bytes) -> None:
        count[case.name] += 1
        (folder / case.file).write_bytes(data)
        with contextlib.suppress(UserError):
            case.read(folder)

    try:
        test()
    except Exception as error:
        return error
    return None


def main(inputs: int = 2800, seed: int = 0, kinds: Sequence[str] = ()) -> int:
    """Read so many files, as many of each kind, all or those named; 1 if there was an error that is not ours."""
    count, start, wrong = Counter[str](), time.perf_counter(), 0
    every = [case for case in cases() if not kinds or case.name in kinds]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, case in enumerate(every):
            error = run(case, Path(folder) / str(number), inputs // len(every), seed, count)
            if error is not None:
                wrong += 1
                print(f"{case.name}:", *traceback.format_exception(error), sep="\n")
    seconds = time.perf_counter() - start
    print(
        f"{count.total():,} inputs of {len(every)} kinds in {seconds:.0f} s, seed {seed}: {wrong} kinds with an error"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    inputs, number = [*map(int, sys.argv[1:3]), *(2800, 0)[len(sys.argv[1:3]) :]]
    sys.exit(main(inputs, number, sys.argv[3:]))
