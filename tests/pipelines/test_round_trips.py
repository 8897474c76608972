"""Boxes and masks in every format that is read, through `convert` into COCO, VOC and YOLO and back."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from pycocotools import mask as pycoco

from datamodules.annotations.records import Listing, Record
from datamodules.common import rle
from datamodules.readers.box_sources import read_boxes
from pipelines.commands.convert import convert
from pipelines.outputs.formats.polygons import one_polygon

# The formats that `convert` reads and does not write, as their programs write them.


def objects(record: Record, names: list[str]) -> list[tuple[str, list[float], list[list[float]] | None]]:
    """Class, corners and polygon of each object."""
    found = []
    for k, corners in enumerate(record["boxes"].tolist()):
        mask = record["segmentation"] and record["segmentation"][k]
        line = one_polygon(mask, record["height"], record["width"]) if mask else None
        found.append((names[record["labels"][k]], corners, line and np.reshape(line, (-1, 2)).tolist()))
    return found


def write_labelme(root: Path, data: Listing) -> Path:
    for record in data.records:
        shapes: list[Any] = []
        for name, (x1, y1, x2, y2), line in objects(record, data.class_names):
            kind, points = ("polygon", line) if line else ("rectangle", [[x1, y1], [x2, y2]])
            shapes.append({"label": name, "points": points, "group_id": None, "shape_type": kind})
        size = {"imageHeight": record["height"], "imageWidth": record["width"]}
        file = root / Path(record["path"]).with_suffix(".json").name
        file.write_text(json.dumps({"version": "5", "shapes": shapes, "imagePath": Path(record["path"]).name} | size))
    return root


def write_createml(root: Path, data: Listing) -> Path:
    entries = []
    for record in data.records:
        things = []
        for name, (x1, y1, x2, y2), _ in objects(record, data.class_names):
            place = {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}
            things.append({"label": name, "coordinates": place})
        entries.append({"image": Path(record["path"]).name, "annotations": things})
    (root / "boxes.json").write_text(json.dumps(entries))
    return root / "boxes.json"


def write_via(root: Path, data: Listing) -> Path:
    entries = {}
    for record in data.records:
        regions = []
        for name, (x1, y1, x2, y2), line in objects(record, data.class_names):
            shape: dict[str, Any] = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
            if line:
                x, y = map(list, zip(*line, strict=True))
                shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
            regions.append({"shape_attributes": shape, "region_attributes": {"class": name}})
        name = Path(record["path"]).name
        entries[f"{name}123"] = {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}
    (root / "via.json").write_text(json.dumps(entries))
    return root / "via.json"


def write_labelstudio(root: Path, data: Listing) -> Path:
    tasks = []
    for i, record in enumerate(data.records):
        width, height = record["width"], record["height"]
        results = []
        for name, (x1, y1, x2, y2), line in objects(record, data.class_names):
            values = np.array(line or [[x1, y1], [x2 - x1, y2 - y1]]) * 100 / (width, height)
            if line:
                value = {"points": values.tolist(), "polygonlabels": [name]}
            else:
                place = dict(zip(("x", "y", "width", "height"), values.ravel().tolist(), strict=True))
                value = place | {"rotation": 0, "rectanglelabels": [name]}
            results.append({"original_width": width, "original_height": height, "value": value})
        image = f"/data/local-files/?d={Path(record['path']).name}"
        tasks.append({"id": i, "data": {"image": image}, "annotations": [{"result": results}]})
    (root / "tasks.json").write_text(json.dumps(tasks))
    return root / "tasks.json"


def write_cvat(root: Path, data: Listing) -> Path:
    top = ElementTree.Element("annotations")
    for record in data.records:
        about = {"name": Path(record["path"]).name, "width": str(record["width"]), "height": str(record["height"])}
        image = ElementTree.SubElement(top, "image", about)
        for name, corners, line in objects(record, data.class_names):
            if line:
                points = ";".join(f"{x},{y}" for x, y in line)
                ElementTree.SubElement(image, "polygon", {"label": name, "points": points})
            else:
                place = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(str, corners), strict=True))
                ElementTree.SubElement(image, "box", {"label": name, **place})
    ElementTree.ElementTree(top).write(root / "annotations.xml")
    return root


def write_csv(root: Path, data: Listing) -> Path:
    with open(root / "boxes.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for record in data.records:
            start = [Path(record["path"]).name, record["width"], record["height"]]
            rows.writerows([*start, name, *corners] for name, corners, _ in objects(record, data.class_names))
            if not len(record["boxes"]):
                rows.writerow([*start, "", "", "", "", ""])
    return root / "boxes.csv"


PROGRAMS: dict[str, Callable[[Path, Listing], Path]] = {
    "labelme": write_labelme,
    "createml": write_createml,
    "via": write_via,
    "labelstudio": write_labelstudio,
    "cvat": write_cvat,
    "csv": write_csv,
}
FORMATS = ["coco", "voc", "yolo", *PROGRAMS]


def in_format(name: str, source: Path, root: Path) -> Path:
    """A data set, read by `read_boxes`, in another format."""
    if name not in PROGRAMS:
        convert(source, name, root, policy="fix")  # type: ignore[arg-type]
        return root
    convert(source, "coco", root.with_name("right"), policy="fix")  # without bccd's two boxes without area
    data = read_boxes(root.with_name("right"))
    root.mkdir()
    for record in data.records:
        (root / Path(record["path"]).name).symlink_to(Path(record["path"]).resolve())
    return PROGRAMS[name](root, data)


# The comparison.


def compare(first: Listing, second: Listing) -> dict[str, Any]:
    """The largest difference of a corner in pixels, and the IoU of every pair of masks, by pycocotools."""
    by_name = {Path(r["path"]).name: r for r in second.records}
    assert len(by_name) == len(second.records) == len(first.records)
    difference, ious, lost = 0.0, [], 0
    for a in first.records:
        b = by_name[Path(a["path"]).name]
        assert (a["height"], a["width"]) == (b["height"], b["width"])
        names = [[data.class_names[k] for k in r["labels"]] for data, r in ((first, a), (second, b))]
        assert names[0] == names[1]
        difference = max(difference, float(np.abs(a["boxes"] - b["boxes"]).max(initial=0)))
        masks = [r["segmentation"] or [None] * len(r["boxes"]) for r in (a, b)]
        for one, two in zip(*masks, strict=True):
            if one and two:
                runs = [pycoco_runs(mask, a["height"], a["width"]) for mask in (one, two)]
                ious.append(float(pycoco.iou(runs[:1], runs[1:], [0])[0, 0]))
            lost += bool(one) and not two
    boxes = sum(len(record["boxes"]) for record in first.records)
    return {"boxes": boxes, "corner": difference, "ious": np.array(ious), "lost": lost}


def pycoco_runs(mask: Any, height: int, width: int) -> Any:
    if isinstance(mask, list):
        return pycoco.merge(pycoco.frPyObjects(mask, height, width))
    return pycoco.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask


def round_trip(source: Path, to: str, folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The differences after one conversion, and after that back to COCO."""
    truth = read_boxes(source)
    convert(source, to, folder / "there")  # type: ignore[arg-type]
    convert(folder / "there", "coco", folder / "back")
    return [(name, compare(truth, read_boxes(folder / name))) for name in ("there", "back")]


