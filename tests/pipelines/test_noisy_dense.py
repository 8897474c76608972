"""The loop for boxes and pixels: ordinary files, scores that are `test`'s, kills that change nothing, selection."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from datamodules import DetectionData, SegmentationData
from datamodules.annotations.mask_files import load_mask
from datamodules.annotations.soft_masks import read_soft_mask
from datamodules.common.files import read_json
from datamodules.transforms.augment import Augment, DetectionAugment
from datamodules.unlabeled import pool_records
from pipelines.__main__ import main
from pipelines.noisy_student import labeling, selection
from pipelines.noisy_student.configs import student_config
from pipelines.noisy_student.kinds import boxes
from pipelines.noisy_student.kinds.base import Kind, SelectionJob
from pipelines.noisy_student.kinds.box_files import Boxes, read_boxes, write_boxes
from pipelines.noisy_student.kinds.boxes import BOXES as BOX_KIND
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.kinds.pixel_files import read_pixels
from pipelines.noisy_student.kinds.pixels import PIXELS as PIXEL_KIND
from pipelines.noisy_student.kinds.pixels import confusion as confusion_of
from pipelines.noisy_student.kinds.tables import write_table
from pipelines.noisy_student.reading import read_settings
from pipelines.noisy_student.selection import Selection
from pipelines.outputs.sheets import save_png
from pipelines.scorers import RECALLS, average_precision, mean_iou
from tasks.detection.evaluation.matching import match
from tasks.detection.evaluation.metrics import COCO_IOUS, CocoMetrics
from tasks.detection.evaluation.objects import predicted_objects, true_objects
from tasks.segmentation.metrics import SegmentationMetrics
from tasks.segmentation.postprocess import labels_in_original, labels_of
from tests.conftest import in_child
from tests.pipelines.test_noisy_loop import count_opened, digests, loop, stage
from tests.ranks import in_ranks

CONFIG = """
data:
  class_path: {kind}Data
  init_args:
    source: digits
    num_scenes: {{train: 14, val: 4, test: 5}}
    image_size: {size}
    batch_size: 2
    num_workers: 0
    augment: {{preset: none}}
labeled_images: 4
teacher:
  model:
    class_path: {kind}
    init_args: {{{net}, backbone: test_resnet, optim: {{lr: 3.0e-3}}}}
  trainer: {{max_epochs: 2}}
students:
  - model:
      class_path: {kind}
      init_args: {{{net}, backbone: test_resnet, color_jitter: 0.2, optim: {{lr: 3.0e-3}}}}
    data: {{augment: {{preset: light, scale_jitter: [0.8, 1.2]}}}}
    ratio: 2
    trainer: {{max_epochs: 1}}
selection: {{threshold: {threshold}}}
controls: {controls}
trainer:
  accelerator: cpu
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""
PIXELS = {"kind": "Segmentation", "size": 32, "net": "architecture: unet", "threshold": 0.11, "controls": "false"}
BOXES = {
    "kind": "Detection",
    "size": 64,
    "net": "detector: fcos, detector_args: {head_channels: 32, head_depth: 1}",
    "threshold": 0.002,
    "controls": "false",
}
TASKS = {"pixels": PIXELS, "boxes": BOXES}
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
NAMES = ["ant", "bee", "cat"]


def config_of(task: str) -> str:
    return CONFIG.format(**TASKS[task])


def quick(work):
    """Work where boxes of hardly trained detectors, whose scores are about 0.01, are labels."""

    def run():
        boxes.LEAST_SCORE = selection.LEAST_SCORE = 0.0
        boxes.IGNORE = 0.001
        return work()

    return run


