"""Damaged files for every reader: nothing but our own errors may come out.

    python -m benchmarks.fuzz_readers [SECONDS] [SEED]

A good file of each format is changed at random places, by bytes and by values, and read. It prints the number of inputs
and every other kind of exception with its place, and ends with 1 if there was one.
"""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.annotations.masks import binary_format, index_format, read_mask
from datamodules.common.errors import UserError
from datamodules.readers.box_sources import read_boxes
from datamodules.readers.lists import read_list
from datamodules.readers.mask_sources import read_mask_source

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        1e300,
        -1e300,
        2**63,
        2**70,
        float("nan"),
        float("inf"),
        "",
        "1",
        "1.0",
        "x",
        "é",
    ),
    *(
        "no",
        "null",
        "\\",
        "../..",
        "\x00",
        [],
        [[]],
        [1],
        [1, 2, 3, 4],
        [[1, 2, 3, 4, 5, 6]],
        {},
        {"a": 1},
        "[1, 2]",
        "9" * 400,
    ),
]
WORDS = [
    "",
    " ",
    "0",
    "1",
    "-1",
    "nan",
    "inf",
    "1e999",
    "1_0",
    ";",
    ",",
    "|",
    "[",
    "]",
    "'",
    '"',
    "\t",
    "\r",
    "\n",
    "\\",
    ":",
    "no",
    "~",
    "%",
    "&x",
    "*x",
]
BOX = {
    "id": 1,
    "image_id": 1,
    "category_id": 1,
    "bbox": [8, 6, 20, 16],
    "area": 320,
    "iscrowd": 0,
    "segmentation": [[8, 6, 28, 6, 28, 22]],
}
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 40}],
    "categories": [{"id": 1, "name": "disc", "supercategory": "none"}],
    "annotations": [BOX, {**BOX, "id": 2, "segmentation": {"size": [40, 48], "counts": [0, 5, 1915]}}],
}
LABELME = {
    "shapes": [{"label": "a", "points": [[1, 2], [3, 4], [9, 9]], "shape_type": "polygon", "group_id": 1}],
    "imagePath": "a.png",
    "imageHeight": 40,
    "imageWidth": 48,
}
VIA = {
    "a": {
        "filename": "a.png",
        "regions": [
            {
                "shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
                "region_attributes": {"class": "a"},
            }
        ],
    }
}
CREATEML = [
    {"image": "a.png", "annotations": [{"label": "a", "coordinates": {"x": 9, "y": 9, "width": 4, "height": 5}}]}
]
STUDIO = [
    {
        "data": {"image": "/x/a.png"},
        "annotations": [
            {
                "result": [
                    {
                        "value": {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 0, "rectanglelabels": ["a"]},
                        "original_width": 48,
                        "original_height": 40,
                    }
                ]
            }
        ],
    }
]
XML = (
    "<?xml version='1.0' encoding='utf-8'?><annotation><size><width>48</width><height>40</height></size><object>"
    "<name>a</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    "</object></annotation>"
)
CVAT = (
    "<annotations><image id='0' name='a.png' width='48' height='40'>"
    "<box label='a' xtl='1' ytl='2' xbr='9' ybr='8' rotation='5'/>"
    "<mask label='a' rle='2, 1, 3' left='3' top='5' width='3' height='2'/></image></annotations>"
)
YAML = "path: .\ntrain: images/train\nval: l.txt\nkpt_shape: [1, 2]\nnc: 2\nnames: [disc, no]\n"


def png(mask: Any, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(mask)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def json_cases() -> list[tuple[str, Any]]:
    return [("coco", COCO), ("labelme", LABELME), ("via", VIA), ("createml", CREATEML), ("labelstudio", STUDIO)]


def change_value(data: Any, rng: random.Random) -> Any:
    """A copy with one value, key or entry changed."""
    data = copy.deepcopy(data)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(data)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = copy.deepcopy(rng.choice(VALUES))
    return data


def change_text(text: str, rng: random.Random) -> bytes:
    """A word put in, taken out, or bytes damaged."""
    at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    end = min(end, at + 6)
    data = (text[:at] + rng.choice(WORDS) + text[end if rng.random() < 0.7 else at :]).encode()
    if rng.random() < 0.2:
        data = change_bytes(data, rng)
    return data if rng.random() < 0.95 else data.decode("utf-8", "replace").encode("utf-16")


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        if out:
            out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out[: rng.randrange(len(out) + 1)] if rng.random() < 0.2 else out)


