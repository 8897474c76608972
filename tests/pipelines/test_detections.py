"""Boxes and masks as files that our own readers open again; a detector's figures and panels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as run_lengths
from matplotlib.colors import to_hex
from PIL import Image

from datamodules.annotations.instance_masks import masks_of
from datamodules.readers.box_sources import read_boxes
from pipelines.callbacks import pictures as callback
from pipelines.callbacks.predictions import PredictionWriter
from pipelines.outputs import detection_figures as figures
from pipelines.outputs import drawing, panels
from pipelines.outputs.detection_figures import detection_figures
from pipelines.outputs.detections import entry_of, write_coco_data_set, write_coco_results, write_csv, write_yolo
from pipelines.outputs.palettes import class_palette
from tasks.detection.evaluation.curves import Thresholds
from tasks.detection.evaluation.metrics import CocoMetrics
from tests.detection_cases import encode, expected_values, random_case

NAMES = ["cat", "dog"]
FILES = ("a/1.jpg", "a/1.png", "b/1.jpg", "b/turned.jpg")


class Detector:
    """As much of a task as the writer and the pictures ask for; it shows objects of 0.5 and more."""

    num_classes = 2
    finds_boxes = True

    def __init__(self, metrics: Any = None) -> None:
        self.eval_metrics = metrics

    @property
    def taught(self) -> Any:
        return self

    def shown(self, predictions: dict[str, Any]) -> dict[str, Any]:
        keep = [scores >= 0.5 for scores in predictions["scores"]]
        shown = {k: [v[i] for v, i in zip(predictions[k], keep, strict=True)] for k in ("boxes", "scores", "labels")}
        if "masks" in predictions:
            pairs = zip(predictions["masks"], keep, strict=True)
            shown["masks"] = [[m for m, i in zip(masks, some.tolist(), strict=True) if i] for masks, some in pairs]
        return shown

    def rows(self, batch: dict[str, Any], outputs: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
        pairs = zip(batch["path"], self.shown(outputs)["labels"], strict=True)
        return [{"path": path, "objects": len(labels)} for path, labels in pairs]

    def captions(self, batch: dict[str, Any], outputs: dict[str, Any] | None, names: list[str]) -> list[str]:
        return [f"{path.rsplit('/', 1)[-1]}" for path in batch["path"]]


@pytest.fixture
def folder(tmp_path: Path) -> tuple[list[str], list[tuple[int, int]]]:
    """Four files of different sizes, some of one name, one turned by EXIF; their heights and widths as seen."""
    paths, sizes = [], []
    for i, name in enumerate(FILES):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if "turned" in name else 1
        Image.fromarray(np.full((60 + 20 * i, 90, 3), 120, np.uint8)).save(path, exif=exif)
        paths.append(str(path))
        sizes.append((90, 60 + 20 * i) if "turned" in name else (60 + 20 * i, 90))
    return paths, sizes


def trainer_of(paths: list[str], fn: str = "predict", rank: int = 0, ranks: int = 1, **data: Any) -> Any:
    return SimpleNamespace(
        is_global_zero=rank == 0,
        global_rank=rank,
        world_size=ranks,
        sanity_checking=False,
        testing=fn == "test",
        current_epoch=0,
        global_step=1,
        loggers=[],
        state=SimpleNamespace(fn=fn),
        lightning_module=Detector(),
        datamodule=SimpleNamespace(
            class_names=NAMES, records={fn.replace("validate", "val"): [{"path": path} for path in paths]}, **data
        ),
        strategy=SimpleNamespace(broadcast=lambda x: x, barrier=lambda name: None),
    )


def found_on(sizes: list[tuple[int, int]], masks: bool = False) -> dict[str, list[Any]]:
    """Three objects an image, the last below the threshold, but for the second image, which has none."""
    rng = np.random.default_rng(0)
    predictions: dict[str, list[Any]] = {"boxes": [], "scores": [], "labels": []}
    for i, (height, width) in enumerate(sizes):
        count = 0 if i == 1 else 3
        low = rng.uniform(0, 0.4, (count, 2)) * (width, height)
        high = low + rng.uniform(0.2, 0.5, (count, 2)) * (width, height)
        predictions["boxes"].append(torch.from_numpy(np.concatenate([low, high], 1)).float())
        predictions["scores"].append(torch.tensor([0.9, 0.5, 0.3])[:count])
        predictions["labels"].append(torch.tensor([1, 0, 1])[:count])
        if masks:
            shapes = []
            for x1, y1, x2, y2 in predictions["boxes"][-1].round().long().tolist():
                pixels = torch.zeros(height, width, dtype=torch.uint8)
                pixels[y1:y2, x1:x2] = 1
                shapes.append(encode(pixels))
            predictions.setdefault("masks", []).append(shapes)
    return predictions


def batch_of(paths: list[str], sizes: list[tuple[int, int]], rows: list[int]) -> dict[str, Any]:
    geometry = torch.tensor([[*sizes[i], 32 / sizes[i][1], 32 / sizes[i][0], 0, 0] for i in rows])
    image = torch.zeros(len(rows), 3, 32, 32, dtype=torch.uint8)
    return {"image": image, "path": [paths[i] for i in rows], "id": torch.tensor(rows), "geometry": geometry}


def write(
    directory: Path,
    trainer: Any,
    folder: Any,
    predictions: dict[str, list[Any]],
    batches: list[list[int]],
    *,
    clears: bool = True,
    **kwargs: Any,
) -> None:
    writer, task = PredictionWriter(directory, **kwargs), Detector()
    writer.setup(trainer, task, trainer.state.fn if clears else "")
    writer.on_predict_start(trainer, task)
    for number, rows in enumerate(batches):
        outputs = {key: [values[i] for i in rows] for key, values in predictions.items()}
        writer.on_predict_batch_end(trainer, task, outputs, batch_of(*folder, rows), number)
    writer.on_predict_end(trainer, task)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("masks", [False, True])
def test_what_predict_writes_can_be_read_again(tmp_path: Path, folder: Any, masks: bool) -> None:
    paths, sizes = folder
    predictions = found_on(sizes, masks)
    out = tmp_path / "out"
    write(out, trainer_of(paths), folder, predictions, [[0, 1], [2, 3]], box_formats=["coco", "yolo", "csv"])
    shown = Detector().shown(predictions)

    results = read(out / "predictions.json")
    assert [r["image_id"] for r in results] == [1, 1, 3, 3, 4, 4]
    assert {r["category_id"] for r in results} == {1, 2}
    assert [r["score"] for r in results] == pytest.approx([0.9, 0.5] * 3)
    listing = read_boxes(out / "annotations.json", image_root=read(out / "annotations.json")["info"]["image_root"])
    assert listing.class_names == NAMES
    assert [record["path"] for record in listing.records] == paths
    for i, record in enumerate(listing.records):
        assert (record["height"], record["width"]) == sizes[i]
        np.testing.assert_allclose(record["boxes"], shown["boxes"][i], atol=1e-4)
        assert record["labels"].tolist() == shown["labels"][i].tolist()
        if masks and len(record["boxes"]):
            layers = masks_of(record, *sizes[i])
            for k, shape in enumerate(shown["masks"][i]):
                assert np.array_equal((layers == k + 1).any(0), run_lengths.decode(shape))

    # YOLO's labels beside the images they belong to.
    names = ["a/1.jpg", "a/1.png", "b/1", "b/turned"]
    assert (out / "classes.txt").read_text().split() == NAMES
    for i, name in enumerate(names):
        (tmp_path / "yolo/images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "yolo/labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"yolo/images/{name}.jpg").write_bytes(Path(paths[i]).read_bytes())
        (tmp_path / f"yolo/labels/{name}.txt").write_bytes((out / f"labels/{name}.txt").read_bytes())
    again = {record["path"]: record for record in read_boxes(tmp_path / "yolo", "yolo", class_names=NAMES).records}
    for i, name in enumerate(names):
        record = again[str(tmp_path / f"yolo/images/{name}.jpg")]
        np.testing.assert_allclose(record["boxes"], shown["boxes"][i], atol=1e-3)
        assert record["labels"].tolist() == shown["labels"][i].tolist()

    with open(out / "boxes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["class"]) for row in rows[-2:]] == [(paths[3], "dog"), (paths[3], "cat")]
    corners = [float(rows[-1][key]) for key in ("x1", "y1", "x2", "y2")]
    assert corners == pytest.approx(shown["boxes"][3][1].tolist(), abs=1e-4)
    for i, name in enumerate(names):
        assert np.asarray(Image.open(out / f"overlays/{name}.jpg")).shape == (*sizes[i], 3)
    assert np.asarray(Image.open(out / "overlays/a/1.png.jpg")).std() < 1  # nothing was found there
    assert np.asarray(Image.open(out / "overlays/b/1.jpg")).std() > 5
    assert not list(out.glob(".*"))

    # Two ranks, each with every other image, write the same.
    other = tmp_path / "ranks"
    for rank in (1, 0):
        batches = [[i] for i in range(rank, 4, 2)]
        trainer = trainer_of(paths, rank=rank, ranks=2)
        # They take turns here. In a run rank 0 clears the folder before the others are told of it.
        write(other, trainer, folder, predictions, batches, clears=False, box_formats=["coco", "yolo", "csv"])
    files = [p.relative_to(out) for p in out.rglob("*") if p.is_file()]
    assert len(files) == 4 + 4 + 6
    assert [p for p in files if (other / p).read_bytes() != (out / p).read_bytes()] == []


def test_the_default_is_coco_and_others_are_refused(tmp_path: Path, folder: Any) -> None:
    write(tmp_path / "out", trainer_of(folder[0]), folder, found_on(folder[1]), [[0, 1, 2, 3]])
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["annotations.json", "contact_sheet.png", "overlays", "predictions.csv", "predictions.json"]
    with pytest.raises(ValueError, match=r"--box_formats is \['voc'\]; it takes coco, yolo, csv"):
        PredictionWriter(tmp_path, ["voc"])  # type: ignore[list-item]


def test_nothing_found_is_written_too(tmp_path: Path, folder: Any) -> None:
    paths, sizes = folder
    nothing = {k: [v[0][:0]] * 4 for k, v in found_on(sizes).items()}
    write(tmp_path / "out", trainer_of(paths), folder, nothing, [[0, 1, 2, 3]])
    assert read(tmp_path / "out/predictions.json") == []
    data = read(tmp_path / "out/annotations.json")
    assert data["annotations"] == []
    assert [image["file_name"] for image in data["images"]] == list(FILES)


def test_what_test_writes_gives_pycocotools_figures(tmp_path: Path) -> None:
    """All boxes, under the data set's own ids."""
    case = random_case(40, full=True)
    paths = [f"{i:02d}.png" for i in range(len(case.ids))]
    trainer = trainer_of(paths, "test", class_ids=[7 * k + 3 for k in range(case.num_classes)])
    trainer.datamodule.class_names = [str(k) for k in range(case.num_classes)]
    for record, number in zip(trainer.datamodule.records["test"], case.ids, strict=True):
        record["image_id"] = number
    sizes = [(160, 160)] * len(paths)
    batches = [list(range(len(paths)))]
    write(tmp_path / "out", trainer, (paths, sizes), case.predictions, batches, box_formats=["csv"])  # of `predict`
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["predictions.csv", "predictions.json"]
    results = read(tmp_path / "out/predictions.json")
    assert len(results) == sum(map(len, case.predictions["scores"])) > 0
    expected, _ = expected_values(case, "bbox")
    for i, number in enumerate(case.ids):
        own = [r for r in results if r["image_id"] == number]
        boxes = torch.tensor([r["bbox"] for r in own], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        case.predictions["boxes"][i] = boxes
        case.predictions["scores"][i] = torch.tensor([r["score"] for r in own])
        case.predictions["labels"][i] = torch.tensor([(r["category_id"] - 3) // 7 for r in own], dtype=torch.int64)
    again, _ = expected_values(case, "bbox")
    assert again == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert 0 < expected["map"] < 1


def test_one_box_by_hand(tmp_path: Path) -> None:
    """x1 y1 x2 y2 becomes x y width height in COCO, center and size as fractions in YOLO, and corners in the table."""
    outputs = {
        "boxes": [torch.zeros(0, 4), torch.tensor([[10.0, 20, 40, 80]])],
        "scores": [torch.zeros(0), torch.tensor([0.25])],
        "labels": [torch.zeros(0, dtype=torch.int64), torch.tensor([1])],
    }
    lines = [[i, f"/d/{name}.jpg", name, entry_of(outputs, i, (100, 200))] for i, name in enumerate("ab")]
    ids: Any = ([7, 3], lambda number: number + 40)
    write_coco_results(tmp_path, lines, *ids)
    write_coco_data_set(tmp_path, lines, *ids, NAMES, "/d")
    write_yolo(tmp_path, lines, NAMES)
    write_csv(tmp_path, lines, NAMES)
    result = {"image_id": 41, "category_id": 3, "bbox": [10, 20, 30, 60], "score": 0.25}
    assert read(tmp_path / "predictions.json") == [result]
    assert read(tmp_path / "annotations.json") == {
        "annotations": [{"id": 1, **result, "area": 1800, "iscrowd": 0}],
        "images": [
            {"id": 40, "file_name": "a.jpg", "height": 100, "width": 200},
            {"id": 41, "file_name": "b.jpg", "height": 100, "width": 200},
        ],
        "categories": [{"id": k, "name": name, "supercategory": ""} for k, name in ((7, "cat"), (3, "dog"))],
        "info": {"image_root": "/d"},
    }
    assert (tmp_path / "labels/a.txt").read_text() == ""
    assert (tmp_path / "labels/b.txt").read_text() == "1 0.12500000 0.50000000 0.15000000 0.60000000\n"
    assert (tmp_path / "classes.txt").read_text() == "cat\ndog\n"
    table = (tmp_path / "boxes.csv").read_text().splitlines()
    assert table == ["path,class,score,x1,y1,x2,y2", "/d/b.jpg,dog,0.25,10.0,20.0,40.0,80.0"]
    shape = torch.zeros(100, 200, dtype=torch.uint8)
    shape[30:40, 10:15] = 1
    masked = [[1, "/d/b.jpg", "b", entry_of({**outputs, "masks": [[], [encode(shape)]]}, 1, (100, 200))]]
    write_coco_data_set(tmp_path, masked, *ids, NAMES, "/d")
    (annotation,) = read(tmp_path / "annotations.json")["annotations"]
    assert annotation["area"] == 50  # the mask's


# Figures and panels.


def test_figures_of_a_report() -> None:
    case = next(c for seed in range(10, 500, 10) if (c := random_case(seed, full=True)).num_classes == 3)
    metric = CocoMetrics(**case.settings)
    metric.update(*case.part(list(range(len(case.ids)))))
    metric.compute()
    report = metric.report()
    assert report is not None
    palette = class_palette([str(k) for k in range(case.num_classes)])
    figures = detection_figures(report, [], palette)
    assert set(figures) == {"confusion_matrix", "precision_recall", "f1_confidence", "error_kinds"}
    for picture in figures.values():
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert picture.std() > 10
    color = palette[int(np.argmax([c.num_truths for c in report.curves]))]
    assert (figures["f1_confidence"] == color).all(2).any()  # a dot in its class's colour

    # Nothing seen; and more classes than there are names for in a legend.
    for classes in (1, 14):
        empty = CocoMetrics(classes)
        empty.compute()
        report = empty.report()
        assert report is not None
        assert len(detection_figures(report, ["$x_"] * classes, palette)) == 4


def test_what_the_figures_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three objects of two classes: one found, one taken for the other class, one missed; and a box on background."""
    # Rows are true; the last row and column are background, where both count for nothing.
    confusion = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 9]])
    said: list[Any] = []
    monkeypatch.setattr(figures, "confusion_matrix_figure", lambda matrix, names, title: said.append((names, title)))
    monkeypatch.setattr(figures, "rendered", lambda figure, tight: figure)
    curve = lambda values: SimpleNamespace(interpolated=lambda: np.full(101, values))  # noqa: E731
    curves: Any = [curve(0.5), curve(np.nan), curve(1.0)]
    line = figures.precision_recall_figure(curves, ["a", "b", "c"], class_palette(["a", "b", "c"])).axes[0]
    assert line.get_title() == "AP50 0.750, mean of 2 classes"
    assert [text.get_text() for text in line.get_legend().get_texts()] == ["c 1.000", "a 0.500", "mean"]
    assert line.lines[-1].get_ydata()[0] == 0.75
    errors = {kind: np.zeros(2, np.int64) for kind in figures.KINDS}
    errors["correct"][:], errors["missed"][:] = (9, 0), (1, 2)
    bars = figures.error_figure(errors, ["many", "worst"]).axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["worst", "many"]  # by errors, not by objects
    assert bars.get_legend().get_texts()[0].get_text() == "correct 9"
    monkeypatch.setattr(figures, "precision_recall_figure", lambda *args: None)
    monkeypatch.setattr(figures, "f1_figure", lambda *args: None)
    report: Any = SimpleNamespace(confusion=confusion, curves=[None] * 2, thresholds=None, errors=errors)
    figures.detection_figures(report, [], class_palette([]))
    assert said == [(["0", "1", "background"], "1 of 3 objects found, 2 wrong boxes (IoU 0.5)")]


def test_the_legend_of_f1_is_in_the_order_of_f1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in that of the thresholds at which it is reached; the dots are at threshold and F1."""
    monkeypatch.setattr(figures, "rendered", lambda figure, tight: figure)
    monkeypatch.setattr(figures, "f1_over_confidence", lambda curves, x: np.zeros((len(curves), len(x))))
    thresholds = Thresholds(per_class=[0.9, 0.1, 0.5, 0.3], overall=0.4, f1=[0.2, 0.7, np.nan, 0.6], overall_f1=0.45)
    axes = figures.f1_figure([None] * 4, thresholds, list("abcd"), class_palette(list("abcd"))).axes[0]  # type: ignore
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["b 0.700 at 0.10", "d 0.600 at 0.30", "a 0.200 at 0.90", "mean"]
    dots = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[0.1, 0.7], [0.3, 0.6], [0.9, 0.2]]
    assert axes.get_title() == "mean F1 0.450 at 0.40 for all classes"


def test_a_long_legend_names_the_best_and_the_worst_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "rendered", lambda figure, tight: figure)

    def named(count: int) -> list[str]:
        values = [0.01 * (k * 7 % count) for k in range(count)]  # each of 0, 0.01, ... once, mixed
        names = [f"{value:.2f}" for value in values]
        curves: Any = [SimpleNamespace(interpolated=lambda v=value: np.full(101, v)) for value in values]
        axes = figures.precision_recall_figure(curves, names, class_palette(names)).axes[0]
        assert len(axes.lines) == count + 1
        return [text.get_text().split(" ")[0] for text in axes.get_legend().get_texts()]

    assert named(12) == [f"{k / 100:.2f}" for k in range(11, -1, -1)] + ["mean"]
    ends = [*range(39, 33, -1), *range(5, -1, -1)]
    assert named(40) == [f"{k / 100:.2f}" for k in ends] + ["mean"]


def test_kinds_of_errors_have_their_own_names_and_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which they are counted; bars of a class stand behind each other."""
    monkeypatch.setattr(figures, "rendered", lambda figure, tight: figure)
    numbers = {kind: number for number, kind in enumerate(figures.KINDS, 1)}
    errors = {kind: np.array([numbers[kind]]) for kind in sorted(numbers)}
    axes = figures.error_figure(errors, ["cat"]).axes[0]
    said = ["correct 1", "localization 2", "class 3", "duplicate 4", "background 5", "both 6", "missed 7"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == said
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(k * (k - 1) / 2, k) for k in range(1, 8)]
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == list(figures.KINDS.values())


def test_panels_show_what_the_validations_thresholds_let_through(
    tmp_path: Path, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are known at its end only; truth and prediction have their masks, and the figures come at the end."""
    drawn: list[list[panels.Sample]] = []
    draw = callback.panels

    def noted(samples: list[panels.Sample], *rest: Any) -> Any:
        drawn.append(samples)
        return draw(samples, *rest)

    monkeypatch.setattr(callback, "log_image", lambda *args: None)
    monkeypatch.setattr(callback, "panels", noted)
    paths, sizes = folder
    predictions = found_on(sizes, masks=True)
    targets = []
    for boxes, labels, shapes in zip(*(predictions[k] for k in ("boxes", "labels", "masks")), strict=True):
        layers = torch.zeros(1, *sizes[len(targets)], dtype=torch.int16)
        for k, shape in enumerate(shapes):
            layers[0][torch.from_numpy(run_lengths.decode(shape)) > 0] = k + 1
        targets.append({"boxes": boxes, "labels": labels, "masks": layers})
    metric = CocoMetrics(2, ("bbox", "segm"))
    trainer, task = trainer_of(paths, "validate"), Detector(metric)
    batch = {**batch_of(paths, sizes, [0, 1, 2, 3]), "target": targets}
    watcher = callback.Pictures(tmp_path / "pictures", 0)
    watcher.on_validation_start(trainer, task)
    task.shown, shown = None, task.shown  # type: ignore[assignment,method-assign] - not before the validation's end
    watcher.on_validation_batch_end(trainer, task, predictions, batch, 0)
    task.shown = shown  # type: ignore[method-assign]
    metric.update(predictions, targets, [0, 1, 2, 3])
    metric.compute()
    watcher.on_validation_end(trainer, task)
    (samples,) = drawn
    assert [len(sample.prediction["boxes"]) for sample in samples] == [2, 0, 2, 2]
    assert [len(sample.truth["boxes"]) for sample in samples if sample.truth] == [3, 0, 3, 3]
    masks = samples[0].prediction["masks"]
    assert masks.shape[1:] == samples[0].image.shape[:2]
    assert set(np.unique(masks)) == {0, 1, 2}
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    figures = {"val_confusion_matrix.png", "val_precision_recall.png", "val_f1_confidence.png", "val_error_kinds.png"}
    assert names == {"val_panels.png", *figures}


def test_masks_are_drawn_inside_their_boxes_whatever_the_number() -> None:
    image = np.full((100, 120, 3), 120, np.uint8)
    boxes = np.array([[10, 10, 40, 40], [60, 50, 110, 90], [-30, -30, -5, -5]], np.float32)
    layers = np.zeros((1, 100, 120), np.int16)
    layers[0, 10:40, 10:40], layers[0, 50:90, 60:110] = 1, 2
    separate = np.stack([layers[0] == k for k in (1, 2, 3)])
    pictures = [drawing.draw_boxes(image, boxes, masks=masks) for masks in (layers, separate)]
    assert np.array_equal(*pictures)
    assert (pictures[0][45:48, :55] == 120).all()
    assert (pictures[0][60:80, 70:100] != 120).any(2).all()
    many = np.tile(boxes[1:2], (drawing.MAX_TAGS + 1, 1))
    assert (drawing.draw_boxes(image, many)[:50] == 120).all()  # no names above the box
    assert (drawing.draw_boxes(image, many[:1], class_names=["name"])[:50] != 120).any()
