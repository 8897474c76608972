"""Every YAML of configs/ is run: the command in its header, two steps, on generated data of the layout it names."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipelines.__main__ import main
from pipelines.commands.convert import main as convert
from pipelines.config.ready import run_name
from pipelines.noisy_student.kinds import boxes
from tests.conftest import in_child, write_images
from tests.ranks import in_ranks, meeting_point

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
OVERLAYS = {"ddp", "debug", "slurm", "wandb"}  # each has a test below
# How the data sets lie on the disk: images of each class in each split, and their size.
LAYOUTS = {
    "data/hymenoptera": ({f"{split}/{name}": 6 for split in ("train", "val") for name in ("ants", "bees")}, (40, 48)),
    "data/pictures": ({name: 20 for name in ("owl", "wren")}, (40, 48)),
    "data/waste": ({f"{split}/{k}": 6 for split in ("train", "val", "test") for k in ("glass", "wood")}, (40, 48)),
    "data/cifar10": ({f"{split}/{k}": 6 for split in ("train", "test") for k in range(10)}, (32, 32)),
}
# The same for pictures and masks: folders of the two, splits, size, class numbers in the masks.
MASKS = {
    "data/camvid": ("{split}", "{split}annot", ("train", "val", "test"), (120, 160), range(12)),
    "data/streets": ("images/{split}", "masks/{split}", ("train", "val"), (60, 80), range(3)),
}
# The same for boxes: classes, and the format of the annotations.
BOXES = {
    "data/objects": (["cat", "dog"], "yolo"),
    "data/bccd": (["RBC", "WBC", "Platelets"], "voc"),
    "data/nuclei": (["nucleus"], "coco"),
}
SMALL = ["--trainer.accelerator=cpu", "--data.num_workers=0", "--trainer.enable_progress_bar=false"]
TWO_STEPS = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def header_command(path: Path) -> list[str]:
    """The words of the first command in a config's header, without ``python -m pipelines``."""
    found = re.search(r"^#   (?:srun )?python -m pipelines (.+)$", path.read_text(), re.MULTILINE)
    assert found, f"{path} does not say how it is run"
    return found[1].split()


def make_data(config: dict) -> None:
    """Images below the working directory, of the layout of the set that the config names, and a file of weights."""
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    if config["data"]["class_path"] == "SegmentationData" and data["source"] != "digits":
        write_masks(Path(data["source"]), *MASKS[data["source"]])
    elif config["data"]["class_path"] == "DetectionData" and data["source"] != "digits":
        write_boxes(Path(data["source"]), *BOXES[data["source"]])
    elif data["source"] != "digits":
        assert data["source"] in LAYOUTS, f"add the layout of {data['source']} to this test"
        write_images(Path(data["source"]), *LAYOUTS[data["source"]])
    if isinstance(model.get("pretrained"), str):
        path = Path(model["pretrained"])
        path.parent.mkdir(parents=True)
        save_file(timm.create_model(model["backbone"]).state_dict(), path)


def write_masks(
    root: Path, images: str, masks: str, splits: tuple[str, ...], size: tuple[int, int], values: range
) -> None:
    """Six pictures a split and their masks, which hold all of the values."""
    rng = np.random.default_rng(0)
    for split in splits:
        folders = [root / pattern.format(split=split) for pattern in (images, masks)]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folders[0] / f"{i}.jpg")
            mask = rng.integers(values.start, values.stop, size).astype(np.uint8)
            Image.fromarray(mask).save(folders[1] / f"{i}.png")


