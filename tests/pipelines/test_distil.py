"""``distil``: one small net learns what a larger one, or several together, say of its training images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from datamodules.classification import ClassificationData
from datamodules.common.errors import UserError
from datamodules.detection import DetectionData
from pipelines.__main__ import main
from pipelines.noisy_student import data_stage
from pipelines.noisy_student.evaluation import evaluate_splits
from pipelines.noisy_student.kinds import boxes
from pipelines.noisy_student.kinds.images import read_labels
from pipelines.noisy_student.settings import Settings, StudentSettings, TeacherSettings
from pipelines.run.loading import Loaded
from pipelines.trainer import Trainer
from tasks import Classification
from tests.conftest import in_child

DIGITS = {"source": "digits", "in_chans": 1, "image_size": 32, "augment": {"preset": "none"}}
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
QUIET += ["--trainer.wandb.mode=off", "--trainer.max_epochs=1", "--trainer.report=false"]
SCENES = {"source": "digits", "num_scenes": {"train": 24, "val": 6, "test": 6}, "image_size": 64, "num_workers": 0}
STUDENTS = {
    "ClassificationData": ({"class_path": "Classification", "init_args": {"backbone": "lenet5"}}, DIGITS),
    "DetectionData": (
        {"class_path": "Detection", "init_args": {"detector": "yolo", "backbone": "test_resnet"}},
        SCENES,
    ),
    "SegmentationData": (
        {"class_path": "Segmentation", "init_args": {"architecture": "unet", "backbone": "test_resnet"}},
        SCENES,
    ),
}


def student(data: str, limit: int) -> list[str]:
    """Flags of a small net on generated data."""
    model, arguments = STUDENTS[data]
    config = {"model": model, "data": {"class_path": data, "init_args": arguments}}
    Path("student.yaml").write_text(yaml.safe_dump(config))
    return ["--config=student.yaml", *QUIET, f"--trainer.limit_train_batches={limit}"]


@pytest.mark.slow
@pytest.mark.parametrize("data", list(STUDENTS))
def test_two_teachers_and_a_student_of_every_task(data: str) -> None:
    words = student(data, 12)
    teachers = []
    for seed in (1, 2):
        assert in_child(lambda seed=seed: main(["fit", *words, f"--seed_everything={seed}", f"--name=t{seed}"])) == 0
        teachers.append(f"runs/t{seed}/0/checkpoints/best.ckpt")
    least = [] if data == "ClassificationData" else ["--threshold=0.001"]
    command = ["distil", *words, f"--teacher=[{','.join(teachers)}]", *least]

    def work() -> int:
        boxes.LEAST_SCORE = boxes.IGNORE = 0.0  # scores of a detector that was hardly trained are about 0.01
        return main(command)

    assert in_child(work) == 0
    root = Path("runs/student-distil")
    report = json.loads((root / "report.json").read_text())
    assert report["title"] == "What the teacher was worth to the student"
    assert [row["name"] for row in report["rows"]] == ["teacher", "student1", "labels_only"]
    assert [row["name"] for row in report["differences"]] == ["distillation", "student", "student alone"]
    stages = sorted(path.name for path in (root / "seed0").iterdir() if path.is_dir())
    assert stages == ["data", "labels1", "labels_only", "relabelled", "selection1", "student1", "teacher"]
    split = json.loads((root / "seed0" / "data" / "split.json").read_text())
    assert report["pool"] == len(split["train"]) == report["labelled"]
    assert report["seconds"][0].keys() >= {"student1", "labels_only"}
    for teacher in ("teacher.ckpt", "teacher1.ckpt"):
        assert (root / "seed0" / "teacher" / teacher).is_file()
    if data == "ClassificationData":
        means_are_taught(root / "seed0" / "labels1" / "labels.parquet", teachers)
    if data == "SegmentationData":
        saved = yaml.safe_load((root / "seed0" / "student1" / "config.yaml").read_text())
        assert saved["model"]["init_args"]["labels"] == "soft"


def means_are_taught(file: Path, teachers: list[str]) -> None:
    """The labels are the mean of the teachers' probabilities for the training images."""
    from pipelines.inference import load_predictor

    labels = read_labels(file)
    predictors = [load_predictor(path, device="cpu") for path in teachers]
    data = predictors[0].data
    data.setup("fit")
    records = {record["path"]: record for record in data.records["train"]}
    assert sorted(labels.paths) == sorted(records)
    batch = predictors[0].batch([records[path] for path in labels.paths[:8]])
    each = torch.stack([predictor.predict(batch)["probabilities"] for predictor in predictors])
    assert labels.probabilities[:8] == pytest.approx(each.mean(0).numpy(), abs=1e-5)


