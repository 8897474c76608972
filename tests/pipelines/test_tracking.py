"""What lies in W&B's offline run: overlays, tables, artifacts, groups; and that other loggers work as documented."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.splits import split_digest
from pipelines.__main__ import main
from pipelines.run.directory import write_config
from pipelines.run.tracking import Wandb, WandbRun, wandb_logger
from pipelines.run.wandb_evaluation import evaluation_logger
from pipelines.run.wandb_media import Overlaid, label_map, log_data, log_overlaid, log_table
from tests.conftest import in_child, offline_records

NAMES = ["ant", "bee"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


class Found:
    """What was logged into the folders of one run: values by key, the last one of each, and the artifacts."""

    def __init__(self, run: Path) -> None:
        self.values: dict[str, Any] = {}
        self.files: dict[str, Path] = {}
        self.artifacts: list[Any] = []
        self.runs: list[Any] = []
        for folder in sorted((run / "wandb").glob("offline-run-*")):
            for record in offline_records(next(folder.glob("*.wandb"))):
                kind = record.WhichOneof("record_type")
                if kind == "history":
                    row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                    self.values |= row
                elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                    self.artifacts.append(record.request.log_artifact.artifact)
                elif kind == "artifact":
                    self.artifacts.append(record.artifact)
                elif kind == "run":
                    self.runs.append(record.run)
            files = folder / "files"
            self.files |= {p.relative_to(files).as_posix(): p for p in files.rglob("*") if p.is_file()}

    def table(self, key: str) -> Any:
        """What the table's artifact holds; the file below ``media`` has no pictures."""
        name = f"{key}.table.json"
        (file,) = (c for a in self.artifacts for c in a.manifest.contents if c.path == name)
        return json.loads(Path(file.local_path).read_text())


def logger_of(directory: Path, **settings: Any) -> WandbRun:
    logger = wandb_logger(directory, Wandb("offline", "project", **settings), name="ants/0", run_id="abc123", config={})
    assert logger is not None
    return logger


def test_overlays_table_and_artifacts_lie_in_the_offline_run(tmp_path: Path) -> None:
    logger = logger_of(tmp_path, log_model="all", group="loop", job_type="teacher")
    image = np.full((20, 30, 3), 99, np.uint8)
    boxes = {"boxes": np.array([[1, 2, 11, 12.5], [0, 0, 1, 1]], np.float32), "labels": np.array([1, -1])}
    found = {**boxes, "scores": np.array([0.75, 0.0], np.float32)}
    mask = np.zeros((20, 30), np.uint8)
    mask[:5] = 255
    mask[5:9] = 1
    several = {"mask": np.stack([mask == 0, mask == 1]).astype(np.uint8)}
    larger = np.zeros((18, 34, 1), np.uint8)
    pictures = [Overlaid(image, boxes, found, "first"), Overlaid(image, {"mask": mask}, several), Overlaid(larger)]
    log_overlaid([logger], "val_overlays", pictures, NAMES, 3)
    log_table([logger], "table", ["picture", "path"], [[pictures[1], "a.png"], [None, "b.png"]], 3, NAMES)
    records = {"train": [{"path": "x/a.png"}], "val": [{"path": "x/b.png"}], "predict": []}
    data = SimpleNamespace(records=records, class_names=NAMES)
    log_data([logger], "ants", data)
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    callback = SimpleNamespace(
        save_top_k=1, monitor="val/x", mode="max", last_model_path="", best_model_path=str(tmp_path / "best.ckpt"),
        best_k_models={}, best_model_score=None, current_score=None, kth_best_model_path="",
    )  # fmt: skip
    logger.after_save_checkpoint(callback)  # type: ignore[arg-type]
    logger.finish()
    lies = Found(tmp_path)
    assert {(run.run_group, run.job_type) for run in lies.runs} == {("loop", "teacher")}
    values = lies.values
    assert (values["val_overlays.count"], values["val_overlays.captions"]) == (3, ["first", None, None])
    assert (values["val_overlays.height"], values["val_overlays.width"]) == (20, 34)  # one size for all
    box, *nothing = values["val_overlays.all_boxes"]
    assert nothing == [None, None]
    expected = {"position": {"minX": 1, "minY": 2, "maxX": 11, "maxY": 12.5}, "domain": "pixel", "class_id": 1}
    truth, prediction = (
        json.loads(lies.files[box[key]["path"]].read_text()) for key in ("ground_truth", "predictions")
    )
    assert truth["box_data"] == [expected | {"box_caption": "bee"}]
    assert prediction["box_data"] == [expected | {"box_caption": "bee 0.75", "scores": {"score": 0.75}}]
    assert truth["class_labels"] == {"0": "ant", "1": "bee"}
    nothing, masks, _ = values["val_overlays.all_masks"]
    assert nothing is None
    assert set(masks) == {"ground_truth", "predictions_0", "predictions_1"}  # the latter may overlap
    stored = {key: np.asarray(Image.open(lies.files[value["path"]])) for key, value in masks.items()}
    assert np.array_equal(stored["ground_truth"], np.pad(mask, [(0, 0), (0, 4)], constant_values=255)[:, :34])
    assert set(np.unique(stored["predictions_1"])) == {1, 2, 255}  # bee, no object, the canvas around it
    assert (values["table.ncols"], values["table.nrows"]) == (2, 2)
    (first, path), last = lies.table("table")["data"]
    assert (first["_type"], path, last) == ("image-file", "a.png", [None, "b.png"])
    assert set(first["masks"]) == {"ground_truth", "predictions_0", "predictions_1"}
    logged = {artifact.type: artifact for artifact in lies.artifacts if artifact.type in ("dataset", "model")}
    assert sorted(logged["model"].aliases) == ["best", "latest"]
    assert (logged["model"].name, logged["model"].manifest.contents[0].size) == ("model-abc123", len(b"weights"))
    facts = {"digest": split_digest(records), "images": {"train": 1, "val": 1}, "classes": NAMES}
    assert json.loads(logged["dataset"].metadata) == facts
    assert sorted(logged["dataset"].aliases) == sorted(["latest", facts["digest"]])