@pytest.fixture(scope="module", params=list(TASKS))
def world(request, tmp_path_factory) -> Path:
    """A finished, undisturbed loop in `whole`, its config, and the number of files it opened."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "loop.yaml").write_text(config_of(request.param))

    def work() -> int:
        count_opened(None, root / "opened.txt")
        return loop(root / "whole", root / "loop.yaml")

    assert in_child(quick(work), 600) == 0
    return root


def report_of(world: Path) -> dict:
    return json.loads((world / "whole" / "loop" / "report.json").read_text())


def test_scores_are_those_of_the_test_command_and_labels_are_ordinary_data(world):
    """One child for all of it: commands take a second each."""
    report = report_of(world)
    assert [row["name"] for row in report["rows"]] == ["teacher", "student1"]
    assert (report["labelled"], report["pool"], report["images"]) == (4, 10, 5)
    assert report["metric"] == ("mIoU" if world.name.startswith("pixels") else "mAP")
    account = report["pseudo_labels"][0][0]
    assert 0 < account["kept"] <= account["pool"]
    assert account["precision"] is not None  # the truth of hidden labels is known
    assert report["suspects"][0]["agreement"] <= report["suspects"][-1]["agreement"]
    page = (world / "whole/loop/report.html").read_text()
    assert report["metric"] in page
    assert page.count("data:image/png") == 1  # the sheet of suspects is there

    suffix = "parquet" if report["metric"] == "mIoU" else "json"
    selected = stage(world / "whole", "selection1") / f"selected.{suffix}"
    student = stage(world / "whole", "student1") / "student.ckpt"
    source = yaml.safe_load((world / "loop.yaml").read_text())
    arguments = {**source["data"]["init_args"], "source": str(selected), "val_fraction": 0.2}
    del arguments["num_scenes"]
    arguments |= {"mask_format": "index", "class_names": account_classes(account)} if suffix == "parquet" else {}
    again = {"model": source["teacher"]["model"], "data": {**source["data"], "init_args": arguments}}
    Path("again.yaml").write_text(yaml.safe_dump(again | {"trainer": source["trainer"]}))

    def work() -> int:
        return max(
            main(["test", "--ckpt_path", str(student), "--name", "t", *QUIET]),
            main(["fit", "--config", "again.yaml", "--trainer.max_steps=1"]),
        )

    assert in_child(work) == 0
    tested = json.loads((student.parent / "0" / "test.json").read_text())
    row = next(row for row in report["rows"] if row["name"] == "student1")
    assert row["mean"] == pytest.approx(tested[f"test/{'miou' if suffix == 'parquet' else 'map'}"], abs=1e-6)
    for other in report["other_metrics"]:
        mean = next(row["mean"] for row in other["rows"] if row["name"] == "student1")
        assert mean == pytest.approx(tested["test/map_50"], abs=1e-6)
    saved = torch.load(Path("runs/again/0/checkpoints/last.ckpt"), weights_only=True)
    assert saved["global_step"] == 1


def account_classes(account: dict) -> list[str]:
    return list(account["labelled_as"])


def test_the_same_command_repeats_nothing(world, capfd):
    before = {p: p.stat().st_mtime_ns for p in (world / "whole").rglob("*.ckpt")}
    assert in_child(quick(lambda: loop(world / "whole", world / "loop.yaml"))) == 0
    assert {p: p.stat().st_mtime_ns for p in (world / "whole").rglob("*.ckpt")} == before
    assert capfd.readouterr().out.count("done before") == len(digests(world / "whole"))


@pytest.mark.slow
def test_a_changed_config_restarts_what_depends_on_it_and_controls_are_trained(world, capfd):
    shutil.copytree(world / "whole", "changed")
    threshold = "0.05" if world.name.startswith("pixels") else "0.003"
    flags = ["--selection.threshold", threshold, "--controls", "true"]
    assert in_child(quick(lambda: loop("changed", world / "loop.yaml", *flags)), 600) == 0
    said = capfd.readouterr().out
    assert re.search(rf"seed0/selection1: selection.threshold was .* and is {threshold}; done again", said)
    assert all(f"seed0/{name}: done before" in said for name in ("data", "teacher", "labels1"))
    old, new = digests(world / "whole"), digests("changed")
    # All boxes score more: the new threshold selects the same ones, and no student is trained again.
    same = set() if world.name.startswith("pixels") else {"student1", "relabelled"}
    assert {n for n in old if old[n] != new[n]} == {"selection1", "student1", "relabelled"} - same
    assert set(new) - set(old) == {"labels_only", "no_noise"}


@pytest.mark.parametrize("world", ["pixels"], indirect=True)
def test_soft_labels_of_pixels_are_taught_by_choice(world, capfd):
    shutil.copytree(world / "whole", "soft")
    text = (world / "loop.yaml").read_text().replace("ratio: 2", "ratio: 2\n    labels: soft")
    Path("loop.yaml").write_text(text)
    assert in_child(lambda: loop("soft", Path("loop.yaml")), 600) == 0
    said = capfd.readouterr().out
    assert "seed0/teacher: done before" in said
    assert re.search("seed0/labels1: soft was None and is True; done again", said)
    old, new = digests(world / "whole"), digests("soft")
    assert {n for n in old if old[n] != new[n]} == {"labels1", "selection1", "student1", "relabelled"}
    # The same classes, with their probabilities beside them.
    hard, soft = (stage(runs, "selection1") / "selected.parquet" for runs in (world / "whole", "soft"))
    hard, soft = read_pixels(hard), read_pixels(soft)
    assert (hard.soft, len(soft.soft)) == (None, len(hard.masks))
    for one, other, file in zip(hard.masks, soft.masks, soft.soft, strict=True):
        mask, planes = load_mask(other).pixels, read_soft_mask(file)
        assert (load_mask(one).pixels == mask).all()
        assert (planes[0] == mask)[mask != 255].all()
        assert (planes[1] >= planes[3]).all()


def disturbed(world: Path, kills: int, seed: int) -> None:
    """Kill the loop at random moments, always go on with the same command, and compare what it leaves."""
    total = int((world / "opened.txt").read_text().split()[-1])
    limits = np.random.default_rng(seed).integers(1, total // 2, kills).tolist()

    def work(limit: int | None) -> int:
        count_opened(limit)
        return loop("cut", world / "loop.yaml")

    statuses = [in_child(quick(lambda: work(limit)), 600) for limit in limits]  # noqa: B023
    assert -signal.SIGKILL in statuses
    assert in_child(quick(lambda: work(None)), 600) == 0
    assert digests("cut") == digests(world / "whole")
    assert list(Path("cut").rglob(".*.parts-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("world", ["pixels"], indirect=True)
def test_killed_it_ends_with_the_same_outputs(world):
    """Wherever the run directory lies, too: pictures and masks below it are named by relative paths."""
    disturbed(world, kills=1, seed=0)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_outputs(world):
    disturbed(world, kills=20, seed=1)


@pytest.mark.slow
def test_two_ranks_label_exactly_as_one(world):
    """A folder of pictures of two sizes, which a net that takes them as they are sees one by one."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([(40, 48)] * 5 + [(32, 64)] * 4):
        save_png(rng.integers(0, 256, (*size, 3), dtype=np.uint8), Path(f"pool/{i}.png"))
    teacher = stage(world / "whole", "teacher") / "teacher.ckpt"
    suffix = kind_of(SegmentationData if world.name.startswith("pixels") else DetectionData).LABELS

    def label(folder: str, *flags: str) -> int:
        labeling.CHUNK_BATCHES = 2
        words = ["pseudo-label", "--ckpt_path", str(teacher), "--source", "pool", "--batch_size", "2"]
        return main([*words, "--output", f"{folder}/labels{suffix}", *QUIET, *flags])

    assert in_child(quick(lambda: label("one"))) == 0
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    assert in_ranks(quick(lambda: label("two", *two))) == [0, 0]
    files = sorted(p.relative_to("one") for p in Path("one").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to("two") for p in Path("two").rglob("*") if p.is_file())
    assert all(Path("one", f).read_bytes() == Path("two", f).read_bytes() for f in files)
    assert len(files) == (1 + 2 * 9 if suffix == ".parquet" else 1)
    if suffix == ".parquet":
        assert load_mask("one/labels/masks/8.png").pixels.shape == (32, 64)


