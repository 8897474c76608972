"""What people get wrong, and the one message that each mistake ends in, before anything is written.

The messages are those of the tables in docs/mistakes.md, where ... stands for any text and WORK for the working
directory. A new case fails until its row, which the failure shows, is in one of the tables.
"""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper

from datamodules.decoding.headers import ImageError
from datamodules.decoding.images import read_image
from pipelines import cli
from pipelines.__main__ import main
from tests.conftest import in_child, write_images
from tests.detection_mistakes import CASES as DETECTION_CASES
from tests.detection_mistakes import CONFIG as DETECTION
from tests.detection_mistakes import write_boxes
from tests.noisy_mistakes import CASES as NOISY_CASES
from tests.noisy_mistakes import CONFIGS as NOISY

DOCS = Path(__file__).parents[2] / "docs" / "mistakes.md"
CONFIG = """\
model:
  class_path: Classification
  init_args:
    backbone: test_resnet
    optim: {lr: 0.01}
data:
  class_path: ClassificationData
  init_args:
    source: data/good
    image_size: 32
    batch_size: 4
    num_workers: 0
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {mode: "off"}
"""


SEGMENTATION = """\
model:
  class_path: Segmentation
  init_args:
    architecture: unet
    backbone: test_resnet
data:
  class_path: SegmentationData
  init_args:
    source: data/masks
    class_names: [sky, road, car]
    image_size: 32
    batch_size: 4
    num_workers: 0
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {mode: "off"}
"""


class Case(NamedTuple):
    """A mistake: a line of the config that is replaced by another, or a whole config, and flags."""

    mistake: str
    old: str = ""
    new: str = ""
    flags: str = ""
    command: str = "fit"
    status: int = 2
    config: str | None = CONFIG


def flag(mistake: str, flags: str, **more) -> Case:
    return Case(mistake, flags=flags, **more)


def masks(mistake: str, old: str, new: str, status: int = 1, **more) -> Case:
    return Case(mistake, old, new, status=status, config=SEGMENTATION, **more)


def data(mistake: str, path: str, status: int = 1, **more) -> Case:
    return Case(mistake, "source: data/good", f"source: {path}", status=status, **more)


CALLBACK = "max_epochs: 1\n  callbacks: [{{class_path: {}, init_args: {{monitor: val/loss, {}}}}}]"
EPOCHS, LR, SIZE = "max_epochs: 1", "optim: {lr: 0.01}", "image_size: 32"
NET = "backbone: test_resnet"

