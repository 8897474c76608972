"""`predict` gives exactly what `test` gave on the same files, from a checkpoint that was copied elsewhere."""

from __future__ import annotations

import csv
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.__main__ import main
from tests.conftest import in_child, write_images

CONFIG = """
model:
  class_path: Classification
  init_args: {{backbone: test_resnet, pretrained: {pretrained}}}
data:
  class_path: ClassificationData
  init_args: {{source: {source}, image_size: 48, batch_size: 4, num_workers: 0, resize: {resize}}}
trainer:
  accelerator: cpu
  max_epochs: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""


def run(*words: str) -> int:
    def work() -> int:
        warnings.simplefilter("default")  # pytest keeps them
        warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
        return main([str(w) for w in words])

    return in_child(work)


def table(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}


def difference(a: dict[str, dict[str, str]], b: dict[str, dict[str, str]]) -> float:
    assert a.keys() == b.keys()
    assert [row["label"] for row in a.values()] == [b[name]["label"] for name in a]
    keys = ("probability", "probability_2")
    return max(abs(float(row[k]) - float(b[name][k])) for name, row in a.items() for k in keys)


@pytest.mark.parametrize("resize", ["crop", pytest.param("letterbox", marks=pytest.mark.slow)])
def test_predict_equals_test(tmp_path, resize, monkeypatch):
    counts = {"train/ant": 6, "train/bee": 6, "val/ant": 2, "val/bee": 2, "test/ant": 3, "test/bee": 3}
    source = write_images(tmp_path / "pictures", counts, (60, 80))
    rng = np.random.default_rng(0)
    for i, name in enumerate(("ant", "bee", "ant", "bee")):  # rotated by EXIF, and far from square
        pixels = rng.integers(0, 255, (30 + 40 * i, 120, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = (6, 8, 3, 5)[i]
        Image.fromarray(pixels).save(source / "test" / name / f"rotated{i}.jpg", exif=exif)
    for path in (source / "test").rglob("*.jpg"):  # one name a file, to compare tables by
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(source=source, resize=resize, pretrained="false"))
    assert run("fit", "--config", config) == 0
    assert run("test", "--config", config) == 0
    tested = table(tmp_path / "runs/run/0/predictions.csv")
    assert len(tested) == 10
    assert {row["truth"] for row in tested.values()} == {"ant", "bee"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(tmp_path / "runs/run/0/checkpoints/best.ckpt", elsewhere / "model.ckpt")
    shutil.copytree(source / "test", elsewhere / "images")
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.chdir(elsewhere)
    assert run("predict", "--ckpt_path", "model.ckpt", "--source", "images", "--output", "same") == 0
    other = ["--data.eval_batch_size", "3", "--output", "other"]
    assert run("predict", "--ckpt_path", "model.ckpt", "--source", "images", *other) == 0
    assert difference(tested, table(Path("same/predictions.csv"))) < 1e-6
    assert difference(tested, table(Path("other/predictions.csv"))) < 1e-5
    assert (elsewhere / "same" / "contact_sheet.png").stat().st_size > 1000
    assert not (elsewhere / "runs").exists()


def test_the_weights_file_is_not_needed_once_there_is_a_checkpoint(tmp_path, folder):
    from safetensors.torch import save_file

    from tasks.backbones import create_classifier

    weights = tmp_path / "weights.safetensors"
    save_file(create_classifier("test_resnet", 7).state_dict(), weights)
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(source=folder, resize="crop", pretrained=weights))
    assert run("fit", "--config", config) == 0
    weights.unlink()
    assert run("test", "--config", config) == 0
    assert run("predict", "--ckpt_path", "runs/run/0/checkpoints/last.ckpt", "--source", folder / "test/ant") == 0
    assert len(table(Path("runs/run/0/predict/predictions.csv"))) == 3


def test_test_without_a_config_takes_everything_from_the_checkpoint(tmp_path, folder):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(source=folder, resize="crop", pretrained="false"))
    assert run("fit", "--config", config) == 0
    assert run("test", "--ckpt_path", "runs/run/0/checkpoints/best.ckpt") == 0
    by_file = (tmp_path / "runs/run/0/test.json").read_text()
    assert run("test", "--name", "run") == 0
    assert (tmp_path / "runs/run/0/test.json").read_text() == by_file


def test_untrained_weights_are_never_evaluated(tmp_path, folder, capfd):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(source=folder, resize="crop", pretrained="false"))
    assert run("test", "--config", config) != 0
    assert "no run named 'run'" in capfd.readouterr().err


def test_other_classes_are_refused_and_another_view_is_said(tmp_path, folder, capfd):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(source=folder, resize="crop", pretrained="false"))
    assert run("fit", "--config", config) == 0
    assert run("test", "--config", config) == 0
    before = Path("runs/run/0/test.json").read_text()
    order = ["--data.class_names", "[bee, ant]"]
    for words in (["test", "--ckpt_path", "runs/run/0/checkpoints/best.ckpt"], ["fit", "--resume", "auto"]):
        capfd.readouterr()
        assert run(words[0], "--config", config, *words[1:], *order) != 0
        assert "was trained on the classes ['ant', 'bee'], but the data has ['bee', 'ant']" in capfd.readouterr().err
    assert Path("runs/run/0/test.json").read_text() == before
    assert run("test", "--config", config, "--data.image_size", "32") == 0
    assert "data.image_size is [32, 32], but" in capfd.readouterr().err


def test_a_config_finds_its_run_whatever_flags_that_was_trained_with(tmp_path, folder, capfd):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(source=folder, resize="crop", pretrained="false"))
    changed = ["--model.backbone", "test_vit", "--data.image_size", "64", "--model.optim.lr", "1e-4"]
    assert run("fit", "--config", config, *changed) == 0
    another = Path("runs/run/1")  # the newest of that name trains another task
    (another / "checkpoints").mkdir(parents=True)
    (another / "config.yaml").write_text("model: {class_path: tasks.Detection}")
    (another / "checkpoints/best.ckpt").touch()
    capfd.readouterr()
    assert run("test", "--config", config) == 0
    said = capfd.readouterr().err
    assert "As in the run, and not as in the config: model.backbone 'test_vit', not 'test_resnet';" in said
    assert "data.image_size [64, 64], not 48. Flags change them." in said
    assert Path("runs/run/0/test.json").is_file()
    assert run("test", "--config", config, "--model.backbon", "resnet18") == 2
    assert "did you mean --model.backbone?" in capfd.readouterr().err
    (another.parent / "0").rename("elsewhere")
    assert run("test", "--config", config) != 0
    assert "no Classification run named 'run'" in capfd.readouterr().err


def test_class_weights_are_those_of_training(tmp_path, capfd):
    """A checkpoint is evaluated on images of other frequencies than those its weights were counted on."""
    for name, ants, bees in (("one", 8, 4), ("two", 4, 8)):
        counts = {"train/ant": ants, "train/bee": bees, "val/ant": 2, "val/bee": 2, "test/ant": 2, "test/bee": 2}
        write_images(tmp_path / name, counts)
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(source=tmp_path / "one", resize="crop", pretrained="false"))
    assert run("fit", "--config", config, "--data.balance", "loss") == 0
    checkpoint = Path("runs/run/0/checkpoints/best.ckpt")
    trained = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["class_weights"]
    assert trained == [0.75, 1.5]
    assert run("test", "--ckpt_path", checkpoint, "--data.source", tmp_path / "two") == 0, capfd.readouterr().err


def test_a_broken_picture_among_the_new_ones(tmp_path, folder, capfd):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(source=folder, resize="crop", pretrained="false"))
    assert run("fit", "--config", config) == 0
    new = write_images(tmp_path / "new", {"x": 3})
    (new / "x" / "001.jpg").write_bytes((new / "x" / "001.jpg").read_bytes()[:200])
    words = ["predict", "--ckpt_path", "runs/run/0/checkpoints/best.ckpt", "--source", new]
    skip = ["--data.on_corrupt", "skip"]
    assert run(*words, *skip, "--output", "out") == 0
    assert "1 unreadable images are left out; first" in capfd.readouterr().err
    assert sorted(table(Path("out/predictions.csv"))) == ["000.jpg", "002.jpg"]
    Path("out/overlays").mkdir()
    Path("out/overlays/monday.jpg").touch()
    assert run(*words, *skip, "--output", "out") == 0
    assert not Path("out/overlays").exists()  # nothing of an earlier call lies among the new files
    assert run(*words, *skip, "--output", folder) != 0
    assert f"--output {folder} holds other files already: test, train, val. Give" in capfd.readouterr().err
    assert run(*words, *skip, "--output", new / "out") != 0
    assert "lies inside --source" in capfd.readouterr().err
    (new / "x" / "001.jpg").write_bytes(b"")
    assert run(*words, "--output", "more") != 0
    assert "1 image file(s) cannot be read" in capfd.readouterr().err