# Selection.


class Truth:
    """As much of a datamodule as selection asks for."""

    class_names, class_ids, class_colors, multi_label, masks = NAMES, None, None, False, False

    def __init__(self, records: list[dict]) -> None:
        self.records = {"train": records}

    def make_reader(self):
        return lambda record: record


def selected(kind: Kind, *job) -> dict:
    return kind.write_selection(SelectionJob(*job))


def written_boxes(root: Path, scores: list[float], labels: list[int], image: list[int], images: int = 3) -> Path:
    paths = [str(root / "pictures" / f"{i}.png") for i in range(images)]
    for path in paths:
        save_png(np.zeros((40, 48, 3), np.uint8), path)
    x = np.arange(len(scores), dtype=np.float32) % 2 * 20
    corners = np.stack([x, x, x + 10.5, x + 12.25], 1)
    columns = np.array(image), corners, np.array(labels), np.array(scores, np.float32), np.zeros(len(scores), bool)
    found = Boxes(paths, [(40, 48)] * images, *columns)
    write_boxes(found, root / "labels" / "labels.json", NAMES, None)
    return root / "labels" / "labels.json"


def test_boxes_are_taught_ignored_or_dropped_by_their_scores(tmp_path):
    file = written_boxes(tmp_path, [0.9, 0.45, 0.8, 0.07, 0.2], [0, 1, 1, 2, 0], [0, 0, 1, 1, 2])
    annotated = [
        {"path": "a", "image": np.zeros((40, 48, 3)), "labels": np.array([0]), "iscrowd": np.zeros(1)},
        {"path": "b", "image": np.zeros((40, 48, 3)), "labels": np.array([2]), "iscrowd": np.zeros(1)},
    ]
    for record, corners in zip(annotated, ([1, 0, 11, 12], [0, 0, 10, 12]), strict=True):
        record |= {"boxes": np.array([corners], np.float32), "height": 40, "width": 48}
    truth = {"class_names": NAMES, "pool": ["a", "b", None]}
    account = selected(BOX_KIND, tmp_path, Truth(annotated), Selection(threshold=0.5), file, None, truth, 0)
    assert (account["kept"], account["pool"], account["ignored"], account["images"]) == (2, 5, 1, 2)
    assert account["kept_as"] == {"ant": 1, "bee": 1, "cat": 0}
    assert account["precision"] == 0.5  # the ant is one, the bee is a cat
    assert account["found"] == 0.5

    data = DetectionData(str(tmp_path / "selected.json"), class_names=NAMES, val_fraction=0.0, image_size=32)
    data.setup()
    first, second = data.records["train"]
    assert first["path"].endswith("pictures/0.png")
    assert first["labels"].tolist() == [0, 1]
    assert first["iscrowd"].tolist() == [0, 1]  # 0.45: neither taught nor background
    assert second["labels"].tolist() == [1]  # 0.07 is dropped
    assert np.allclose(first["boxes"], [[0, 0, 10.5, 12.25], [20, 20, 30.5, 32.25]])
    only_ants = Selection(threshold={"ant": 0.5})
    account = selected(BOX_KIND, tmp_path, Truth(annotated), only_ants, file, None, truth, 0)
    assert account["kept_as"] == {"ant": 1, "bee": 0, "cat": 0}
    assert account["ignored"] == 1  # the bee beside it
    with pytest.raises(ValueError, match=r"keeps none of the 5 pseudo-labels; the highest score is 0.900"):
        selected(BOX_KIND, tmp_path, Truth([]), Selection(threshold=0.95), file, None, truth | {"pool": [None] * 3}, 0)


