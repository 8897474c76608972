"""Segmentation from end to end: exact resume, prediction equal to the test, ranks, windows, kinds of masks."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from sklearn.metrics import confusion_matrix

from pipelines.__main__ import main
from tests.conftest import in_child
from tests.ranks import in_ranks

CLASSES = ["ground", "disc", "square"]
CONFIG = """
model:
  class_path: Segmentation
  init_args:
    architecture: unet
    backbone: test_resnet
    losses: {{cross_entropy: 1.0, dice: 0.5}}
    color_jitter: 0.2
    aux_weight: 0.1
    optim: {{lr: 0.003}}
data:
  class_path: SegmentationData
  init_args:
    source: {source}
    class_names: [ground, disc, square]
    image_size: 32
    batch_size: 4
    num_workers: {workers}
    augment: {{preset: medium, scale_jitter: [0.7, 1.4], class_crop: 0.5}}
trainer:
  max_epochs: 2
  accumulate_grad_batches: 2
  ema_decay: 0.9
  log_every_n_steps: 1
  save_every_n_steps: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""


def write_pairs(root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 56)) -> Path:
    """Pictures of a disc and a square with index masks; a column of ignored pixels; sizes differ, some by EXIF."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            height, width = (size[0] + 3 * (i % 3), size[1] - 5 * (i % 2))
            image = rng.normal(60, 20, (height, width, 3))
            mask = np.zeros((height, width), np.uint8)
            rows, columns = np.mgrid[:height, :width]
            y, x, radius = (int(v) for v in rng.integers(8, [height - 8, width - 8, 14]))
            mask[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 1
            y, x = (int(v) for v in rng.integers(0, [height - 12, width - 12]))
            mask[y : y + 12, x : x + 12] = 2
            image[mask == 1] += [120, 0, 0]
            image[mask == 2] += [0, 0, 120]
            mask[:, -2] = 255
            picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            exif = Image.Exif()
            if i % 4 == 1:  # stored lying on its side
                picture = picture.rotate(90, expand=True)
                exif[0x0112] = 6
            picture.save(root / "images" / split / f"{i:02d}.jpg", quality=95, exif=exif)
            Image.fromarray(mask).save(root / "masks" / split / f"{i:02d}.png")
    return root


def run(*words: object) -> int:
    return in_child(lambda: main([str(w) for w in words]))


def write_config(directory: Path, source: Path, workers: int = 0) -> Path:
    path = directory / "run.yaml"
    path.write_text(CONFIG.format(source=source, workers=workers))
    return path


class KillAt(Callback):
    """SIGKILL inside the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_killed_and_continued_equals_undisturbed(tmp_path):
    config = write_config(tmp_path, write_pairs(tmp_path / "pictures", {"train": 20, "val": 3}))
    states, tables = {}, {}
    for runs in ("whole", "cut"):
        flags = ["--runs_dir", runs]
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
    assert "val/miou" in tables["whole"]
    assert "train/presence" in tables["whole"]


def scores_of_files(masks: Path, truths: Path) -> float:
    """Mean IoU of written masks, by scikit-learn."""
    total = np.zeros((3, 3), int)
    names = sorted(p.name for p in truths.iterdir())
    assert sorted(p.name for p in masks.iterdir()) == names
    for name in names:
        written = Image.open(masks / name)
        assert written.mode == "P"
        truth, prediction = np.asarray(Image.open(truths / name)), np.asarray(written)
        assert truth.shape == prediction.shape
        valid = truth != 255
        total += confusion_matrix(truth[valid], prediction[valid], labels=range(3))
    union = total.sum(0) + total.sum(1) - total.diagonal()
    return float(np.mean(total.diagonal()[union > 0] / union[union > 0]))


@pytest.fixture(scope="module", params=["native", "letterbox"])
def trained(request, tmp_path_factory) -> Path:
    """A folder with pictures, a config, and a run of two epochs."""
    root = tmp_path_factory.mktemp(request.param)
    config = write_config(root, write_pairs(root / "pictures", {"train": 16, "val": 3, "test": 6}))
    flags = ["--data.resize", request.param, "--model.tta", "[hflip]", "--model.tta_scales", "[0.5]"]
    assert run("fit", "--config", config, "--runs_dir", root / "runs", *flags) == 0
    return root


only_native = pytest.mark.parametrize("trained", ["native"], indirect=True)


def measured(name: str, runs: str = "runs") -> tuple[dict[str, float], Path]:
    """What the only run below a folder has measured, and the run."""
    (file,) = Path(runs).rglob(f"{name}.json")
    return json.loads(file.read_text()), file.parent


