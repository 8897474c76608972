"""`pseudo-label`: the teacher in evaluation mode on clean images, the same for any number of ranks, restartable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datamodules import ClassificationData
from datamodules.readers.lists import read_list
from datamodules.unlabeled import pool_records
from pipelines.__main__ import main
from pipelines.noisy_student import labeling
from pipelines.noisy_student.kinds.images import Labels, read_labels, write_labels
from pipelines.noisy_student.labeling import load_teacher
from tests.conftest import in_child, write_images
from tests.ranks import in_ranks

CONFIG = """
model:
  class_path: Classification
  init_args: {{backbone: test_resnet, drop_rate: 0.5, drop_path_rate: 0.5, optim: {{lr: 3.0e-3}}}}
data:
  class_path: ClassificationData
  init_args: {{source: {source}, image_size: 32, batch_size: 4, num_workers: 0}}
trainer:
  max_steps: 2
  accelerator: cpu
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SMALL_CHUNKS = 2  # batches


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with two trained teachers (a.ckpt, b.ckpt) and a pool of 23 images; its data is moved away again."""
    root = tmp_path_factory.mktemp("world")
    counts = {f"{split}/{name}": n for split, n in (("train", 8), ("val", 30)) for name in ("ant", "bee")}
    write_images(root / "pictures", counts, (32, 32))
    write_images(root / "pool", {"x": 13, "y": 10}, (36, 40), seed=1)
    (root / "run.yaml").write_text(CONFIG.format(source=root / "pictures"))

    def train() -> int:
        words = ["fit", "--config", str(root / "run.yaml"), "--runs_dir", str(root / "runs")]
        return max(main([*words, "--name", name, "--seed_everything", str(i)]) for i, name in enumerate("ab"))

    assert in_child(train) == 0
    for name in "ab":
        (root / "runs" / name / "0" / "checkpoints" / "last.ckpt").rename(root / f"{name}.ckpt")
    return root


def label(world: Path, output: str, *flags: str, source: str = "pool") -> int:
    labeling.CHUNK_BATCHES = SMALL_CHUNKS
    words = ["pseudo-label", "--ckpt_path", str(world / "a.ckpt"), "--source", str(world / source)]
    return main([*words, "--output", output, "--batch_size", "4", *QUIET, *flags])


def test_labels_are_the_evaluated_networks_and_any_run_can_read_them(world):
    assert in_child(lambda: label(world, "labels.parquet")) == 0
    labels = read_labels(Path("labels.parquet"))
    assert len(labels.paths) == 23
    teacher = load_teacher(world / "a.ckpt")
    task, data = teacher.task, teacher.data
    task.load_pretrained = False
    task.configure_model()
    task.load_state_dict(torch.load(world / "a.ckpt", weights_only=True)["state_dict"])
    data.records["predict"], data.predict_source = pool_records(world / "pool"), str(world / "pool")
    task.eval()  # dropout of 0.5 and stochastic depth of 0.5 would show
    with torch.inference_mode():
        expected = torch.cat([task.predict(batch)["probabilities"] for batch in data.predict_dataloader()])
    assert np.abs(labels.probabilities - expected.numpy()).max() < 1e-5

    again = ClassificationData("labels.parquet", val_fraction=0.0, image_size=32, batch_size=8)
    again.setup("fit")
    assert again.class_names == ["ant", "bee"]
    assert len(again.records["train"]) == 23
    assert again.records["train"][0]["label"] == pytest.approx(labels.probabilities[0].tolist())
    table = pq.read_table("labels.parquet")
    assert table.column("pseudo_label")[0].as_py() == ["ant", "bee"][int(labels.probabilities[0].argmax())]


def test_two_ranks_label_exactly_as_one(world):
    assert in_child(lambda: label(world, "one.parquet")) == 0
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    assert in_ranks(lambda: label(world, "two.parquet", *two)) == [0, 0]
    assert pq.read_table("one.parquet").equals(pq.read_table("two.parquet"))
    assert sorted(p.name for p in Path().glob("*one*")) == ["one.parquet"]  # no parts are left
    idle = [*two, "--batch_size=32"]  # one chunk for two ranks
    assert in_ranks(lambda: label(world, "idle.parquet", *idle)) == [0, 0]
    assert len(read_labels(Path("idle.parquet")).paths) == 23


def test_a_killed_labelling_goes_on_and_a_finished_one_is_not_repeated(world, monkeypatch):
    assert in_child(lambda: label(world, "whole.parquet")) == 0

    def killed() -> int:
        written = []
        original = np.save
        monkeypatch.setattr(
            np, "save", lambda f, a: original(f, a) if len(written) < 2 and not written.append(1) else 1 / 0
        )
        return label(world, "cut.parquet")

    assert in_child(killed) != 0
    (parts,) = Path().glob(".cut.parquet.parts-*")
    done = sorted(parts.rglob("*.npy"))
    assert [p.name for p in done] == ["000000.npy", "000001.npy"]
    stamps = [p.stat().st_mtime_ns for p in done]

    def resumed() -> int:
        seen = []
        original = labeling.ChunkWriter.on_predict_batch_end
        labeling.ChunkWriter.on_predict_batch_end = lambda self, *a, **k: (seen.append(1), original(self, *a, **k))[1]
        status = label(world, "cut.parquet")
        assert len(seen) == 2  # of 6 batches of 4, the last two: chunks 0 and 1 were there
        assert [p.stat().st_mtime_ns for p in done if p.exists()] in ([], stamps)
        return status

    assert in_child(resumed) == 0
    assert pq.read_table("cut.parquet").equals(pq.read_table("whole.parquet"))
    before = Path("cut.parquet").stat().st_mtime_ns
    assert in_child(lambda: label(world, "cut.parquet")) == 0
    assert Path("cut.parquet").stat().st_mtime_ns == before


def test_several_teachers_are_averaged_and_the_worthwhile_labels_selected(world, capfd):
    assert in_child(lambda: label(world, "a.parquet")) == 0
    both = ["--teachers", f"[{world / 'b.ckpt'}]", "--selection.precision", "0.5", "--selection.balance", "true"]
    assert in_child(lambda: label(world, "both.parquet", *both)) == 0
    swap = ["--ckpt_path", str(world / "b.ckpt")]
    assert in_child(lambda: label(world, "b.parquet", *swap)) == 0
    a, b, mean = (read_labels(Path(f"{name}.parquet")).probabilities for name in ("a", "b", "both"))
    assert np.abs(a - b).max() > 1e-3
    assert np.allclose(mean, (a + b) / 2, atol=1e-6)
    account = json.loads(Path("selection.json").read_text())
    assert account["pool"] == 23
    assert len(read_list("selected.parquet").records) == account["images"]
    before = Path("selection.json").read_bytes()
    assert in_child(lambda: label(world, "a.parquet", "--selection.threshold", "0.5")) != 0
    assert "selection.json is the report of a selection from both.parquet" in capfd.readouterr().err
    assert Path("selection.json").read_bytes() == before


def test_a_broken_picture_of_the_pool_is_left_out_by_choice(world, tmp_path, capfd):
    (tmp_path / "pool").mkdir()
    for i, image in enumerate(sorted((world / "pool" / "x").iterdir())[:5]):
        (tmp_path / "pool" / f"{i}.jpg").write_bytes(image.read_bytes() if i else b"")
    flags = ["--source", str(tmp_path / "pool")]
    assert in_child(lambda: label(world, "labels.parquet", *flags)) != 0
    assert "0.jpg" in capfd.readouterr().err
    assert in_child(lambda: label(world, "labels.parquet", *flags, "--data.on_corrupt", "skip")) == 0
    assert len(read_labels(Path("labels.parquet")).paths) == 4


def test_lists_of_files_and_embedded_digits_are_pools(tmp_path):
    write_labels(Labels(["digits#3", "digits#5"], np.full((2, 2), 0.5, np.float32), ["0", "1"]), tmp_path / "x.parquet")
    records = pool_records(tmp_path / "x.parquet")
    assert [r["path"] for r in records] == ["digits#3", "digits#5"]
    assert records[0]["image"].shape == (8, 8, 1)
    listing = read_list(tmp_path / "x.parquet")
    assert (listing.records[1]["image"] == records[1]["image"]).all()
    (tmp_path / "bad.csv").write_text("path\ndigits#99999\n")
    with pytest.raises(ValueError, match="digits#99999"):
        pool_records(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "nowhere"], "The pool 'nowhere' does not exist"),
        (["--output", "labels.csv"], "--output labels.csv must end in .parquet"),
        (["--batch_size", "0"], "--batch_size is 0; it must be at least 1"),
        (["--teachers", "[nothing.ckpt]"], "teacher nothing.ckpt does not exist"),
        (["--ckpt_path", "nothing.ckpt"], "--ckpt_path nothing.ckpt does not exist"),
        (["--selection.threshold", "2"], "selection.threshold is 2"),
    ],
)
def test_wrong_flags_end_with_one_message(world, capfd, flags, message):
    assert in_child(lambda: label(world, "labels.parquet", *flags)) != 0
    assert message in capfd.readouterr().err


def test_the_benchmark_of_labelling_runs():
    from benchmarks import noisy_student

    settings, rows = noisy_student.run(1, images=40)
    assert settings["images"] == 40
    assert [row.name for row in rows] == ["pseudo-label", "bare loop", "ratio"]
    assert all(row.value > 0 for row in rows)
