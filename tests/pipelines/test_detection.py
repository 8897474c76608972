"""Detection from end to end: every family, exact resume, prediction equal to the test, ranks, windows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from faster_coco_eval import mask as run_lengths
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pytorch_lightning.callbacks import Callback

from datamodules.decoding.files import find_images
from datamodules.decoding.images import read_image
from pipelines.__main__ import main
from tests.conftest import in_child
from tests.ranks import in_ranks

CONFIG = """
model:
  class_path: Detection
  init_args:
    detector: {detector}
    backbone: test_resnet
    detector_args: {args}
    color_jitter: 0.2
    optim: {{lr: 0.003}}
data:
  class_path: DetectionData
  init_args:
    source: {source}
    masks: {masks}
    image_size: 64
    batch_size: 4
    num_workers: 0
    augment: {augment}
trainer:
  max_epochs: 2
  log_every_n_steps: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""
ARGS = {
    "yolo": "{width: 16}",
    "fcos": "{head_channels: 16, head_depth: 1}",
    "retinanet": "{head_channels: 16, head_depth: 1}",
    "faster_rcnn": "{head_channels: 16, box_head_width: 16, candidates: [50, 50], proposals: [20, 20]}",
    "mask_rcnn": "{head_channels: 16, box_head_width: 16, candidates: [50, 50], proposals: [20, 20],"
    " mask_head_width: 16, mask_head_depth: 1}",
    "box_regression": "{head_channels: 16}",
}
#: COCO's category ids have gaps and are not in order.
CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 3, "name": "square"}]


def write_coco(root: Path, counts: dict[str, int], size: tuple[int, int] = (60, 80)) -> Path:
    """Pictures of discs and squares in COCO's layout; some without objects, some lying on their side (EXIF)."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        images, annotations = [], []
        (root / split).mkdir()
        for i in range(count):
            height, width = (size[0] + 6 * (i % 3), size[1] - 10 * (i % 2))
            image = rng.normal(60, 10, (height, width, 3))
            rows, columns = np.mgrid[:height, :width]
            for kind in range(0 if i % 5 == 4 else 3):
                half = int(rng.integers(6, 12))
                y, x = (int(v) for v in rng.integers(half, [height - half, width - half]))
                disc = kind % 2 == 0
                mask = (rows - y) ** 2 + (columns - x) ** 2 <= half**2 if disc else None
                if mask is None:
                    mask = (abs(rows - y) <= half) & (abs(columns - x) <= half)
                image[mask] = [200, 40, 40] if disc else [40, 40, 200]
                rle = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
                rle["counts"] = rle["counts"].decode()
                ys, xs = np.nonzero(mask)
                box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 10 * i + 5,
                        "category_id": 7 if disc else 3,
                        "bbox": [int(v) for v in box],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": rle,
                    }
                )
            picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            exif = Image.Exif()
            if i % 4 == 1:
                picture = picture.rotate(90, expand=True)
                exif[0x0112] = 6
            picture.save(root / split / f"{i:02d}.jpg", quality=95, exif=exif)
            images.append({"id": 10 * i + 5, "file_name": f"{i:02d}.jpg", "height": height, "width": width})
        file = root / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return root


def run(*words: object) -> int:
    return in_child(lambda: main([str(w) for w in words]))


def write_config(directory: Path, source: Path | str, detector: str, augment: str = "{}") -> Path:
    path = directory / "run.yaml"
    masks = str(detector == "mask_rcnn").lower()
    path.write_text(CONFIG.format(source=source, detector=detector, args=ARGS[detector], masks=masks, augment=augment))
    return path


def result(name: str) -> dict[str, float]:
    values: dict[str, float] = json.loads(Path(f"runs/run/0/{name}.json").read_text())
    return values


class KillAt(Callback):
    """SIGKILL inside the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("detector", ["yolo", "mask_rcnn"])
def test_killed_and_continued_equals_undisturbed(tmp_path, detector):
    """With mosaic, mixup and several canvases; the last epoch sees single pictures, and workers come and go."""
    source = write_coco(tmp_path / "pictures", {"train": 22, "val": 3})
    augment = "{mosaic: 0.6, mixup: 0.3, close_mosaic_epochs: 1, canvas_sizes: [64, 96], scale_jitter: [0.7, 1.4]}"
    config = write_config(tmp_path, source, detector, augment)
    states, tables = {}, {}
    for runs in ("whole", "cut"):
        flags = ["--runs_dir", runs, "--trainer.accumulate_grad_batches", "2", "--trainer.ema_decay", "0.9"]
        flags += ["--trainer.save_every_n_steps", "1"]
        if runs == "cut":
            assert run("fit", "--config", config, *flags, f"--trainer.callbacks={__name__}.KillAt") == -signal.SIGKILL
            flags += ["--resume", "auto", "--data.num_workers", "2"]
        assert run("fit", "--config", config, *flags) == 0
        directory = Path(runs) / "run" / "0"
        states[runs] = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
        tables[runs] = (directory / "metrics.csv").read_text()
    whole, cut = states["whole"], states["cut"]
    assert whole["global_step"] == cut["global_step"] == 6
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[key][name], cut[key][name]) for name in whole[key])
    assert tables["whole"] == tables["cut"]
    assert "val/map" in tables["whole"]
    assert whole["task_state"]["best_thresholds"]["bbox"]["per_class"]


@pytest.mark.parametrize("detector", sorted(ARGS))
def test_every_family_trains_and_is_tested(tmp_path, detector):
    config = write_config(tmp_path, "digits", detector)
    flags = ["--data.num_scenes", "{train: 8, val: 4, test: 4}", "--trainer.max_epochs", "1"]
    assert run("fit", "--config", config, *flags) == 0
    assert run("test", "--ckpt_path", "runs/run/0/checkpoints/last.ckpt") == 0
    tested = result("test")
    assert {"test/map", "test/map_50", "test/mar_100"} <= set(tested)
    assert ("test/mask_map" in tested) == (detector == "mask_rcnn")
    assert 0 <= tested["test/map"] <= 1