def write_boxes(root: Path, classes: list[str], format: str) -> None:
    """Six pictures a split, with objects that are boxes, and masks that fill these."""
    rng = np.random.default_rng(0)
    first = root if format == "coco" else Path("as_coco")
    (first / "images").mkdir(parents=True)
    (first / "annotations").mkdir()
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    for split in ("train", "val", "test"):
        images, annotations = [], []
        for i in range(6):
            name = f"{split}_{i}.png"
            Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(first / "images" / name)
            images.append({"id": i, "file_name": name, "height": 60, "width": 80})
            for k in range(len(classes)):
                x, y = (int(v) for v in rng.integers(0, 40, 2))
                corners = [x, y, x + 20, y, x + 20, y + 15, x, y + 15]
                annotation = {"id": len(annotations) + 1, "image_id": i, "category_id": k + 1, "iscrowd": 0}
                annotations.append({**annotation, "bbox": [x, y, 20, 15], "area": 300, "segmentation": [corners]})
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (first / "annotations" / f"instances_{split}.json").write_text(text)
    if format != "coco":
        assert convert(["--source", str(first), "--to", format, "--output", str(root)]) == 0


def the_run(name: str) -> Path:
    (run,) = (Path("runs") / name).iterdir()
    return run


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


OWN_TESTS = ("overlays", "noisy_student", "ensemble")  # folders of configs that are no whole `fit`


@pytest.mark.parametrize("path", [f for f in FILES if f.parent.name not in OWN_TESTS], ids=name_of)
def test_config(path):
    config = yaml.safe_load(path.read_text())
    make_data(config)
    command = header_command(path)
    assert name_of(path) in command or str(path.name) in command
    shrink = [*SMALL, "--trainer.wandb.mode=off", "--data.batch_size=4"]
    shrink += TWO_STEPS if command[0] == "fit" else []
    size = config["data"]["init_args"].get("image_size", 224)
    shrink += ["--data.image_size=96"] if np.max(size) > 100 else []
    if config["data"]["init_args"]["source"] == "digits" and config["data"]["class_path"] != "ClassificationData":
        shrink += ["--data.num_scenes={train: 8, val: 4, test: 4}"]
    if config["model"]["init_args"].get("pretrained") is True:  # tests are offline, so the net may be a small one too
        assert timm.is_model_pretrained(config["model"]["init_args"]["backbone"])
        small = "test_convnext" if "convnext" in config["model"]["init_args"]["backbone"] else "test_resnet"
        shrink += ["--model.pretrained=false", f"--model.backbone={small}"]
    assert in_child(lambda: main([*command, *shrink])) == 0
    run = the_run(run_name(path))
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point())
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["data"]["init_args"]["source"] == config["data"]["init_args"]["source"]
    if command[0] == "fit":
        assert checkpoint["global_step"] >= 1
        assert math.isfinite(float(rows(run)[-1]["train/loss"]))


def without_weights(model: dict) -> dict:
    """The same model on a tiny backbone where it asks for a file of weights; the configs of `fit` above load one."""
    if not model["init_args"].get("pretrained"):
        return model
    tiny = {"backbone": "test_resnet", "backbone_args": None, "pretrained": False}
    return {**model, "init_args": {**model["init_args"], **tiny}}


LOOPS = [f for f in FILES if f.parent.name == "noisy_student" and "students" in yaml.safe_load(f.read_text())]