def test_the_pool_is_the_training_images(tmp_path: Path) -> None:
    data = {"class_path": "datamodules.ClassificationData", "init_args": {**DIGITS, "num_workers": 0}}
    settings = Settings(data=data, teacher=TeacherSettings(), students=[StudentSettings(model={})], distil=True)  # type: ignore[arg-type]
    read = data_stage.read_data(settings)
    data_stage.make_data(tmp_path, settings, read, seed=0)
    truth = data_stage.read_truth(tmp_path / "truth.json")
    assert truth["pool"] == truth["train"]
    split = json.loads((tmp_path / "split.json").read_text())
    assert (len(split["train"]), len(split["pool"])) == (len(read.records["train"]), 0)
    assert data_stage.data_settings(settings, read, 0) != data_stage.data_settings(
        replace(settings, distil=False), read, 0
    )
    assert "distil" not in data_stage.data_settings(replace(settings, distil=False), read, 0)  # for older runs
    assert np.all([isinstance(label, int) for label in truth["pool"]])


def test_images_that_a_split_file_leaves_out_stay_so(tmp_path: Path) -> None:
    paths = [f"digits#{i}" for i in range(1797)]
    split = {"train": paths[:100], "val": paths[100:150], "test": paths[150:200], "unused": paths[200:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    arguments = {**DIGITS, "num_workers": 0, "split_file": str(tmp_path / "split.json")}
    data = {"class_path": "datamodules.ClassificationData", "init_args": arguments}
    settings = Settings(data=data, teacher=TeacherSettings(), students=[StudentSettings(model={})], distil=True)  # type: ignore[arg-type]
    read = data_stage.read_data(settings)
    (tmp_path / "stage").mkdir()
    data_stage.make_data(tmp_path / "stage", settings, read, seed=0)
    written = json.loads((tmp_path / "stage" / "split.json").read_text())
    assert sorted(written["left_out"]) == sorted(split["unused"])
    again = ClassificationData("digits", in_chans=1, split_file=str(tmp_path / "stage" / "split.json"))
    again.setup("fit")
    assert {name: len(own) for name, own in again.records.items()} == {"train": 100, "val": 50, "test": 50}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher=nothere.ckpt"], "teacher.checkpoint nothere.ckpt does not exist"),
        (["--teacher=[student.yaml,nothere.ckpt]"], "teacher.checkpoint nothere.ckpt does not exist"),
        (["--teacher=[]"], "teacher needs either model: (it is trained) or checkpoint: FILE"),
        (["--teacher=student.yaml", "--threshold=2"], "threshold is 2.0; it is a probability, 0 to 1"),
        (["--teacher=student.yaml", "--pool=nowhere"], "pool 'nowhere' does not exist"),
        (["--teacher=student.yaml", "--temperature=0"], "--temperature is 0.0; it must be above 0"),
        ([], "--teacher is missing; distil needs it"),
    ],
)
def test_what_cannot_be_taught(words: list[str], message: str, capsys: Any) -> None:
    assert main(["distil", *student("ClassificationData", 1), *words]) != 0
    assert message in capsys.readouterr().err


def test_a_teacher_of_another_task_is_refused(tmp_path: Path) -> None:
    photos, scenes = ClassificationData("digits", in_chans=1), DetectionData("digits")
    teacher = Loaded(Path("a.ckpt"), Classification("lenet5"), photos, {})
    with pytest.raises(UserError, match=r"a.ckpt is a Classification, but the data is DetectionData: give a"):
        evaluate_splits(Trainer(logger=False), [teacher], scenes, tmp_path)
