"""What annotation programs write: each format gives the same boxes, and refuses what has no box."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import DetectionData
from datamodules.common import rle
from datamodules.common.errors import UserError
from datamodules.readers.box_sources import find_format, read_boxes
from datamodules.readers.json_files import json_kind

WIDTH, HEIGHT = 48, 40
BOXES = {"a.png": [("disc", [8.0, 6.0, 28.0, 22.0]), ("square", [2.0, 4.0, 12.0, 10.0])], "b.png": []}
TRIANGLE = [[8, 6], [28, 6], [28, 22]]


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


PNG = png()


def labelme(name: str) -> Any:
    shapes = [
        {"label": c, "points": [box[:2], box[2:]], "shape_type": "rectangle", "group_id": None}
        for c, box in BOXES[name]
    ]
    return {
        "version": "5",
        "flags": {},
        "shapes": shapes,
        "imagePath": name,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def createml() -> Any:
    def entry(box: list[float]) -> dict[str, float]:
        x1, y1, x2, y2 = box
        return {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}

    return [
        {"image": name, "annotations": [{"label": c, "coordinates": entry(box)} for c, box in things]}
        for name, things in BOXES.items()
    ]


def via() -> Any:
    def region(name: str, box: list[float]) -> Any:
        x1, y1, x2, y2 = box
        form = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        return {"shape_attributes": form, "region_attributes": {"class": name}}

    return {
        f"{name}1234": {
            "filename": name,
            "size": 1234,
            "regions": [region(*thing) for thing in things],
            "file_attributes": {},
        }
        for name, things in BOXES.items()
    }


def labelstudio() -> Any:
    def result(name: str, box: list[float]) -> Any:
        x1, y1, x2, y2 = box
        w, h = WIDTH / 100, HEIGHT / 100
        value = {"x": x1 / w, "y": y1 / h, "width": (x2 - x1) / w, "height": (y2 - y1) / h, "rotation": 0}
        value["rectanglelabels"] = [name]
        return {"type": "rectanglelabels", "value": value, "original_width": WIDTH, "original_height": HEIGHT}

    return [
        {
            "id": 1,
            "data": {"image": f"/data/upload/1/{name}"},
            "annotations": [{"result": [result(*t) for t in things]}],
        }
        for name, things in BOXES.items()
    ]


def cvat() -> str:
    images = ""
    for i, (name, things) in enumerate(BOXES.items()):
        lines = "".join(
            f'<box label="{c}" occluded="0" xtl="{b[0]}" ytl="{b[1]}" xbr="{b[2]}" ybr="{b[3]}" z_order="0"></box>'
            for c, b in things
        )
        images += f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{lines}</image>'
    return f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{images}</annotations>'


def box_csv() -> str:
    rows = "".join(
        f"{name},{WIDTH},{HEIGHT},{c},{','.join(map(str, box))}\n"
        for name, things in BOXES.items()
        for c, box in things
    )
    return f"filename,width,height,class,xmin,ymin,xmax,ymax\n{rows}b.png,{WIDTH},{HEIGHT},,,,,\n"


def write(root: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


IMAGES = {"a.png": PNG, "b.png": PNG}
APART = {f"images/{name}": PNG for name in IMAGES}


def windows(name: str) -> Any:
    return {**labelme(f"{name}.png"), "imagePath": f"..\\images\\{name}.png"}


def labelstudio_local() -> Any:
    local = [f"/data/local-files/?d=images/{name}" for name in IMAGES]
    return [{**task, "data": {"image": path}} for task, path in zip(labelstudio(), local, strict=True)]


def labelstudio_min() -> Any:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return [
        {
            "id": task["id"],
            "image": task["data"]["image"],
            "label": [{**result["value"], **size} for result in task["annotations"][0]["result"]],
        }
        for task in labelstudio()
    ]


def other_names() -> str:
    return box_csv().replace("filename", "image_path").replace("class,xmin,ymin,xmax,ymax", "Label,x1,y1,x2,y2")


SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "labelme": ("", {f"{n}.json": labelme(f"{n}.png") for n in "ab"} | IMAGES),
    "labelme apart": ("", {f"annotations/{n}.json": labelme(f"{n}.png") for n in "ab"} | APART),
    "labelme of Windows": ("", {f"labels/{n}.json": windows(n) for n in "ab"} | APART),
    "createml": ("", {"_annotations.createml.json": createml(), **IMAGES}),
    "createml file": ("x.json", {"x.json": createml(), **IMAGES}),
    "via": ("", {"via_region_data.json": via(), **IMAGES}),
    "via project": ("p.json", {"p.json": {"_via_settings": {}, "_via_img_metadata": via()}, **IMAGES}),
    "labelstudio": ("export.json", {"export.json": labelstudio(), **IMAGES}),
    "labelstudio local": ("e.json", {"e.json": labelstudio_local(), **APART}),
    "labelstudio min": ("m.json", {"m.json": labelstudio_min(), **IMAGES}),
    "cvat": ("", {"annotations.xml": cvat(), **IMAGES}),
    "cvat file": ("c.xml", {"c.xml": cvat(), **APART}),
    "csv": ("labels.csv", {"labels.csv": box_csv(), **IMAGES}),
    "csv by other names": ("l.csv", {"l.csv": other_names(), **IMAGES}),
    "csv of Roboflow": ("", {f"train/{n}": c for n, c in {"_annotations.csv": box_csv(), **IMAGES}.items()}),
    "csv a split": ("{split}_labels.csv", {"train_labels.csv": box_csv(), **APART}),
    "csv in a folder": ("", {"train.csv": box_csv(), **APART}),
}


@pytest.mark.parametrize(("name", "files"), SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_program_gives_the_same_boxes(tmp_path, name, files, mark, request):
    texts = {
        n: c if isinstance(c, bytes) else mark + (c if isinstance(c, str) else json.dumps(c)) for n, c in files.items()
    }
    source = write(tmp_path, texts) / name if name else write(tmp_path, texts)
    assert find_format(source) == request.node.callspec.id.split("-")[-1].split()[0]
    listing = read_boxes(source)
    assert listing.class_names == ["disc", "square"]
    found = {
        Path(r["path"]).name: [
            (listing.class_names[k], box)
            for k, box in zip(r["labels"].tolist(), r["boxes"].round(3).tolist(), strict=True)
        ]
        for r in listing.records
    }
    assert found == BOXES
    assert {(r["height"], r["width"]) for r in listing.records} == {(HEIGHT, WIDTH)}
    assert listing.records[0]["area"].tolist() == pytest.approx([320, 60])
    data = DetectionData(source=str(source), val_fraction=0, batch_size=1, class_names=["square", "disc"])
    data.setup("fit")
    assert sorted(r["labels"].tolist() for r in data.records["train"]) == [[], [1, 0]]


def one(program: str, change: Any) -> Any:
    data = copy.deepcopy(
        {"labelme": labelme("a.png"), "createml": createml(), "via": via(), "labelstudio": labelstudio()}[program]
    )
    change(data)
    return data


def thing(program: str, data: Any) -> Any:
    """The first object of a file."""
    if program == "labelme":
        return data["shapes"][0]
    if program == "createml":
        return data[0]["annotations"][0]
    return data["a.png1234"]["regions"][0] if program == "via" else data[0]["annotations"][0]["result"][0]


PERCENT = [[x / 0.48, y / 0.4] for x, y in TRIANGLE]
REGION = {"name": "polygon", "all_points_x": [8, 28, 28], "all_points_y": [6, 6, 22]}
POLYGONS: dict[str, Any] = {
    "labelme": lambda thing: thing.update(shape_type="polygon", points=TRIANGLE),
    "via": lambda thing: thing.update(shape_attributes=REGION),
    "labelstudio": lambda thing: thing.update(value={"points": PERCENT, "polygonlabels": ["disc"]}),
}


@pytest.mark.parametrize("program", POLYGONS)
def test_polygons(tmp_path, program):
    data = one(program, lambda data: POLYGONS[program](thing(program, data)))
    record = read_boxes(write(tmp_path, {"x.json": data, **IMAGES}) / "x.json").records[0]
    assert record["boxes"][0].round(3).tolist() == [8, 6, 28, 22]
    assert np.round(record["segmentation"][0][0], 6).tolist() == [8, 6, 28, 6, 28, 22]
    assert record["area"][0] == rle.area(rle.from_segmentation([[8, 6, 28, 6, 28, 22]], HEIGHT, WIDTH))
    assert record["segmentation"][1] is None


def test_polygons_and_masks_of_cvat(tmp_path):
    things = '<polygon label="disc" points="8,6;28,6;28,22"/>'
    things += '<mask label="square" rle="2, 1, 3" left="3" top="5" width="3" height="2"/></image>'
    text = cvat().replace("</image>", things, 1)
    record = read_boxes(write(tmp_path, {"annotations.xml": text, **IMAGES})).records[0]
    assert record["boxes"][2:].tolist() == [[8, 6, 28, 22], [3, 5, 6, 7]]
    assert record["area"][3] == 1
    assert record["segmentation"][2] == [[8, 6, 28, 6, 28, 22]]


def test_parts_of_one_object_and_turned_boxes(tmp_path):
    data = labelme("a.png")
    data["shapes"] = [
        {"label": "disc", "points": p, "shape_type": "polygon", "group_id": 1}
        for p in (TRIANGLE, [[1, 1], [4, 1], [4, 5]])
    ]
    record = read_boxes(write(tmp_path, {"a.json": data, **IMAGES}) / "a.json").records[0]
    assert (record["boxes"].tolist(), len(record["segmentation"][0])) == ([[1, 1, 28, 22]], 2)
    turned = cvat().replace('z_order="0"', 'rotation="90"')
    record = read_boxes(write(tmp_path / "c", {"annotations.xml": turned, **IMAGES})).records[0]
    assert record["boxes"][0].round(3).tolist() == [10, 4, 26, 24]
    data = one("labelstudio", lambda d: thing("labelstudio", d)["value"].update(rotation=90))
    record = read_boxes(write(tmp_path / "s", {"x.json": data, **IMAGES}) / "x.json").records[0]
    assert record["boxes"][0].round(3).tolist() == [-8, 6, 8, 26]
    data = one("labelme", lambda d: d["shapes"][0].update(shape_type="circle", points=[[20, 20], [20, 25]]))
    record = read_boxes(write(tmp_path / "o", {"x.json": data, **IMAGES}) / "x.json").records[0]
    assert record["boxes"][0].tolist() == [15, 15, 25, 25]


REFUSED: list[tuple[str, Any, str]] = [
    ("labelme", {"shape_type": "line"}, r"x.json', shape 1 \('disc'\): a line of 2 points has no box"),
    ("labelme", {"points": [[1], [2]]}, "its points are .*; they must be pairs of numbers"),
    ("labelme", {"points": [["a", 2], [3, 4]]}, "shape 1 .*pairs of numbers|shape 1 is 'a'"),
    ("labelme", {"label": None}, "shape 1: it must have a 'label'"),
    ("createml", {"coordinates": {"x": 1}}, "box 1 of 'a.png': it must have a 'label' and 'coordinates' of x, y"),
    ("createml", {"coordinates": {"x": "a", "y": 1, "width": 1, "height": 1}}, "x is 'a'; it must be a number"),
    (
        "via",
        {"shape_attributes": {"name": "point", "cx": 1, "cy": 2}},
        r"region 1 of 'a.png' \('disc'\): a point has no box",
    ),
    ("via", {"region_attributes": {}}, "its attributes {} name no class"),
    ("via", {"region_attributes": {"a": "x", "b": "y"}}, "name no class; give it one attribute"),
    (
        "labelstudio",
        {"value": {"x": 1, "brushlabels": ["disc"], "rle": [1]}},
        "task 1, result 1: brushlabels is not read",
    ),
    ("labelstudio", {"value": {"x": 1, "y": 1, "rectanglelabels": ["disc", "b"]}}, "one label an object is read"),
    ("labelstudio", {"original_width": None}, "original_width is missing; it must be a number"),
]


@pytest.mark.parametrize(("program", "values", "message"), REFUSED)
def test_what_has_no_box_is_refused(tmp_path, program, values, message):
    data = one(program, lambda data: thing(program, data).update(values))
    with pytest.raises(UserError, match=message):
        read_boxes(write(tmp_path, {"x.json": data, **IMAGES}) / "x.json")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("annotations.xml", cvat().replace("<box", "<points").replace("</box", "</points"), "points has no box"),
        ("annotations.xml", cvat().replace('xtl="8.0"', 'xtl="left"'), "xtl is 'left'; it must be a number"),
        ("annotations.xml", "<annotations><track id='0'/><image/></annotations>", "CVAT's format for videos"),
        ("l.csv", box_csv().replace("xmin", "column"), r"has no column 'xmin' \(it has: filename"),
        ("l.csv", box_csv().replace("8.0", "left"), "l.csv, line 2: xmin is 'left'"),
        ("l.csv", box_csv().replace("disc", ""), "l.csv, line 2: the class is empty"),
        (
            "l.csv",
            box_csv().replace("b.png", "z.png"),
            "image 'z.png' does not exist .* 1 of 2 are missing. Set image_root",
        ),
        ("{split}.csv", box_csv(), "matches no file"),
    ],
)
def test_other_files_that_are_refused(tmp_path, name, text, message):
    write(tmp_path, {name.replace("{split}", "x"): text, **IMAGES})
    with pytest.raises(UserError, match=message):
        read_boxes(tmp_path / name)


def test_classes_images_and_roots(tmp_path):
    source = write(tmp_path, {"l/x.json": createml(), "pics/a.png": PNG, "pics/b.png": PNG}) / "l/x.json"
    assert len(read_boxes(source, image_root=tmp_path / "pics").records) == 2
    with pytest.raises(UserError, match=r"object 1 of 'a.png': class 'disc' is none of disk.* Did you mean 'disk'"):
        read_boxes(source, image_root=tmp_path / "pics", class_names=["disk"])
    with pytest.raises(UserError, match=r"Image '.*a.png' is in .* once more"):
        read_boxes(write(tmp_path, {"l/x.json": createml() * 2}) / "l/x.json", image_root=tmp_path / "pics")
    with pytest.raises(UserError, match="has no object with a class"):
        read_boxes(write(tmp_path, {"l/x.json": createml()[1:]}) / "l/x.json", "createml", image_root=tmp_path / "pics")


def test_a_long_labelme_file_is_known_by_its_end(tmp_path: Path):
    shape = {"label": "a", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"shapes": [shape] * 2000, "imagePath": "a.jpg", "imageHeight": 9, "imageWidth": 9}))
    assert path.stat().st_size > 1 << 17
    assert json_kind(path) == "labelme"


def test_files_and_images_that_are_left_out_are_counted(tmp_path: Path):
    for name, content in {f"{n}.json": labelme(f"{n}.png") for n in "ab"}.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "settings.json").write_text("{}")
    for name in ("a", "b", "alone"):
        (tmp_path / f"{name}.png").write_bytes(PNG)
    files, images = read_boxes(tmp_path).notes
    assert files.startswith("1 of 3 JSON files in")
    assert files.endswith("settings.json'.")
    assert images.startswith("1 of 3 images in")
    assert "alone.png" in images