@pytest.mark.parametrize("path", LOOPS, ids=name_of)
def test_noisy_student(path):
    config = yaml.safe_load(path.read_text())
    source, dense = config["data"]["init_args"]["source"], config["data"]["class_path"] != "ClassificationData"
    short = {"trainer": {"max_epochs": 1, "check_val_every_n_epoch": 1}}
    less = {"teacher": {**config["teacher"], **short}, "students": [{**s, **short} for s in config["students"]]}
    for part in (less["teacher"], *less["students"]):
        part["model"] = without_weights(part["model"])
    make_data({"model": less["teacher"]["model"], "data": config["data"]})
    if "pool" in config:
        write_images(Path(config["pool"]), {".": 6}, seed=1)
    Path("less.yaml").write_text(yaml.safe_dump(less))
    command = header_command(path)
    assert name_of(path) in command
    shrink = ["--config=less.yaml", "--seeds=[0]", "--data.batch_size=4", "--controls=false", "--data.num_workers=0"]
    shrink += ["--trainer.accelerator=cpu", "--trainer.wandb.mode=off", "--trainer.limit_train_batches=2"]
    if dense and source != "digits":
        shrink += ["--labeled_images=2", "--data.batch_size=2", "--data.image_size=64", "--selection.threshold=0.001"]
    elif dense:
        shrink += ["--data.num_scenes={train: 24, val: 4, test: 4}"]
        shrink += ["--labeled_images=8", "--selection.threshold=0.001"]
    else:
        shrink += ["--labels_per_class=4"]
        shrink += ["--data.image_size=64"] if config["data"]["init_args"].get("image_size", 0) > 100 else []

    def work() -> int:
        # Scores of a detector that was hardly trained are about 0.01.
        boxes.LEAST_SCORE = boxes.IGNORE = 0.0
        return main([*command, *shrink])

    assert in_child(work) == 0
    root = Path("runs") / run_name(path)
    report = json.loads((root / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == [
        "teacher",
        *(f"student{i + 1}" for i, _ in enumerate(config["students"])),
    ]
    assert (root / "seed0" / "student1" / "student.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", [f for f in FILES if f.parent.name == "ensemble"], ids=name_of)
def test_ensemble(path):
    config = yaml.safe_load(path.read_text())
    make_data(config)
    command = header_command(path)
    assert name_of(path) in command
    shrink = [*SMALL, *TWO_STEPS[:2], "--trainer.wandb.mode=off", "--data.batch_size=4", "--members.count=2"]
    assert in_child(lambda: main([*command, *shrink])) == 0
    root = Path("runs") / f"{run_name(path)}-ensemble"
    assert len(json.loads((root / "ensemble.json").read_text())["members"]) == 2


def test_every_overlay_has_a_test():
    assert {f.stem for f in FILES if f.parent.name == "overlays"} == OVERLAYS


def test_debug():
    assert in_child(lambda: main([*header_command(CONFIGS / "overlays/debug.yaml"), *SMALL])) == 0
    run = the_run("quickstart")
    assert [int(row["step"]) for row in rows(run)] == list(range(8))
    assert not (run / "wandb").exists()


def test_wandb():
    command = header_command(CONFIGS / "overlays/wandb.yaml")
    assert in_child(lambda: main([*command, *SMALL, *TWO_STEPS])) == 0  # offline: conftest sets WANDB_MODE
    run = the_run("quickstart")
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    settings = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["wandb"]
    assert (settings["project"], settings["mode"], settings["table_rows"]) == ("vision", "auto", 1000)


def test_ddp():
    command = header_command(CONFIGS / "overlays/ddp.yaml")
    assert in_ranks(lambda: main([*command, *SMALL, *TWO_STEPS, "--trainer.wandb.mode=off"])) == [0, 0]
    assert_of_two_ranks(the_run("quickstart"))


def srun_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What srun sets for a task of a job on one node; where the tasks meet is ours, so that two tests do not."""
    return {
        **meeting_point(port),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": str(world_size),
        "SLURM_NTASKS_PER_NODE": str(world_size),
        "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def test_slurm():
    """Two tasks as srun starts them; the GPUs and their number are replaced, the rest of the overlay is as it is.

    A checkpoint of Lightning's own requeueing that lies in the working directory is not taken.
    """
    Path("hpc_ckpt_1.ckpt").write_text("somebody else's")
    here = ["--trainer.devices=2", "--trainer.num_nodes=1", "--trainer.wandb.mode=off"]
    command = [*header_command(CONFIGS / "overlays/slurm.yaml"), *SMALL, *TWO_STEPS, *here]
    assert in_ranks(lambda: main(command), environment=srun_environment) == [0, 0]
    run = the_run("quickstart")
    assert_of_two_ranks(run)
    # Requeued, the same command goes on in the same directory.
    longer = [*command, "--trainer.max_epochs=2"]
    assert in_ranks(lambda: main(longer), environment=srun_environment) == [0, 0]
    assert the_run("quickstart") == run
    assert [int(row["step"]) for row in rows(run)] == [1, 3]


def assert_of_two_ranks(run: Path) -> None:
    """Two processes that did not know of each other would have made two run directories; `the_run` allows one."""
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["devices"] in (2, "2")
    assert len(json.loads((run / "environment.json").read_text())) == 1
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