def cases(root: Path) -> list[tuple[str, Callable[[random.Random], Callable[[], Any]]]]:
    """(name, what writes a changed input and gives what reads it) of each reader."""
    picture = png(np.zeros((40, 48, 3), np.uint8))
    for name in ("j/a.png", "v/a.png", "y/images/train/a.png", "c/a.png", "x/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture)
    (root / "y/labels/train").mkdir(parents=True)
    mask = (np.arange(40 * 48).reshape(40, 48) % 3).astype(np.uint8)
    masks = [png(mask), png(mask, "P"), png((mask > 0).astype(np.uint8) * 255), png(np.stack([mask] * 3, 2))]

    def of_json(kind: str, good: Any) -> Callable[[random.Random], Callable[[], Any]]:
        def make(rng: random.Random) -> Callable[[], Any]:
            file = root / "j" / "a.json"
            if rng.random() < 0.8:
                data = change_value(good, rng)
                file.write_text(json.dumps(change_value(data, rng) if data and rng.random() < 0.4 else data))
            else:
                file.write_bytes(change_text(json.dumps(good), rng))
            if kind == "coco" and rng.random() < 0.3:
                return lambda: read_mask_source(str(file), None, None, None, multi_label=False)
            return lambda: read_boxes(file, kind if rng.random() < 0.7 else None)  # type: ignore[arg-type]

        return make

    def of_text(name: str, good: str, read: Callable[[], Any]) -> Callable[[random.Random], Callable[[], Any]]:
        def make(rng: random.Random) -> Callable[[], Any]:
            (root / name).write_bytes(change_text(good, rng))
            return read

        return make

    def of_yolo(rng: random.Random) -> Callable[[], Any]:
        line = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.9 0.1 0.5 0.9\n"
        which = rng.randrange(3)
        yaml = YAML.replace("kpt_shape: [1, 2]\n", "")
        (root / "y/data.yaml").write_bytes(change_text(rng.choice([yaml, YAML]), rng) if which == 0 else yaml.encode())
        (root / "y/labels/train/a.txt").write_bytes(change_text(line, rng) if which == 1 else line.encode())
        listed = "./images/train/a.png\n"
        (root / "y/l.txt").write_bytes(change_text(listed, rng) if which == 2 else b"")
        return lambda: read_boxes(root / "y")

    def of_mask(rng: random.Random) -> Callable[[], Any]:
        (root / "m.png").write_bytes(change_bytes(rng.choice(masks), rng))
        fmt = rng.choice([binary_format(), index_format(["a", "b", "c"], None, [255])])
        return lambda: read_mask(root / "m.png", fmt)

    def read_pairs() -> Any:
        return read_mask_source(str(root / "c/m.csv"), None, None, None, multi_label=False)

    csv = "path,label,split\na.png,cat,train\n"
    several = 'path,labels,weight\na.png,"[""cat"", ""dog""]",1\n'
    rows = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,48,40,a,1,2,9,8\n"
    pair = "path,mask,split\na.png,a.png,val\n"
    return [
        *((kind, of_json(kind, good)) for kind, good in json_cases()),
        ("voc", of_text("v/a.xml", XML, lambda: read_boxes(root / "v", "voc"))),
        ("cvat", of_text("x/annotations.xml", CVAT, lambda: read_boxes(root / "x" / "annotations.xml", "cvat"))),
        ("yolo", of_yolo),
        ("csv", of_text("c/l.csv", csv, lambda: read_list(root / "c/l.csv"))),
        ("csv of several labels", of_text("c/s.csv", several, lambda: read_list(root / "c/s.csv"))),
        ("text list", of_text("c/l.txt", "a.png cat\n", lambda: read_list(root / "c/l.txt"))),
        ("mask list", of_text("c/m.csv", pair, read_pairs)),
        ("box csv", of_text("c/b.csv", rows, lambda: read_boxes(root / "c/b.csv"))),
        ("masks", of_mask),
    ]  # fmt: skip


def main(seconds: float = 60, seed: int = 0) -> int:
    rng, counts = random.Random(seed), Counter[str]()
    bad: dict[tuple[str, str, str], str] = {}
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        readers = cases(Path(folder))
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            name, make = readers[sum(counts.values()) % len(readers)]
            counts[name] += 1
            read = make(rng)
            try:
                read()
            except UserError:
                continue
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)
                own = [frame for frame in last if "datamodules" in frame.filename][-1]
                key = (name, type(error).__name__, f"{Path(own.filename).name}:{own.lineno}")
                bad.setdefault(key, str(error)[:200])
    print(f"{counts.total():,} inputs in {seconds:.0f} s: {dict(counts)}")
    for key, text in bad.items():
        print(*key, text, sep=" | ")
    return int(bool(bad))


if __name__ == "__main__":
    seconds, seed, *_ = [*sys.argv[1:], *("60", "0")[len(sys.argv) - 1 :]]
    sys.exit(main(float(seconds), int(seed)))