def average_precision(truth: Path, output: Path, kind: str) -> float:
    """mAP of what predict wrote against the original annotations, by pycocotools; images are known by their names."""
    written = json.loads((output / "annotations.json").read_text())
    ids = {image["file_name"]: image["id"] for image in json.loads(truth.read_text())["images"]}
    renamed = {image["id"]: ids[Path(image["file_name"]).name] for image in written["images"]}
    results = json.loads((output / "predictions.json").read_text())
    for result in results:
        result["image_id"] = renamed[result["image_id"]]
        if isinstance(result.get("segmentation"), dict):
            result["segmentation"]["counts"] = result["segmentation"]["counts"].encode()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize(("detector", "resize"), [("fcos", "letterbox"), ("mask_rcnn", "stretch")])
def test_predict_equals_test(tmp_path, detector, resize, monkeypatch):
    """What predict writes has the mAP that test reported, on pictures rotated by EXIF and not square."""
    source = write_coco(tmp_path / "pictures", {"train": 24, "val": 2, "test": 6})
    config = write_config(tmp_path, source, detector)
    flags = ["--data.resize", resize, "--model.score_threshold", "0.01", "--model.min_score", "0.01"]
    flags += ["--trainer.max_epochs", "6", "--model.optim.lr", "0.01"]
    assert run("fit", "--config", config, *flags) == 0
    assert run("test", "--config", config, *flags) == 0
    tested = result("test")
    assert tested["test/map"] > 0.01

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy("runs/run/0/checkpoints/best.ckpt", elsewhere / "model.ckpt")
    shutil.copytree(source / "test", elsewhere / "images")
    shutil.copy(source / "annotations/instances_test.json", elsewhere / "truth.json")
    shutil.rmtree(source)
    shutil.rmtree("runs")
    monkeypatch.chdir(elsewhere)
    assert run("predict", "--ckpt_path", "model.ckpt", "--source", "images", "--output", "out") == 0
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        if kind == "bbox" or detector == "mask_rcnn":
            found = average_precision(Path("truth.json"), Path("out"), kind)
            assert found == pytest.approx(tested[f"test/{prefix}map"], abs=1e-6)


def test_two_ranks_measure_what_one_measures(tmp_path):
    """Three test pictures, unevenly shared; and a single one, so that a rank has none."""
    source = write_coco(tmp_path / "pictures", {"train": 8, "val": 5, "test": 1})
    config = write_config(tmp_path, source, "fcos")
    small = ["--trainer.max_epochs", "1", "--data.eval_batch_size", "1"]
    assert run("fit", "--config", config, *small) == 0
    found = {}
    for ranks in (1, 2):
        command = ["--ckpt_path", "runs/run/0/checkpoints/last.ckpt", "--config", str(config), *small]
        command += ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp" if ranks == 2 else "auto"]
        command += ["--trainer.accelerator", "cpu"]
        for name in ("validate", "test"):
            words = [name, *command]
            status = in_ranks(lambda words=words: main(words)) if ranks == 2 else [run(*words)]
            assert status == [0] * ranks
            found[name, ranks] = result(name)
    for name in ("validate", "test"):
        np.testing.assert_equal(found[name, 1], found[name, 2])
    assert found["validate", 1]["val/map"] >= 0


def test_predict_on_a_video_is_predict_on_its_frames(tmp_path):
    """The frames as lossless files; boxes are drawn onto the frames in their own size."""
    config = write_config(tmp_path, "digits", "yolo")
    flags = ["--data.num_scenes", "{train: 8, val: 4, test: 0}", "--model.score_threshold", "0.001"]
    assert run("fit", "--config", config, *flags, "--trainer.max_epochs", "1") == 0
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 80))
    for noise in np.random.default_rng(0).integers(0, 256, (6, 80, 96, 3), dtype=np.uint8):
        writer.write(cv2.GaussianBlur(noise, (9, 9), 3))
    writer.release()
    Path("frames").mkdir()
    for i, name in enumerate(find_images("clip.avi")):
        Image.fromarray(read_image(name)).save(f"frames/{i}.png")
    for source in ("clip.avi", "frames"):
        words = ["--ckpt_path", "runs/run/0/checkpoints/last.ckpt", "--source", source, "--output", f"out_{source}"]
        assert run("predict", *words, "--model.score_threshold", "0.001") == 0
    found = [json.loads(Path(f"out_{source}/predictions.json").read_text()) for source in ("clip.avi", "frames")]
    assert found[0] == found[1]
    assert {entry["image_id"] for entry in found[0]} == set(range(1, 7))
    overlays = sorted(Path("out_clip.avi/overlays").iterdir())
    assert [Image.open(path).size for path in overlays] == [(96, 80)] * 6
    assert Path("out_clip.avi/contact_sheet.png").is_file()


def test_tiles(tmp_path):
    """Pictures larger than the tile are tested by windows, in their own size."""
    source = write_coco(tmp_path / "pictures", {"train": 8, "val": 2, "test": 2}, (150, 190))
    config = write_config(tmp_path, source, "fcos")
    flags = ["--data.resize", "native", "--data.tile", "64", "--data.tile_overlap", "0.5", "--trainer.max_epochs", "1"]
    assert run("fit", "--config", config, *flags) == 0
    assert run("test", "--config", config, *flags) == 0
    assert 0 <= result("test")["test/map"] <= 1