def test_a_precision_of_boxes_is_judged_on_the_validation_images(tmp_path):
    """100 ants, of which those above 0.5 are right; 100 bees, none of which is."""
    file = written_boxes(tmp_path, [0.6, 0.62, 0.64, 0.4, 0.95, 0.15], [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2])
    score = np.tile(np.linspace(0.99, 0.2, 100), 2).astype(np.float32)
    labels = np.repeat([0, 1], 100)
    hit = (labels == 0) & (score > 0.5)
    np.savez(tmp_path / "val.npz", labels=labels, scores=score, hit=hit[None], ignored=np.zeros((1, 200), bool))
    chosen = Selection(precision=0.9)
    truth = {"class_names": NAMES, "pool": [None] * 3}
    account = selected(BOX_KIND, tmp_path, Truth([]), chosen, file, tmp_path / "val.npz", truth, 0)
    assert account["left_out"] == ["bee", "cat"]
    assert account["kept_as"] == {"ant": 3, "bee": 0, "cat": 0}
    assert account["thresholds"]["ant"] == pytest.approx(0.6)
    assert account["ignored"] == 0  # the bees lie in images without an ant


def written_pixels(root: Path, masks: list[np.ndarray], levels: list[np.ndarray]) -> Path:
    paths, names = [], []
    for i, (mask, level) in enumerate(zip(masks, levels, strict=True)):
        paths.append(str(save_png(np.full((*mask.shape, 3), 40 * i, np.uint8), root / "pictures" / f"{i}.png")))
        names.append([str(save_png(a, root / "labels" / n / f"{i}.png")) for n, a in (("m", mask), ("c", level))])
    columns = {"path": paths, "mask": [m for m, _ in names], "confidence_map": [c for _, c in names]}
    write_table(columns, root / "labels.parquet")
    return root / "labels.parquet"