def test_objects_become_one_map_and_the_better_one_lies_on_top() -> None:
    masks = np.zeros((2, 3, 4), bool)
    masks[0, :2], masks[1, 1:] = True, True
    scores = np.array([0.9, 0.5])
    expected = np.array([[7] * 4, [7] * 4, [3] * 4])
    assert np.array_equal(label_map({"masks": masks, "labels": np.array([7, 3]), "scores": scores}, 9), expected)
    numbered = np.zeros((1, 3, 4), np.int16)
    numbered[0, 0, 1] = 2
    found = label_map({"masks": numbered, "labels": np.array([7, 3])}, 9)
    assert (found[0, 1], (found == 9).sum()) == (3, 11)


def test_a_picture_that_cannot_be_made_does_not_end_the_training(tmp_path: Path, capsys: Any) -> None:
    logger = logger_of(tmp_path)
    logger._open = lambda: SimpleNamespace(log=None)  # type: ignore[method-assign]
    log_overlaid([logger], "val_overlays", [Overlaid(np.zeros((2, 2, 7), np.uint8))], NAMES, 0)
    assert "W&B: lost" in capsys.readouterr().err


DETECTION = ["--config", "detection/digits", "--model.init_args.backbone=test_resnet"]
DETECTION += ["--data.init_args.num_scenes={train: 16, val: 8, test: 8}"]
SEGMENTATION = ["--config", "segmentation/digits", "--data.init_args.num_scenes={train: 16, val: 8, test: 8}"]
SHORT = ["--data.init_args.num_workers=0", "--data.init_args.batch_size=4", "--trainer.max_epochs=1", *QUIET]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [DETECTION, SEGMENTATION], ids=["boxes", "masks"])
def test_what_lies_in_the_run_of_a_training_and_of_its_test(flags: list[str]) -> None:
    """A training, then ``test`` of its checkpoint in a process of its own: two folders of one W&B run."""
    tracked = [
        "--trainer.wandb={log_model: best, project: mine, tags: [a], table_pictures: 3}",
        "--trainer.val_check_interval=1.0",
    ]
    assert in_child(lambda: main(["fit", *flags, *SHORT, *tracked, "--name", "run"])) == 0
    run = Path("runs/run/0")
    before = Found(run)
    task, metric = ("all_boxes", "map") if flags is DETECTION else ("all_masks", "miou")
    for key in ("val_overlays._type", f"val_overlays.{task}", "val_panels._type", "train_batch._type", f"val/{metric}"):
        assert key in before.values, sorted(before.values)
    assert all({"ground_truth", "predictions"} >= set(each) for each in before.values[f"val_overlays.{task}"])
    rows = before.table("val_predictions_table")
    assert (rows["columns"][0], len(rows["data"])) == ("picture", 8)
    assert [row[0] is not None for row in rows["data"]] == [True] * 3 + [False] * 5
    assert {a.type for a in before.artifacts} >= {"dataset", "model"}
    assert not any(key.startswith("test") for key in before.values)
    last = before.values["_step"]
    assert in_child(lambda: main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *QUIET])) == 0
    after = Found(run)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 2
    assert {(r.run_id, r.project, tuple(r.tags)) for r in after.runs if r.run_id} == {
        ((run / "wandb_id.txt").read_text().strip(), "mine", ("a",))
    }
    assert after.values["_step"] == last + 1
    for key in (f"test/{metric}", "test_overlays._type", "test_predictions_table._type"):
        assert key in after.values, [k for k in after.values if k.startswith("test")]
    measured = json.loads((run / "test.json").read_text())
    assert after.values[f"test/{metric}"] == pytest.approx(measured[f"test/{metric}"])