VIT = "--model.backbone test_vit"
MASKS = "masks: masks/{split}/{stem}.png"
TWO_COLORS = "{sky: [0, 0, 0], road: [0, 255, 0]}"
THREE_COLORS = "{sky: [0, 0, 0], road: [0, 255, 0], cra: [255, 0, 0]}"
CASES = [
    # Keys.
    Case("misspelt key, top level", "trainer:", "trainr:"),
    Case("misspelt key, model", NET, "backbon: test_resnet"),
    Case("misspelt key, optimiser", LR, "optim: {lrr: 0.01}"),
    Case("misspelt key, data", "batch_size: 4", "batchsize: 4"),
    Case("misspelt key, augmentation", SIZE, "augment: {preste: light}"),
    Case("misspelt key, trainer", EPOCHS, "max_epoch: 1"),
    Case("misspelt key, W&B", '{mode: "off"}', '{mod: "off"}'),
    Case("misspelt argument of a callback", EPOCHS, CALLBACK.format("EarlyStopping", "patiens: 3")),
    Case("key in the wrong place", NET, "schedule: cosine"),
    Case("arguments without init_args", f"  init_args:\n    {NET}\n    {LR}\n", f"  {NET}\n"),
    Case("misspelt init_args", "init_args:\n    backbone", "init_arg:\n    backbone"),
    Case("key given twice", LR, "optim: {lr: 0.01}\n    optim: {lr: 0.1}"),
    flag("misspelt key in a second config", "--config data/overlay.yaml"),
    # Flags.
    flag("misspelt flag, top level", "--foo 1"),
    flag("misspelt flag, model", "--model.backbon resnet18"),
    flag("misspelt flag, optimiser", "--model.optim.lrr 0.1"),
    flag("misspelt flag, data", "--data.batchsize 8"),
    flag("abbreviated flag", "--trainer.max_epoch 3"),
    flag("flag without its group", "--batch_size 8"),
    flag("flag without a value", "--data.source"),
    flag("flag of another tool", "--epochs 3"),
    flag("argument of another tool", "imgsz=32"),
    flag("config without --config", "config.yaml", config=None),
    # Values.
    Case("text for a number", LR, "optim: {lr: abc}"),
    Case("text for a whole number", "batch_size: 4", "batch_size: x"),
    flag("text for a number, as a flag", "--model.optim.lr abc"),
    Case("wrong word for the schedule", LR, "optim: {schedule: cosin}"),
    Case("wrong word for the augmentation", SIZE, "augment: {preset: lightt}"),
    Case("a bare off", '{mode: "off"}', "{mode: off}"),
    Case("wrong type of a callback's argument", EPOCHS, CALLBACK.format("EarlyStopping", "patience: x")),
    Case("one value for a group", LR, "optim: 0.01"),
    Case("value out of range", LR, "optim: {lr: -1}"),
    flag("EMA decay out of range", "--trainer.ema_decay 2"),
    Case("metric that is not logged", EPOCHS, CALLBACK.format("EarlyStopping", "patience: 3").replace("loss", "acc")),
    Case("value that Lightning refuses", EPOCHS, CALLBACK.format("EarlyStopping", "mode: low")),
    # Names.
    Case("unknown task", "class_path: Classification\n", "class_path: Classificatio\n"),
    Case("unknown datamodule", "class_path: ClassificationData", "class_path: ClassificatonData"),
    Case("unknown callback", EPOCHS, CALLBACK.format("EarlyStoping", "patience: 3")),
    Case("unknown net", NET, "backbone: resnet81"),
    Case("unknown weights of a net", NET, "backbone: resnet18.a1_in2k"),
    Case("unknown optimiser", LR, "optim: {name: adamww}"),
    Case("unknown argument of the optimiser", LR, "optim: {opt_args: {beta: 0.9}}"),
    flag("unknown command", "", command="fitt"),
    # Files.
    flag("no such config", "--config nothere.yaml"),
    Case("broken YAML", config="model: {class_path: Classification\ndata: x\n"),
    Case("YAML that is a list", config="- model\n- data\n"),
    Case("no model", config=CONFIG[CONFIG.index("data:") :]),
    Case("no data", config=CONFIG[: CONFIG.index("data:")] + CONFIG[CONFIG.index("trainer:") :]),
    Case("neither config nor flags", config=None),
    # Settings that do not go together.
    Case("number of classes differs from the data's", LR, "num_classes: 7"),
    Case("class weights of another number", LR, "class_weights: [1, 2, 3]"),
    Case("batch larger than the training set", "batch_size: 4", "batch_size: 64"),
    Case("exponent of a loss that is not used", LR, "focal_gamma: 3"),
    Case("crop of an image that is not cropped", SIZE, "resize: stretch\n    crop_pct: 0.9"),
    Case("mixup with an odd batch", "batch_size: 4", "batch_size: 3", flags="--model.mixup 0.2"),
    Case("image size that the patches do not divide", SIZE, "image_size: 30", flags="--model.backbone test_vit"),
    Case("drop path for a net without it", NET, "backbone: lenet5\n    drop_path_rate: 0.1"),
    Case(
        "cache: tensor with other transforms",
        SIZE,
        "image_size: 32\n    cache: tensor",
        flags="--data.augment.preset strong",
    ),
    Case("columns of a folder", SIZE, "columns: {label: name}"),
    Case(
        "plateau without validation",
        LR,
        "optim: {schedule: plateau}",
        flags="--data.source data/train_only --data.val_fraction 0",
    ),
    Case("schedule without an end", EPOCHS, "max_epochs: -1"),
    Case("Normalize among the transforms", SIZE, "augment: {transforms: [{Normalize: {}}]}"),
    Case("unknown transform", SIZE, "augment: {transforms: [{HorizontalFlop: {p: 0.5}}]}"),
    Case("unknown argument of a transform", SIZE, "augment: {transforms: [{HorizontalFlip: {prob: 0.5}}]}"),
    # Data.
    data("no such data", "data/nothere", status=2),
    data("empty folder", "data/empty"),
    data("empty class folder", "data/empty_class"),
    data("class of val missing in train", "data/strange_class"),
    data("corrupt image", "data/corrupt"),
    data("web page named .jpg", "data/html"),
    data("images missing from a list", "data/missing.csv"),
    data("list without the column", "data/column.csv"),
    data("empty label in a list", "data/label.csv"),
    data("arrays under other keys", "data/keys.npz"),
    data("a compressed tar archive", "data/packed.tar.gz"),
    data("a tar archive that was cut off", "data/cut.tar"),
    Case("picture of more pixels than max_pixels", SIZE, "image_size: 32\n    max_pixels: 1000", status=1),
    Case("splits of a file that is not there", SIZE, "image_size: 32\n    split_file: data/nothere.json"),
    Case("splits of a damaged file", SIZE, "image_size: 32\n    split_file: data/damaged.json", status=1),
    Case("splits of other pictures", SIZE, "image_size: 32\n    split_file: data/other.json"),
    Case("weights of a file that is not there", SIZE, "image_size: 32\n    weight_file: data/nothere.json"),
    flag("test without a test split", "--ckpt_path data/good.ckpt --data.test_fraction 0", command="test", status=1),
    # Weights and checkpoints.
    Case("no such weights", NET, NET + "\n    pretrained: data/nothere.pth"),
    Case("weights of another net", NET, NET + "\n    pretrained: data/vit.pth"),
    Case("checkpoint of another backbone", NET, "backbone: test_vit\n    pretrained: data/good.ckpt"),
    flag("--ckpt_path and --resume", "--ckpt_path data/good.ckpt --resume auto"),
    flag("resume what is not there", "--resume runs/config/3"),
    flag("test before fit", "", command="test"),
    flag("no such checkpoint", "--ckpt_path data/nothere.ckpt"),
    flag("no such checkpoint and no config", "--ckpt_path data/nothere.ckpt", command="predict", config=None),
    flag("file that is no checkpoint", "--ckpt_path data/good/train/ant/000.jpg", command="validate", status=1),
    flag(
        "file that is no checkpoint, no config",
        "--ckpt_path data/good/train/ant/000.jpg",
        command="test",
        config=None,
        status=1,
    ),
    flag("weights in place of a checkpoint", "--ckpt_path data/vit.pth"),
    data("checkpoint of another number of classes", "data/three", status=2, flags="--ckpt_path data/good.ckpt"),
    Case(
        "checkpoint of another net", NET, "backbone: test_vit", flags="--ckpt_path data/good.ckpt", command="validate"
    ),
    flag(
        "data of other classes for a checkpoint's config",
        "--ckpt_path data/good.ckpt --data.class_names null --data.source data/three",
        command="validate",
        config=None,
    ),
    flag("nothing to predict with", "--source data/good", command="predict", config=None),
    flag(
        "predict a folder that is not there",
        "--ckpt_path data/good.ckpt --source data/nothere",
        command="predict",
        config=None,
    ),
    flag(
        "predict pictures of the web",
        "--ckpt_path data/good.ckpt --source https://example.com/x.jpg",
        command="predict",
        config=None,
        status=2,
    ),
    flag("predict a camera", "--ckpt_path data/good.ckpt --source 0", command="predict", config=None, status=2),
    flag(
        "pattern that matches no picture",
        "--ckpt_path data/good.ckpt --source data/good/*.gif",
        command="predict",
        config=None,
        status=2,
    ),
    flag(
        "formats of boxes for a classifier",
        "--ckpt_path data/good.ckpt --source data/good --box_formats [yolo]",
        command="predict",
        config=None,
    ),
    flag(
        "predict an empty folder",
        "--ckpt_path data/good.ckpt --source data/empty",
        command="predict",
        config=None,
        status=1,
    ),
    # Several checkpoints, and what is made of one.
    flag("train several checkpoints", "--ckpt_path [data/good.ckpt,data/good.ckpt]"),
    flag("unknown axis of an export", "--ckpt_path data/good.ckpt --dynamic height", command="export", config=None),
    flag("boxes' argument for a classifier", "--ckpt_path data/good.ckpt --nms outside", command="export", config=None),
    flag(
        "verify a file that is not there",
        "--ckpt_path data/good.ckpt --model data/nothere.onnx",
        command="verify",
        config=None,
    ),
    flag("report on what is no run", "data/good", command="report", config=None, status=1),
    flag("compare one run", "data/good", command="compare", config=None, status=1),
    flag("compare what are no runs", "data/good data/three", command="compare", config=None, status=1),
    flag("one member", "--members.count 1", command="ensemble"),
    flag("misspelt kind of members", "--members.by baging", command="ensemble"),
    flag("networks of members by seed", "--members.backbones [resnet18,resnet34]", command="ensemble"),
    flag("cycles that do not divide the epochs", "--members.by snapshot", command="ensemble"),
    flag(
        "a soup of different networks",
        "--members.by backbone --members.backbones [test_resnet,test_vit] --combine [soup]",
        command="ensemble",
    ),
    masks("boosted masks", EPOCHS, EPOCHS, 2, flags="--members.by boosting", command="ensemble"),
    masks("votes of masks", EPOCHS, EPOCHS, 2, flags="--combine [vote]", command="ensemble"),
    flag("null for views", "--model.tta null"),
    flag(
        "members of two sorts of count",
        "--members.by backbone --members.count 3 --members.backbones [lenet5,test_vit]",
        command="ensemble",
    ),
    flag("shrinkage of members by seed", "--members.shrinkage 0.5", command="ensemble"),
    flag(
        "misspelt network of a member",
        "--members.by backbone --members.backbones [test_resnet,test_vitt]",
        command="ensemble",
    ),
    flag("members of an ensemble for fit", "--members.count 3"),
    flag("launcher that is not there", "--launch nosuchprogram", command="ensemble"),
    flag("members side by side in one process", "--at_once 2", command="ensemble"),
    data("an ensemble without test images", "data/train_only", command="ensemble"),
    flag("launcher that is none, in a config", "--config data/launch.yaml", command="ensemble"),
    flag("no such teacher", "--teacher data/nothere.ckpt", command="distil", status=1),
    # Segmentation: data and settings.
    masks("value outside the classes", "[sky, road, car]", "[sky, road]"),
    masks("ignored value not named", "image_size: 32", "ignore_values: []"),
    masks("masks that are not binary", "image_size: 32", "mask_format: binary", status=2),
    masks("masks of colours without a table", "data/masks", "data/colors", status=2),
    masks(
        "colour that is not in the table",
        "data/masks",
        f"data/colors\n    colors: {TWO_COLORS}",
        flags="--data.class_names [sky,road]",
    ),
    masks("colour of no class", "data/masks", f"data/colors\n    colors: {THREE_COLORS}", status=2),
    masks("masks without images", "image_size: 32", 'masks: "masks/{split}/{stem}.png"', status=2),
    masks(
        "pattern that matches nothing",
        "image_size: 32",
        f"images: images/{{split}}/{{stem}}.gif\n    {MASKS}",
        status=2,
    ),
    masks("pattern without its stem", "image_size: 32", f"images: images/{{split}}.png\n    {MASKS}", status=2),
    masks("two classes of one value", "image_size: 32", "class_values: {sky: 0, road: 1, car: 1}", status=2),
    masks("mask of another size", "data/masks", "data/mask_size"),
    masks("mask turned by 90 degrees", "data/masks", "data/mask_turned"),
    masks("image without a mask", "data/masks", "data/mask_missing"),
    masks("no known layout", "data/masks", "data/good"),
    masks("tiles without the own size", "image_size: 32", "tile: 64\n    resize: letterbox", status=2),
    masks("tile off the grid", "image_size: 32", "tile: 100", status=2),
    masks("tensor cache for masks", "image_size: 32", "cache: tensor", status=2),
    masks("several labels in index masks", "image_size: 32", "multi_label: true\n    mask_format: index", status=2),
    masks("batch of pictures of different size", "data/masks", "data/mask_sizes\n    eval_batch_size: 2", status=2),
    masks("crop of another kind", "image_size: 32", "augment: {crop: pad, scale_jitter: [0.5, 1]}", status=2),
    masks("scale jitter the wrong way round", "image_size: 32", "augment: {scale_jitter: [2, 0.5]}", status=2),
    # Segmentation: the model.
    masks("unknown architecture", "architecture: unet", "architecture: unett", status=2),
    masks("encoder that does not fit", "architecture: unet", "architecture: deeplabv3plus", flags=VIT, status=2),
    masks("SegNet on another net than a VGG", "architecture: unet", "architecture: segnet", status=2),
    masks("unknown argument of the decoder", NET, f"{NET}\n    decoder_args: {{decoder_channel: 64}}", status=2),
    masks("unknown loss", NET, f"{NET}\n    losses: {{dise: 1}}", status=2),
    masks("losses without weight", NET, f"{NET}\n    losses: {{dice: 0}}", status=2),
    masks("smoothing that no loss uses", NET, f"{NET}\n    losses: {{dice: 1}}\n    label_smoothing: 0.1", status=2),
    masks("weight that no loss uses", NET, f"{NET}\n    tversky_alpha: 0.5", status=2),
    masks("scale of a view out of range", NET, f"{NET}\n    tta_scales: [40]", status=2),
    # Detection.
    *(Case(m, old, new, status=status, config=DETECTION) for m, old, new, status in DETECTION_CASES),
    # Noisy student.
    *(Case(m, old, new, command="noisy-student", config=config) for m, config, old, new in NOISY_CASES),
]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """Good and bad data, and a checkpoint of two classes."""
    import timm

    root = tmp_path_factory.mktemp("mistakes")
    counts = {"train/ant": 4, "train/bee": 4, "val/ant": 2, "val/bee": 2}
    size = (32, 32)
    for name in ("good", "corrupt", "html", "strange_class", "empty_class"):
        write_images(root / name, counts, size)
    write_images(root / "three", {**counts, "train/fly": 4, "val/fly": 2}, size)
    write_images(root / "train_only", {"ant": 4, "bee": 4}, size)
    write_images(root / "strange_class", {"val/beee": 1}, size)
    (root / "empty_class" / "train" / "cat").mkdir()
    (root / "empty").mkdir()
    (root / "overlay.yaml").write_text("trainer:\n  devicess: 2\n")
    (root / "launch.yaml").write_text("launch: sh start.sh\n")
    image = root / "corrupt" / "train" / "bee" / "001.jpg"
    image.write_bytes(image.read_bytes()[:100])
    (root / "html" / "train" / "ant" / "000.jpg").write_text("<html><body>404 Not Found</body></html>")
    (root / "missing.csv").write_text("path,label\ngood/train/ant/000.jpg,ant\ngood/train/ant/999.jpg,ant\n")
    (root / "column.csv").write_text("path,lable\ngood/train/ant/000.jpg,ant\n")
    (root / "label.csv").write_text("path,label\ngood/train/ant/000.jpg,ant\ngood/train/bee/000.jpg,\n")
    (root / "damaged.json").write_text('{"train": ["data/good/tr')
    (root / "other.json").write_text('{"train": [], "val": []}')
    np.savez(root / "keys.npz", pictures=np.zeros((4, 8, 8), np.uint8), targets=np.zeros(4, int))
    (root / "packed.tar.gz").write_bytes(b"")
    with tarfile.open(root / "cut.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(root / "label.csv", "1.cls")
    (root / "cut.tar").write_bytes((root / "cut.tar").read_bytes()[:1024])
    torch.save(timm.create_model("test_vit").state_dict(), root / "vit.pth")

    write_masks(root)
    write_boxes(root)

    def train() -> int:
        os.chdir(root)
        Path("data").symlink_to(root)
        Path("config.yaml").write_text(CONFIG)
        return cli.main(["fit", "--config", "config.yaml"])

    assert in_child(train) == 0
    (root / "runs" / "config" / "0" / "checkpoints" / "last.ckpt").rename(root / "good.ckpt")
    return root


def write_masks(root: Path) -> None:
    """Folders of pictures and masks of three classes, each with something wrong, but for the first."""
    rng = np.random.default_rng(0)
    colors = np.zeros((256, 3), np.uint8)
    colors[[1, 2]] = [[0, 255, 0], [255, 0, 0]]
    for name in ("masks", "colors", "mask_size", "mask_turned", "mask_missing", "mask_sizes"):
        for split, count in (("train", 4), ("val", 2)):
            for i in range(count):
                height, width = (40, 48) if name != "mask_sizes" or i % 2 else (32, 36)
                mask = rng.integers(0, 3, (height, width)).astype(np.uint8)
                mask[0] = 0 if name == "colors" else 255
                if i == 0 and split == "train":
                    mask = {"mask_size": mask[:30], "mask_turned": mask.T}.get(name, mask)
                files = [root / name / folder / split / f"{i}.png" for folder in ("images", "masks")]
                for file in files:
                    file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(files[0])
                Image.fromarray(colors[mask] if name == "colors" else mask).save(files[1])
    (root / "mask_missing" / "masks" / "train" / "2.png").unlink()


def row(case: Case, message: str) -> str:
    """The line of the docs' table."""
    written = [case.command if case.command != "fit" else "", case.new, case.flags]
    if case.config not in (None, CONFIG, SEGMENTATION, DETECTION, *NOISY):
        written.append(str(case.config))
    shown = " ".join(" ".join(written).replace(EPOCHS + "\n", "").split())
    return f"| {case.mistake} | {f'`{shown}`' if shown else ''} | {message.replace(chr(10), '<br>')} |"


def documented() -> dict[str, str]:
    """The rows of the tables, by mistake."""
    lines = DOCS.read_text(encoding="utf-8").splitlines() if DOCS.exists() else []
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| Mistake", "| ---"))]
    return {line.split(" | ")[0].removeprefix("| "): line for line in rows}


def matches(text: str, pattern: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), text) is not None