def test_uncertain_pixels_become_255_and_selected_masks_are_ordinary_ones(tmp_path):
    mask = np.repeat([[0, 1], [2, 1]], 2, axis=0).astype(np.uint8)  # (4, 2)
    sure = np.array([[255, 204], [255, 203], [10, 204], [255, 204]], np.uint8)
    file = written_pixels(tmp_path, [mask, mask], [sure, np.full_like(sure, 20)])
    true = np.zeros_like(mask)
    true[:, 1] = 1
    record = {"path": "a", "image": np.zeros((4, 2, 3), np.uint8), "mask": true}
    truth = {"class_names": NAMES, "pool": ["a", None]}
    account = selected(PIXEL_KIND, tmp_path, Truth([record]), Selection(threshold=0.8), file, None, truth, 0)
    assert (account["kept"], account["pool"], account["images"], account["pool_images"]) == (6, 16, 1, 2)
    assert account["kept_as"] == {"ant": 2, "bee": 3, "cat": 1}
    assert account["precision"] == pytest.approx(5 / 6)  # the cat is an ant
    assert account["precision_of_all"] == pytest.approx(6 / 8)
    data = SegmentationData(
        str(tmp_path / "selected.parquet"), class_names=NAMES, mask_format="index", val_fraction=0.0, image_size=4
    )
    data.setup()
    (record,) = data.records["train"]
    sample = data.make_reader()(record)
    expected = np.where(sure >= 204, mask, 255)
    assert (sample["mask"] == expected).all()
    by_class = Selection(threshold={"bee": 0.8})
    assert (
        selected(PIXEL_KIND, tmp_path, Truth([]), by_class, file, None, truth | {"pool": [None] * 2}, 0)["images"] == 2
    )
    unsure = written_pixels(tmp_path / "unsure", [mask], [sure // 2])
    with pytest.raises(ValueError, match="keeps none of the pixels of 1 images"):
        selected(PIXEL_KIND, tmp_path, Truth([]), Selection(threshold=0.9), unsure, None, truth | {"pool": [None]}, 0)


def test_geometric_noise_moves_pseudo_labels_with_the_image(tmp_path):
    """A bright rectangle, its box and its mask: flips and scale jitter move all three alike."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[10:26, 8:20] = 255
    mask = (picture[..., 0] > 0).astype(np.uint8)
    file = written_pixels(tmp_path, [mask] * 4, [np.full_like(mask, 255)] * 4)
    path = tmp_path / "pictures"
    for i in range(4):
        save_png(picture, path / f"{i}.png")
    truth = {"class_names": NAMES, "pool": [None] * 4}
    selected(PIXEL_KIND, tmp_path, Truth([]), Selection(threshold=0.5), file, None, truth, 0)
    size = [(64, 64)] * 4
    corners = np.tile(np.array([[8, 10, 20, 26]], np.float32), (4, 1))
    columns = np.arange(4), corners, np.ones(4, np.int64), np.ones(4, np.float32), np.zeros(4, bool)
    found = Boxes([str(path / f"{i}.png") for i in range(4)], size, *columns)
    write_boxes(found, tmp_path / "labels.json", NAMES, None)
    selected(BOX_KIND, tmp_path, Truth([]), Selection(threshold=0.5), tmp_path / "labels.json", None, truth, 0)
    noise = {"preset": "light", "hflip": 1.0, "vflip": 1.0, "scale_jitter": (0.6, 0.9)}
    common = {"class_names": NAMES, "val_fraction": 0.0, "image_size": 64, "batch_size": 2, "num_workers": 0}
    seg = SegmentationData(str(tmp_path / "selected.parquet"), mask_format="index", augment=Augment(**noise), **common)
    det = DetectionData(str(tmp_path / "selected.json"), augment=DetectionAugment(**noise), **common)
    for half in (seg, det):
        half.setup("fit")
        moved = 0
        for batch in half.train_dataloader():
            for i in range(len(batch["image"])):
                rows, columns = np.nonzero(batch["image"][i, 0].numpy() > 127)
                moved += columns.min() > 20
                if "mask" in batch:
                    seen = np.nonzero(batch["mask"][i].numpy() == 1)
                    edges = [seen[1].min(), seen[0].min(), seen[1].max() + 1, seen[0].max() + 1]
                else:
                    edges = batch["boxes"][i, 0].tolist()
                bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.allclose(edges, bright, atol=1.6)
        assert moved == 4  # it was at the left


# Scores.


def random_objects(rng, images: int, classes: int):
    """Annotations with a crowd, and detections near them, elsewhere, or of another class; scores with ties."""
    predictions: dict[str, list] = {"boxes": [], "scores": [], "labels": []}
    targets = []
    for _ in range(images):
        count = int(rng.integers(0, 5))
        corners = rng.uniform(0, 60, (count, 2))
        true = np.concatenate([corners, corners + rng.uniform(8, 40, (count, 2))], 1)
        labels = rng.integers(0, classes, count)
        near = true + rng.normal(0, 3, true.shape)
        elsewhere = np.tile(rng.uniform(0, 50, (4, 2)), 2) + np.array([0, 0, 20, 20])
        other = np.concatenate([near, elsewhere])
        of = np.concatenate([np.where(rng.random(count) < 0.8, labels, 0), rng.integers(0, classes, 4)])
        predictions["boxes"].append(torch.tensor(other, dtype=torch.float32))
        predictions["scores"].append(torch.tensor(rng.integers(1, 40, len(other)) / 40, dtype=torch.float32))
        predictions["labels"].append(torch.tensor(of))
        crowd = torch.tensor(rng.random(count) < 0.15, dtype=torch.uint8)
        target = {"boxes": torch.tensor(true, dtype=torch.float32), "labels": torch.tensor(labels), "iscrowd": crowd}
        targets.append(target)
    return predictions, targets


def coco(predictions, targets, classes: int) -> tuple[float, float]:
    metric = CocoMetrics(classes)
    metric.update(predictions, targets, list(range(len(targets))))
    values = metric.compute()
    return float(values["map"]), float(values["map_50"])


def test_average_precision_of_a_resample_is_cocos_of_the_images_drawn():
    rng = np.random.default_rng(0)
    images, classes = 25, 3
    predictions, targets = random_objects(rng, images, classes)
    found = predicted_objects(predictions, np.arange(images), classes, masks=False)
    true = true_objects(targets, np.arange(images), classes, masks=False)
    each = [match(found, true, classes, images, iou_threshold=iou) for iou in COCO_IOUS]
    truths = np.zeros((images, classes), np.int64)
    np.add.at(truths, (true.image[~true.crowd], true.labels[~true.crowd]), 1)
    columns = each[0].image, each[0].labels, np.stack([m.hit for m in each]), np.stack([m.ignored for m in each])
    draws = np.stack([np.ones(images, np.int64), *rng.multinomial(images, np.full(images, 1 / images), 3)])
    got = average_precision(draws, *columns, truths)
    for counts, values in zip(draws, got, strict=True):
        taken = np.repeat(np.arange(images), counts)
        again = {key: [values_[i] for i in taken] for key, values_ in predictions.items()}
        expected = coco(again, [targets[i] for i in taken], classes)
        assert values.mean() == pytest.approx(expected[0], abs=1e-6)
        assert values[0] == pytest.approx(expected[1], abs=1e-6)
    assert 0.05 < got[0].mean() < 0.95
    nothing = np.zeros(images, np.int64)
    nothing[np.flatnonzero(truths.sum(1) == 0)[:1]] = images
    assert np.isnan(average_precision(nothing[None], *columns, truths)).all()
    assert len(RECALLS) == 101


def test_mean_iou_of_a_resample_is_that_of_the_images_drawn():
    rng = np.random.default_rng(1)
    true, given = rng.integers(0, 4, (2, 12, 8, 8)).astype(np.uint8)
    true[rng.random(true.shape) < 0.2] = 255
    given[given == 3] = 2  # a class that is never predicted
    confusion = np.stack([confusion_of(t, g, 5) for t, g in zip(true, given, strict=True)])
    draws = rng.multinomial(12, np.full(12, 1 / 12), 3)
    for counts, value in zip(draws, mean_iou(draws, confusion), strict=True):
        metric = SegmentationMetrics(5)
        for i in np.repeat(np.arange(12), counts):
            metric.update(torch.tensor(given[i]), torch.tensor(true[i]))
        assert value == pytest.approx(float(metric.compute()["miou"]), abs=1e-9)


def test_confidences_are_the_labels_own_rounded_down():
    scores = torch.tensor([[[0.7, 0.25]], [[0.3, 0.75]]])
    assert labels_of(scores, False, 1).tolist() == [[[0, 1]], [[178, 191]]]
    assert labels_of(scores[1:], False, 1).tolist() == [[[0, 1]], [[178, 191]]]  # binary: one score a pixel
    half = torch.tensor([2.0, 4.0, 0.5, 0.5, 0.0, 0.0])  # a picture of twice the canvas's size
    both, labels = labels_in_original(scores, half, False, 1), labels_in_original(scores, half, False)
    assert both.shape == (2, 2, 4)
    assert (both[0] == labels).all()
    assert both[1].tolist() == [[178, 149, 162, 191]] * 2


# Settings.


def test_the_control_without_noise_has_none(tmp_path):
    text = config_of("boxes").replace("0.002", "0.5").replace("preset: light", "mosaic: 0.5, mixup: 0.3, preset: light")
    text = text.replace("color_jitter: 0.2", "color_jitter: 0.2, drop_path_rate: 0.1")
    (tmp_path / "loop.yaml").write_text(text)
    settings = read_settings(["noisy-student", "--config", str(tmp_path / "loop.yaml")])
    student = settings.students[0]
    arguments = settings, BOX_KIND, student, tmp_path / "split.json", tmp_path / "selected.json", NAMES, 3, 0
    noisy, clean = (student_config(*arguments, noise=noise) for noise in (True, False))
    for half in ("labeled", "unlabeled"):
        assert noisy["data"]["init_args"][half]["init_args"]["augment"]["mosaic"] == 0.5
        assert clean["data"]["init_args"][half]["init_args"]["augment"] == {"preset": "none"}
    model = clean["model"]["init_args"]["student"]["init_args"]
    assert (model["color_jitter"], model["drop_path_rate"]) == (0.0, 0.0)
    theirs = noisy["data"]["init_args"]["unlabeled"]["init_args"]
    assert theirs["source"].endswith("selected.json")
    assert not {"num_scenes", "split_file"} & set(theirs)


def test_what_the_data_do_not_allow_is_said_before_anything_is_trained(tmp_path, capsys):
    path = tmp_path / "loop.yaml"
    path.write_text(config_of("boxes").replace("threshold: 0.002", "threshold: 0.5"))
    assert loop("runs", path, "--labeled_images", "14") == 2
    assert "labeled_images is 14, but there are 14 training images" in capsys.readouterr().err
    assert loop("runs", path, "--data.masks", "true") == 2
    assert "masks of objects are not pseudo-labeled" in capsys.readouterr().err
    assert loop("runs", path, "--selection.threshold", "{cat: 0.5}") == 2
    assert "selection.threshold names the class 'cat'; there are 0, 1, 2," in capsys.readouterr().err
    assert not list(Path("runs").rglob("*.ckpt"))


@pytest.mark.parametrize("world", ["pixels"], indirect=True)
def test_wrong_flags_of_pseudo_label_end_with_one_message(world, capfd):
    teacher = str(stage(world / "whole", "teacher") / "teacher.ckpt")
    right, wrong = (".parquet", ".json") if world.name.startswith("pixels") else (".json", ".parquet")
    save_png(np.zeros((32, 32, 3), np.uint8), "pool/a.png")
    words = ["pseudo-label", "--ckpt_path", teacher, "--source", "pool", *QUIET]
    other = torch.load(teacher, weights_only=True)
    config = yaml.safe_load(other["config"])
    config["data"]["init_args"]["resize"] = "letterbox"
    torch.save({**other, "config": yaml.safe_dump(config)}, "other.ckpt")

    def work() -> int:
        statuses = [
            main([*words, "--output", f"labels{wrong}"]),
            main([*words, "--output", f"labels{right}", "--teachers", "[other.ckpt]"]),
        ]
        return min(statuses)

    assert in_child(work) != 0
    said = capfd.readouterr().err
    assert f"--output labels{wrong} must end in {right}" in said
    assert "other.ckpt has data.resize letterbox, but" in said
    assert "need the same view of an image" in said


@pytest.mark.slow
@pytest.mark.parametrize("world", list(TASKS), indirect=True)
def test_labels_of_several_teachers_are_averaged(world):
    """A teacher and itself label as the teacher alone; the student changes what it says, and so do other settings."""
    teacher, student = (stage(world / "whole", n) / f"{n.rstrip('1')}.ckpt" for n in ("teacher", "student1"))
    rng = np.random.default_rng(0)
    for i in range(2):
        save_png(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), Path(f"pool/{i}.png"))
    suffix = ".parquet" if world.name.startswith("pixels") else ".json"

    def work() -> int:
        words = ["pseudo-label", "--ckpt_path", str(teacher), "--source", "pool", *QUIET]
        more = {"one": "[]", "twice": f"[{teacher}]", "two": f"[{student}]"}
        ends = [main([*words, "--output", f"{n}/labels{suffix}", "--teachers", t]) for n, t in more.items()]
        others = ["--model.nms_iou", "0.3"] if suffix == ".json" else ["--model.tta", "[hflip]"]
        written = []
        for flags in ([], [], others):
            ends.append(main([*words, "--output", f"again/labels{suffix}", *flags]))
            written.append(Path(f"again/labels{suffix}").stat().st_mtime_ns)
        assert written[0] == written[1] != written[2]
        return max(ends)

    assert in_child(quick(work)) == 0
    if suffix == ".parquet":
        tables = [read_pixels(Path(n, "labels.parquet")) for n in ("one", "twice", "two")]
        one, twice, two = ([load_mask(file).pixels.astype(int) for file in table.maps] for table in tables)
        assert max(int(np.abs(a - b).max()) for a, b in zip(one, twice, strict=True)) <= 1
        assert max(int(np.abs(a - b).max()) for a, b in zip(one, two, strict=True)) > 1
    else:
        digits = list("0123456789")
        one, twice, two = (read_boxes(Path(n, "labels.json"), digits) for n in ("one", "twice", "two"))
        best = [found.scores[found.image == 0].max() for found in (one, twice, two)]
        assert best[1] == pytest.approx(best[0], rel=0.2)  # neighbours that NMS left join the group
        assert len(two.scores) > 0


def test_lists_of_images_and_masks_are_data(tmp_path):
    mask = np.array([[0, 1], [255, 1]], np.uint8)
    save_png(mask, tmp_path / "m.png")
    save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,mask,split\na.png,m.png,train\n")
    data = SegmentationData(str(tmp_path / "list.csv"), class_names=["x", "y"], mask_format="index", val_fraction=0.0)
    data.setup()
    assert (data.make_reader()(data.records["train"][0])["mask"] == mask).all()
    (tmp_path / "bad.csv").write_text("path,masks\na.png,m.png\n")
    with pytest.raises(ValueError, match=r"has no column 'mask' .*Did you mean 'masks'"):
        SegmentationData(str(tmp_path / "bad.csv")).setup()
    (tmp_path / "gone.csv").write_text("path,mask\na.png,n.png\n")
    with pytest.raises(ValueError, match=r"line 2: image 'n.png' does not exist"):
        SegmentationData(str(tmp_path / "gone.csv")).setup()


def test_scenes_take_a_split_file(tmp_path):
    names = {"train": ["digit_scenes#0/train/1"], "pool": ["digit_scenes#0/train/0"], "val": ["digit_scenes#0/val/0"]}
    (tmp_path / "split.json").write_text(json.dumps({**names, "test": []}))
    scenes = {"num_scenes": {"train": 2, "val": 1, "test": 0}, "split_file": str(tmp_path / "split.json")}
    for data in (SegmentationData(**scenes, batch_size=1), DetectionData(**scenes, batch_size=1)):
        data.setup("fit")
        assert [r["path"] for r in data.records["train"]] == names["train"]
        assert len(data.records["val"]) == 1


def test_pools_of_scenes_are_files(world):
    folder = stage(world / "whole", "data")
    records = pool_records(folder / "pool.parquet")
    assert len(records) == 10
    assert all(Path(r["path"]).parent == folder / "pool" for r in records)
    if world.name.startswith("pixels"):
        table = pq.read_table(stage(world / "whole", "labels1") / "labels.parquet")
        assert table.column("path")[0].as_py().startswith("../data/pool/")
        names, means = (table[column].to_pylist() for column in ("confidence_map", "confidence"))
        levels = [load_mask(folder.parent / "labels1" / name).pixels.mean() / 255 for name in names]
        assert levels == pytest.approx(means)
    assert os.path.exists(folder / "split.json")
    assert read_json(folder / "truth.json")["pool"][0].startswith("digit_scenes#0/train/")