def test_a_run_without_w_and_b_gets_none_by_its_test(tmp_path: Path) -> None:
    write_config(tmp_path, {"trainer": {"wandb": {"mode": "offline", "project": "p", "new_key": 1}}})
    assert evaluation_logger(tmp_path, Wandb()) is None
    (tmp_path / "wandb").mkdir()
    logger = evaluation_logger(tmp_path, Wandb(table_rows=3))
    assert logger is not None
    assert (logger.settings.project, logger.settings.mode, logger.settings.table_rows) == ("p", "offline", 3)
    assert evaluation_logger(tmp_path, Wandb("off")) is None
    assert evaluation_logger(None, Wandb()) is None


DOCS = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
QUICK = ["--config", "quickstart", "--model.init_args.backbone=lenet5", *SHORT]
QUICK += ["--data.init_args.batch_size=256", "--trainer.log_every_n_steps=1"]


def yaml_blocks() -> list[dict[str, Any]]:
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)]


@pytest.mark.slow
def test_the_recipe_of_a_sweep_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """What W&B's agent does with it: the first value of each parameter as a flag, `key=value`."""
    sweep = yaml_blocks()[0]
    first = {k: v["value"] if "value" in v else v["values"][0] if "values" in v else v["min"] for k, v in
             sweep["parameters"].items()}  # fmt: skip
    words = [word for word in sweep["command"] if word not in ("${env}", "python", "-m", "${program}")]
    assert words.pop() == "${args}"
    args = [*words, *(f"--{key}={value}" for key, value in first.items()), *QUICK[2:], "--name", "swept"]
    assert in_child(lambda: main(args)) == 0
    lies = Found(Path("runs/swept/0"))
    assert sweep["metric"]["name"] in lies.values
    table = lies.table("val_predictions_table")
    assert table["columns"][:3] == ["picture", "path", "truth"]
    assert [row[0]["_type"] for row in table["data"][:32]] == ["image-file"] * 32
    config = yaml.safe_load(Path("runs/swept/0/config.yaml").read_text())
    assert config["model"]["init_args"]["optim"]["lr"] == first["model.init_args.optim.lr"]


@pytest.mark.slow
def test_tensorboard_as_documented() -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    command = re.search(r"pipelines (fit .*--trainer.logger TensorBoardLogger.*)", DOCS)
    assert command is not None
    assert in_child(lambda: main([*command[1].split(), *QUICK[2:], "--trainer.wandb.mode=off"])) == 0
    (folder,) = {path.parent for path in Path("runs/tensorboard").rglob("events.*")}
    found = events.EventAccumulator(str(folder))
    found.Reload()
    rows = list(csv.DictReader(open("runs/quickstart/0/metrics.csv")))  # noqa: SIM115
    expected = [float(row["val/accuracy"]) for row in rows if row["val/accuracy"]]
    assert [event.value for event in found.Scalars("val/accuracy")] == pytest.approx(expected)


@pytest.mark.slow
def test_mlflow_as_documented() -> None:
    mlflow = pytest.importorskip("mlflow")
    Path("mlflow.yaml").write_text(yaml.safe_dump(yaml_blocks()[1]))
    words = ["fit", *QUICK, "--config", "mlflow.yaml", "--name", "run"]
    assert in_child(lambda: main(words)) == 0
    assert not Path("runs/run/0/wandb").exists()
    client = mlflow.tracking.MlflowClient("sqlite:///mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    rows = list(csv.DictReader(open("runs/run/0/metrics.csv")))  # noqa: SIM115
    assert run.data.metrics["val/accuracy"] == pytest.approx(float(rows[-1]["val/accuracy"]))
    assert run.data.params["backbone"] == "lenet5"


@pytest.mark.slow
def test_a_loop_is_one_group_with_job_types() -> None:
    words = ["noisy-student", "--config", "noisy_student/digits", "--name", "loop", "--seeds=[0]", "--controls=false"]
    words += ["--teacher.trainer={max_epochs: 1}", "--trainer.wandb.project=p"]
    Path("short.yaml").write_text(
        yaml.safe_dump({"students": [{"model": {"class_path": "Classification", "init_args": {"backbone": "lenet5"}},
                                      "steps_per_epoch": 2, "trainer": {"max_epochs": 1}}]})
    )  # fmt: skip
    assert in_child(lambda: main([*words, "--config", "short.yaml"])) == 0
    found = {
        str(run.relative_to("runs/loop").parent): {(r.run_group, r.job_type, r.project) for r in Found(run).runs}
        for run in (path.parent for path in Path("runs/loop").rglob("wandb_id.txt"))
    }
    assert found == {
        "seed0/teacher": {("loop", "teacher", "p")},
        "seed0/student1": {("loop", "student", "p")},
        ".": {("loop", "summary", "p")},
    }
    assert not list(Path("runs/loop").rglob("val_images.npz"))  # the loop has a report of its own