@pytest.mark.parametrize("case", CASES, ids=[case.mistake for case in CASES])
def test_mistake(case: Case, material, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # a run sets it; it is put back as it was
    Path("data").symlink_to(material)
    words = [case.command]
    if case.config is not None:
        assert case.old in case.config
        Path("config.yaml").write_text(case.config.replace(case.old, case.new, 1))
        words += ["--config", "config.yaml"]
    status = main([*words, *case.flags.split()])
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    message = errors[errors.index("error: ") + len("error: ") :].strip().replace(str(tmp_path), "WORK")
    found = row(case, message)
    assert matches(found, documented().get(case.mistake, "")), found
    assert status == case.status
    assert not Path("runs").exists()


def test_the_docs_have_no_other_mistakes():
    assert list(documented()) == [case.mistake for case in CASES]


def test_an_error_in_a_loaders_worker_is_told_as_any_other(tmp_path):
    Path("bad.jpg").write_bytes(b"no pixels")
    with pytest.raises(ImageError) as plain:
        read_image("bad.jpg")
    wrapper = ExceptionWrapper((plain.type, plain.value, plain.tb), "in DataLoader worker process 0")
    with pytest.raises(ImageError) as raised:
        wrapper.reraise()
    assert str(raised.value).startswith("Caught ImageError")
    assert cli.reason_of(raised.value) == str(plain.value)
    assert cli.reason_of(KeyError("a bug is no message")) is None
