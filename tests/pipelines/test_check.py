"""The command `check`: table, JSON and exit status, of a source and of a config."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ClassificationData, DetectionData, SegmentationData
from datamodules.checking.findings import Finding
from pipelines.__main__ import main
from pipelines.commands.label_errors import _of_boxes, _of_classes, _of_pixels
from pipelines.outputs.check_page import write_page
from tests.conftest import write_images


@pytest.fixture
def source(tmp_path):
    """A training picture that is a validation picture, too, and a nearly black one."""
    root = write_images(tmp_path / "pictures", {"train/ant": 6, "train/bee": 6, "val/ant": 2, "val/bee": 2})
    (root / "val/ant/000.jpg").write_bytes((root / "train/ant/001.jpg").read_bytes())
    Image.fromarray(np.full((40, 48, 3), 3, np.uint8)).save(root / "train/bee/dark.png")
    return root


def test_of_a_source(source, capsys):
    assert main(["check", str(source), "--task", "classification", "--data.test_fraction", "0"]) == 1
    out, err = capsys.readouterr()
    assert "train 13, val 4 images, 2 classes" in out
    assert "error    duplicate-split" in out
    assert "val/ant/000.jpg: the same file as train/ant/001.jpg (train)" in out
    assert "1 finding(s) are as bad as --fail_on error or worse" in err
    written = json.loads((source.parent / "check/check.json").read_text())
    assert written["images"] == {"train": 13, "val": 4}
    assert written["classes"] == ["ant", "bee"]
    kinds = {found["kind"]: found for found in written["findings"]}
    assert list(kinds)[:2] == ["duplicate-split", "dark"]
    assert kinds["dark"]["path"].endswith("train/bee/dark.png")
    assert kinds["dark"]["severity"] == "warning"
    assert kinds["duplicate-split"]["others"] == [str(source / "train/ant/001.jpg")]


def test_of_a_config(source, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(
        f"model: {{class_path: Classification, init_args: {{backbone: lenet5}}}}\n"
        f"data: {{class_path: ClassificationData, init_args: {{source: {source}}}}}\n"
    )
    words = ["check", "--config", "mine.yaml", "--output", "found"]
    assert main([*words, "--fail_on", "never"]) == 0
    page = (tmp_path / "found/check.html").read_text()
    assert page.count("<img src='data:image/jpeg;base64,") == 3  # the pair, and the dark one
    assert "http" not in page
    assert "<td class=t>error</td><td class=t><a href='#duplicate-split'>duplicate-split</a></td><td>1</td>" in page
    (source / "val/ant/000.jpg").unlink()
    assert main(words) == 0
    assert main([*words, "--fail_on", "warning"]) == 1
    capsys.readouterr()
    assert main(["check", "--config", "mine.yaml", "--data.source", "nowhere"]) == 2
    assert "data.source 'nowhere' does not exist" in capsys.readouterr().err


class ByColor:
    """A classifier that knows the two classes by their colors."""

    device = torch.device("cpu")

    def predict(self, batch):
        bee = (batch["image"][:, 0].float().mean((1, 2)) < 150).float()  # gray; ants are red
        return {"probabilities": torch.stack([0.9 - 0.8 * bee, 0.1 + 0.8 * bee], 1)}


def test_a_label_that_the_predictions_contradict(tmp_path):
    root = write_images(tmp_path / "pictures", {f"{s}/{c}": 6 for s in ("train", "val") for c in ("ant", "bee")})
    (root / "val/ant/000.jpg").rename(root / "val/bee/wrong.jpg")
    data = ClassificationData(str(root), image_size=32, num_workers=0)
    data.setup("probe")
    names = ["ant", "bee"]
    right = _of_classes(ByColor(), data.train_features_dataloader, "train", names)
    wrong = _of_classes(ByColor(), data.val_dataloader, "val", names)
    assert [len(right), len(wrong)] == [0, 1]
    assert (wrong[0].path, wrong[0].message) == (
        str(root / "val/bee/wrong.jpg"),
        "labeled bee (10%), predicted ant (90%)",
    )


class Surplus:
    """Predicts all labeled boxes, and one more on the first picture."""

    device = torch.device("cpu")

    def predict(self, batch):
        found = {key: [target[key] for target in batch["target"]] for key in ("boxes", "labels")}
        more = [path.endswith("/0") for path in batch["path"]]
        for key, value in (("boxes", [[0.0, 0.0, 9.0, 9.0]]), ("labels", [3])):
            own = [torch.as_tensor(one) for one in found[key]]
            found[key] = [torch.cat([one, torch.tensor(value)]) if m else one for one, m in zip(own, more, strict=True)]
        return {**found, "scores": [torch.full((len(own),), 0.9) for own in found["boxes"]]}


def test_a_box_that_the_predictions_have_and_the_labels_have_not():
    data = DetectionData(num_scenes={"train": 8, "val": 4, "test": 0}, image_size=96, num_workers=0)
    data.setup("probe")
    (found,) = _of_boxes(Surplus(), data.train_features_dataloader, "train", list("0123456789"))
    assert (found.kind, found.box) == ("label-overlooked", (0, 0, 9, 9))
    assert found.path.endswith("train/0")


class ByBrightness:
    """White is a house."""

    device = torch.device("cpu")

    def scores(self, image):
        house = 0.1 + 0.8 * (image[:, :1] > 128).float()
        return torch.cat([1 - house, house], 1)


def test_a_region_of_a_mask_that_the_predictions_contradict(tmp_path):
    for i in range(4):
        mask = np.zeros((40, 60), np.uint8)
        mask[10:30, 10:30] = 1
        pixels = np.repeat(mask[..., None] * 255, 3, axis=2)
        if i == 2:
            mask[10:22, 40:52] = 1
        for name, array in (("images", pixels), ("masks", mask)):
            (tmp_path / name / "train").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / name / "train" / f"{i}.png")
    data = SegmentationData(str(tmp_path), image_size=80, resize="letterbox", val_fraction=0.0, num_workers=0)
    data.setup("probe")
    (found,) = _of_pixels(ByBrightness(), data.train_features_dataloader, "train", ["ground", "house"])
    assert (found.kind, found.path) == ("label", str(tmp_path / "images/train/2.png"))
    assert "labeled house, predicted ground; the mask's quality is 0.1" in found.message
    np.testing.assert_allclose(found.box, (40, 10, 52, 22), atol=1.5)


NOISY = """\
data: {{class_path: ClassificationData, init_args: {{source: {source}, test_fraction: 0.0}}}}
pool: pool
teacher: {{model: {{class_path: Classification, init_args: {{backbone: lenet5}}}}}}
students: [{{model: {{class_path: Classification, init_args: {{backbone: lenet5}}}}}}]
"""


def test_of_a_config_of_noisy_student(source, tmp_path, capsys):
    """Its labeled images, and evaluated ones in its pool."""
    (tmp_path / "loop.yaml").write_text(NOISY.format(source=source))
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/leak.jpg").write_bytes((source / "val/bee/001.jpg").read_bytes())
    assert main(["check", "--config", "loop.yaml", "--fail_on", "never", "--output", "found"]) == 0
    out = capsys.readouterr().out
    assert "train 13, val 4, pool 1 images, 2 classes" in out
    assert "duplicate-pool" in out
    assert "duplicate-split" in out
    assert (tmp_path / "found/check.html").is_file()
    assert main(["check", "--config", "loop.yaml"]) == 1
    (tmp_path / "loop.yaml").write_text(NOISY.format(source=source) + "poool: 1\n")
    assert main(["check", "--config", "loop.yaml"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pictures"], "--task is missing"),
        (["pictures", "--task", "boxes"], "--task is 'boxes'"),
        (["--task", "detection"], "is for a source without a config"),
    ],
)
def test_what_is_wrong_with_the_words(words, said, capsys):
    assert main(["check", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_page_shows_damaged_files_and_the_part_around_a_box(tmp_path):
    picture = np.zeros((400, 300, 3), np.uint8)
    picture[100:110, 200:210] = 255
    findings = [
        Finding("box-tiny", "<small>", "a.png", "train", (200, 100, 210, 110)),
        Finding("box-outside", "out of it", "a.png", "train", (500, 100, float("inf"), 110)),
        Finding("unreadable", "damaged", "b.png", "val"),
    ]

    def draw(path):
        if path == "b.png":
            raise ValueError
        return picture

    write_page(tmp_path / "page.html", "a & b", "", findings, draw)
    page = (tmp_path / "page.html").read_text()
    assert "&lt;small&gt;" in page
    assert "a &amp; b" in page
    shown = [Image.open(io.BytesIO(base64.b64decode(code))) for code in re.findall("base64,([^']+)'", page)]
    assert sorted(image.size for image in shown) == [(120, 120), (180, 240), (240, 240)]
    tiny = next(np.asarray(image) for image in shown if image.size == (240, 240))
    assert tiny[105:135, 105:135].min() > 200  # 10 pixels of 48 around the box, enlarged five times
    assert tiny[105:135, 94, 0].mean() > tiny[105:135, 94, 1].mean() + 50  # its red line
