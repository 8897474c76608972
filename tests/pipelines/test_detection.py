"""Detection from end to end: every family, exact resume, prediction equal to the test, ranks, windows."""

from __future__ import annotations

import contextlib
import csv
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
    resize: {resize}
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
#: The families of the shared runs, and how their pictures come onto the canvas.
TRAINED = {"fcos": "letterbox", "mask_rcnn": "stretch"}
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


def write_config(
    directory: Path, source: Path | str, detector: str, augment: str = "{}", resize: str = "letterbox"
) -> Path:
    path = directory / "run.yaml"
    values = {"source": source, "detector": detector, "args": ARGS[detector], "augment": augment, "resize": resize}
    path.write_text(CONFIG.format(masks=str(detector == "mask_rcnn").lower(), **values))
    return path


def result(name: str, runs: str = "runs") -> dict[str, float]:
    """What the only run below a folder has measured."""
    (file,) = Path(runs).rglob(f"{name}.json")
    values: dict[str, float] = json.loads(file.read_text())
    return values


class KillAt(Callback):
    """SIGKILL inside the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_and_continued_equals_undisturbed(tmp_path):
    """With mosaic, mixup and several canvases; the last epoch sees single pictures, and workers come and go."""
    source = write_coco(tmp_path / "pictures", {"train": 22, "val": 3})
    augment = "{mosaic: 0.6, mixup: 0.3, close_mosaic_epochs: 1, canvas_sizes: [64, 96], scale_jitter: [0.7, 1.4]}"
    config = write_config(tmp_path, source, "mask_rcnn", augment)
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
    assert all(whole["task_state"]["best_thresholds"][kind]["per_class"] for kind in ("bbox", "segm"))


# fcos and mask_rcnn are trained for the tests below.
@pytest.mark.parametrize(
    "detector",
    [
        name if name == "yolo" else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(ARGS.keys() - TRAINED.keys())
    ],
)
def test_a_checkpoint_of_every_family_is_as_good_as_the_run_that_wrote_it(tmp_path, detector):
    source = write_coco(tmp_path / "pictures", {"train": 16, "val": 4})
    config = write_config(tmp_path, source, detector)
    flags = ["--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "4", "--model.optim.lr", "0.01"]
    assert run("fit", "--config", config, *flags) == 0
    assert run("validate", "--ckpt_path", "runs/run/0/checkpoints/last.ckpt") == 0
    with open("runs/run/0/metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    in_fit = {name: float(value) for name, value in row.items() if name.startswith("val/") and value != "nan"}
    validated = result("validate")
    # In so few steps the one box of box_regression comes near no object.
    assert in_fit["val/mar_100"] > 0 or detector == "box_regression"
    assert in_fit == pytest.approx({name: validated[name] for name in in_fit})


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, tmp_path_factory) -> Path:
    """A folder with pictures, a config, and a run of some epochs."""
    root = tmp_path_factory.mktemp(request.param)
    source = write_coco(root / "pictures", {"train": 24, "val": 2, "test": 6})
    config = write_config(root, source, request.param, resize=TRAINED[request.param])
    flags = ["--model.score_threshold", "0.01", "--model.min_score", "0.01", "--model.optim.lr", "0.01"]
    assert run("fit", "--config", config, "--trainer.max_epochs", "6", "--runs_dir", root / "runs", *flags) == 0
    return root


only_fcos = pytest.mark.parametrize("trained", ["fcos"], indirect=True)


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


def assert_written_as_tested(truth: Path, tested: dict[str, float]) -> None:
    """What predict wrote to `out` has the mAP that test reported."""
    for kind, name in (("bbox", "test/map"), ("segm", "test/mask_map")):
        if name in tested:
            assert average_precision(truth, Path("out"), kind) == pytest.approx(tested[name], abs=1e-6)


def test_predict_equals_test(trained, tmp_path, monkeypatch):
    """On pictures rotated by EXIF and not square; of the run only a copy of its checkpoint is left."""
    shutil.copy(trained / "runs/run/0/checkpoints/best.ckpt", "model.ckpt")
    shutil.copytree(trained / "pictures/test", "images")
    shutil.copy(trained / "pictures/annotations/instances_test.json", "truth.json")
    assert run("test", "--ckpt_path", "model.ckpt") == 0
    tested = result("test")
    assert tested["test/map"] > 0.01
    assert ("test/mask_map" in tested) == trained.name.startswith("mask_rcnn")
    trained.rename(tmp_path / "hidden")
    try:
        assert run("predict", "--ckpt_path", "model.ckpt", "--source", "images", "--output", "out") == 0
    finally:
        (tmp_path / "hidden").rename(trained)
    assert_written_as_tested(Path("truth.json"), tested)


@only_fcos
def test_two_ranks_measure_what_one_measures(trained, tmp_path):
    """Five validation pictures, unevenly shared; and a single test picture, so that a rank has none."""
    source = write_coco(tmp_path / "pictures", {"train": 4, "val": 5, "test": 1})
    shutil.copy(trained / "runs/run/0/checkpoints/last.ckpt", "model.ckpt")
    found = {}
    for ranks in (1, 2):
        command = ["--ckpt_path", "model.ckpt", "--data.source", str(source), "--data.eval_batch_size", "1"]
        command += ["--runs_dir", f"ranks{ranks}"]
        command += ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp" if ranks == 2 else "auto"]
        command += ["--trainer.accelerator", "cpu"]
        for name in ("validate", "test"):
            words = [name, *command]
            status = in_ranks(lambda words=words: main(words)) if ranks == 2 else [run(*words)]
            assert status == [0] * ranks
            found[name, ranks] = result(name, f"ranks{ranks}")
    for name in ("validate", "test"):
        np.testing.assert_equal(found[name, 1], found[name, 2])
    assert 0.01 < found["validate", 1]["val/map"] < 1


@only_fcos
def test_predict_on_a_video_is_predict_on_its_frames(trained):
    """The frames as lossless files; boxes are drawn onto the frames in their own size."""
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 80))
    for noise in np.random.default_rng(0).integers(0, 256, (6, 80, 96, 3), dtype=np.uint8):
        writer.write(cv2.GaussianBlur(noise, (9, 9), 3))
    writer.release()
    Path("frames").mkdir()
    for i, name in enumerate(find_images("clip.avi")):
        Image.fromarray(read_image(name)).save(f"frames/{i}.png")
    for source in ("clip.avi", "frames"):
        words = ["--ckpt_path", trained / "runs/run/0/checkpoints/last.ckpt", "--source", source]
        words += ["--output", f"out_{source}", "--model.score_threshold", "0.001", "--model.min_score", "0.001"]
        assert run("predict", *words) == 0
    found = [json.loads(Path(f"out_{source}/predictions.json").read_text()) for source in ("clip.avi", "frames")]
    assert found[0] == found[1]
    assert {entry["image_id"] for entry in found[0]} == set(range(1, 7))
    overlays = sorted(Path("out_clip.avi/overlays").iterdir())
    assert [Image.open(path).size for path in overlays] == [(96, 80)] * 6
    assert Path("out_clip.avi/contact_sheet.png").is_file()


@only_fcos
def test_tiles(trained, tmp_path):
    """Pictures larger than the tile are tested and predicted by windows, in their own size."""
    source = write_coco(tmp_path / "pictures", {"train": 1, "val": 1, "test": 3}, (150, 190))
    shutil.copy(trained / "runs/run/0/checkpoints/best.ckpt", "model.ckpt")
    tiles = ["--data.resize", "native", "--data.tile", "64", "--data.tile_overlap", "0.5", "--ckpt_path", "model.ckpt"]
    assert run("test", "--data.source", source, *tiles) == 0
    assert run("predict", "--source", source / "test", "--output", "out", *tiles) == 0
    tested = result("test")
    assert tested["test/map"] > 0.001
    assert_written_as_tested(source / "annotations/instances_test.json", tested)