# Generated data.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """COCO: boxes between pixels, polygons of one part and of two, run lengths with holes and several parts."""
    rng = np.random.default_rng(0)
    root = tmp_path / "source"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for i, (height, width) in enumerate([(40, 60), (123, 77), (64, 64)]):
        cv2.imwrite(str(root / "images" / f"{i}.png"), np.full((height, width, 3), 9, np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for k in range(0 if i == 2 else 6):
            mask = np.zeros((height, width), np.uint8, order="F")
            x, y = rng.integers(1, 12, 2)
            mask[y : y + 20, x : x + 22] = rng.random((20, 22)) < (0.2, 0.6, 0.95)[k % 3]
            run = pycoco.encode(mask)
            box, area, shape = pycoco.toBbox(run).tolist(), int(mask.sum()), {**run, "counts": run["counts"].decode()}
            if k > 2:
                # No odd tenths: they lie between two points of pycocotools' grid, and eight digits may give either.
                shape = [[x + 0.27, y, x + 9, y + 1.64, x + 5, y + 9], [x + 12, y, x + 20, y, x + 15.42, y + 6]]
                shape = shape[: k - 2]
                box = [x + 0.27, y, (8.73 if k == 3 else 19.73), 9]
                area = float(pycoco.area(pycoco_runs(shape, height, width)))
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": 3 + 2 * (k % 2), "iscrowd": 0}
                | {"bbox": [float(v) for v in box], "area": area, "segmentation": shape})  # fmt: skip
    data = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}],
    }
    (root / "annotations" / "instances.json").write_text(json.dumps(data, default=float))
    return root


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_to_coco_voc_and_yolo_and_back(source, tmp_path, name):
    start = in_format(name, source, tmp_path / "start")
    for to in ("coco", "voc", "yolo"):
        for _, found in round_trip(start, to, tmp_path / to):
            assert found["boxes"] == 12
            assert found["corner"] < 0.002
            assert (found["ious"] > 0.999).all()
            masks = 0 if name in ("voc", "createml", "csv") else 12
            assert (len(found["ious"]), found["lost"]) == ((0, masks) if to == "voc" else (masks, 0))


def test_coco_keeps_run_lengths_as_they_are(source, tmp_path):
    convert(source, "coco", tmp_path / "c")
    texts = [(root / "annotations" / "instances.json").read_text() for root in (source, tmp_path / "c")]
    old, new = ([a["segmentation"] for a in json.loads(text)["annotations"]] for text in texts)
    assert old == new


def test_one_polygon_covers_the_same_pixels():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 14, 2).tolist()
        mask = (rng.random((height, width)) < rng.choice([0.2, 0.5, 0.9])).astype(np.uint8)
        line = one_polygon(pycoco.encode(np.asfortranarray(mask)), height, width)
        if not mask.any():
            assert line is None
            continue
        np.testing.assert_array_equal(pycoco.decode(pycoco_runs([line], height, width)), mask)
    overlapping = [[0, 0, 8, 0, 8, 8, 0, 8], [4, 4, 12, 4, 12, 12, 4, 12]]
    line = one_polygon(overlapping, 12, 12)
    assert rle.area(rle.from_segmentation([line], 12, 12)) == 112
    assert one_polygon(overlapping[:1], 12, 12) == overlapping[0]


# Real data; `-s` prints the figures of docs/data.md.


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("data", ["bccd", "nuclei"])
def test_shared_data_survive(shared, tmp_path, data, name):
    start = in_format(name, shared / data, tmp_path / "start")
    for to in ("coco", "voc", "yolo"):
        for step, found in round_trip(start, to, tmp_path / to):
            ious = found["ious"]
            worst, exact = ious.min(initial=1), int((ious == 1).sum())
            print(f"\n{data} {name} {to} {step}: {found['boxes']:,} boxes, corners {found['corner']:.4f} px;", end=" ")
            print(f"{len(ious):,} masks, {exact:,} equal, least IoU {worst:.4f}; {found['lost']:,} lost", end="")
            assert found["corner"] <= 0.5
            assert worst > 0.99
            assert to != "coco" or exact == len(ious)
            assert to == "voc" or not found["lost"]