def test_predict_equals_test(trained, tmp_path):
    """The files that predict writes have the scores that test reported, on pictures rotated by EXIF and not square.

    Of the run only a copy of its checkpoint is left.
    """
    shutil.copy(trained / "runs/run/0/checkpoints/best.ckpt", "model.ckpt")
    shutil.copytree(trained / "pictures/images/test", "images")
    shutil.copytree(trained / "pictures/masks/test", "truth")
    assert run("test", "--ckpt_path", "model.ckpt") == 0
    tested, directory = measured("test")
    with open(directory / "predictions.csv", newline="") as file:
        table = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert len(table) == 6
    trained.rename(tmp_path / "hidden")
    try:
        assert run("predict", "--ckpt_path", "model.ckpt", "--source", "images", "--output", "out") == 0
    finally:
        (tmp_path / "hidden").rename(trained)
    assert scores_of_files(Path("out/masks"), Path("truth")) == pytest.approx(tested["test/miou"], abs=1e-6)
    with open("out/predictions.csv", newline="") as file:
        for row in csv.DictReader(file):
            same = table[Path(row["path"]).name]
            areas = [float(row[f"area_{name}"]) for name in CLASSES]
            assert areas == [float(same[f"area_{name}"]) for name in CLASSES]
            assert sum(areas) == pytest.approx(1)
    assert len(list(Path("out/overlays").iterdir())) == 6
    assert Path("out/contact_sheet.png").stat().st_size > 1000


@only_native
def test_tiles(trained, tmp_path):
    """A picture larger than the tile is tested and predicted by windows, in its own size."""
    source = write_pairs(tmp_path / "pictures", {"train": 1, "val": 1, "test": 2}, (150, 170))
    shutil.copy(trained / "runs/run/0/checkpoints/best.ckpt", "model.ckpt")
    tiles = ["--data.tile", "64", "--data.tile_overlap", "0.5", "--ckpt_path", "model.ckpt"]
    assert run("test", "--data.source", source, *tiles) == 0
    assert run("predict", "--source", source / "images/test", "--output", "out", *tiles) == 0
    found = scores_of_files(Path("out/masks"), source / "masks/test")
    assert found == pytest.approx(measured("test")[0]["test/miou"], abs=1e-6)


@pytest.mark.slow
@only_native
def test_two_ranks_measure_what_one_measures(trained, tmp_path):
    """Five validation pictures and three test pictures, unevenly shared."""
    source = write_pairs(tmp_path / "pictures", {"train": 4, "val": 5, "test": 3})
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
            found[name, ranks], directory = measured(name, f"ranks{ranks}")
        found["table", ranks] = (directory / "predictions.csv").read_text()
    for name in ("validate", "test", "table"):
        assert found[name, 1] == found[name, 2]
    assert 0 < found["validate", 1]["val/miou"] < 1


@pytest.mark.parametrize("kind", ["binary", "multi-label"])
def test_other_kinds_of_masks(tmp_path, kind):
    """Binary masks, and multi-label masks, are trained on, tested and written."""
    source = write_pairs(tmp_path / "pictures", {"train": 8, "val": 2, "test": 2})
    truths = {}
    for path in (source / "masks").rglob("*.png"):
        mask = np.asarray(Image.open(path))
        truths[path.parent.name, path.stem] = mask
        path.unlink()
        for name, value in (("disc", 1), ("square", 2)):
            suffix = f"_{name}" if kind == "multi-label" else ""
            if kind == "multi-label" or name == "square":
                found = np.where(mask == value, 255, 0).astype(np.uint8)
                Image.fromarray(found).save(path.with_name(f"{path.stem}{suffix}.png"))
    config = write_config(tmp_path, source)
    flags = ["--trainer.max_epochs", "1"]
    if kind == "multi-label":
        flags += ["--data.images", "images/{split}/{stem}.jpg", "--data.masks", "masks/{split}/{stem}_{class}.png"]
        flags += ["--data.class_names", "[disc, square]"]
    else:
        flags += ["--data.mask_format", "binary", "--data.class_names", "[rest, square]"]
    assert run("fit", "--config", config, *flags) == 0
    checkpoint = ["--ckpt_path", "runs/run/0/checkpoints/last.ckpt"]
    assert run("test", *checkpoint) == 0
    assert np.isfinite(measured("test")[0]["test/miou"])
    assert run("predict", *checkpoint, "--source", source / "images/test", "--output", "out") == 0
    files = sorted(p.name for p in Path("out/masks").iterdir())
    multi_label = [f"{i:02d}_{name}.png" for i in range(2) for name in ("disc", "square")]
    assert files == (multi_label if kind == "multi-label" else ["00.png", "01.png"])
